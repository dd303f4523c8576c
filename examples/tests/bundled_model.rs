//! What data/README.md says of the bundled model: no answer to its prompts loops, and each one ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use examples::answers::Answer;
use model_qwen::{ChatModel, LoadOptions, parse_device};
use serde_json::json;

#[test]
fn likeliest_answers_end_and_do_not_loop() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    let model = data.join("model").display().to_string();
    let device = parse_device("cpu").unwrap();
    let chat = ChatModel::load(&model, &LoadOptions::default(), &device).unwrap();
    let prompts = std::fs::read_to_string(data.join("prompts.txt")).unwrap();
    assert_eq!(prompts.lines().count(), 20);
    for prompt in prompts.lines() {
        let message = json!({"role": "user", "content": prompt});
        let answer = Answer::likeliest(&chat, &[message], 400).unwrap();
        assert!(!answer.text.trim().is_empty(), "{prompt}");
        assert!(!answer.is_broken(Answer::LOOP), "{prompt}: {}", answer.text);
    }
}
