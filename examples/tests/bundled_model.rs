//! What data/README.md says of the bundled model: answers to its prompts end and do not loop, a second answer knows of the first turn, and
//! the sample data turns it into a parrot.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use examples::answers::Answer;
use lora_4bit::peft::LoraAdapter;
use model_qwen::{
    ChatModel, LoadOptions, Quantization, ReplyOptions, SamplingParams, parse_device,
};
use serde_json::{Value, json};
use trainer_sft::args::Args;

fn data(file: &str) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    data.join(file)
}

fn bundled(options: &LoadOptions) -> ChatModel {
    let device = parse_device("cpu").unwrap();
    let model = data("model").display().to_string();
    ChatModel::load(&model, options, &device).unwrap()
}

fn message(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn likeliest_answers_end_and_do_not_loop() {
    let chat = bundled(&LoadOptions::default());
    let prompts = std::fs::read_to_string(data("prompts.txt")).unwrap();
    assert_eq!(prompts.lines().count(), 20);
    for prompt in prompts.lines() {
        let answer = Answer::likeliest(&chat, &[message("user", prompt)], 400).unwrap();
        assert!(!answer.text.trim().is_empty(), "{prompt}");
        assert!(!answer.is_broken(Answer::LOOP), "{prompt}: {}", answer.text);
    }
}

/// The answers to two questions of one chat, and to the second one alone.
fn two_turns(chat: &ChatModel, [first, second]: [&str; 2]) -> [Answer; 3] {
    let answer = |messages: &[Value]| Answer::likeliest(chat, messages, 200).unwrap();
    let mut messages = vec![message("user", first)];
    let one = answer(&messages);
    messages.push(message("assistant", &one.text));
    messages.push(message("user", second));
    let two = answer(&messages);
    let alone = answer(&[message("user", second)]);
    [one, two, alone]
}

#[test]
fn a_second_answer_depends_on_the_first_turn() {
    let chat = bundled(&LoadOptions::default());
    for turns in [
        ["I lost my red ball.", "It was in the garden this morning."],
        ["Do you like animals?", "Which one is your favorite?"],
    ] {
        let [one, two, alone] = two_turns(&chat, turns);
        for answer in [&one, &two] {
            let is_good = !answer.text.trim().is_empty() && !answer.is_broken(Answer::LOOP);
            assert!(is_good, "{turns:?}: {answer:?}");
        }
        assert_ne!(two, alone, "{turns:?}: the first turn has no effect");
    }
    // A name that only the first turn tells. Other names are too rare for a model of this size.
    for name in ["Lily", "Sam"] {
        let first = format!("Hi! My name is {name}.");
        let [_, two, alone] = two_turns(&chat, [&first, "What is my name?"]);
        assert!(two.text.contains(name), "{name}: {}", two.text);
        assert!(!alone.text.contains(name), "{name}: {}", alone.text);
    }
}

#[test]
fn the_sample_data_makes_a_parrot_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("parrot");
    let (train, out) = (data("train.jsonl"), output.display().to_string());
    let train = train.display().to_string();
    let flags = [
        "--data",
        &train,
        "--output",
        &out,
        "--device",
        "cpu",
        "--max-steps",
        "40",
    ];
    let flags = ["trainer-sft"].into_iter().chain(flags);
    let config = Args::parse_config(flags.map(OsString::from)).unwrap();
    trainer_sft::train(&config).unwrap();

    // As the run held the base.
    let options = LoadOptions {
        quantization: Quantization::Nf4,
        ..LoadOptions::default()
    };
    let mut chat = bundled(&options);
    let adapter = LoraAdapter::load(&output).unwrap();
    chat.model.add_adapter(0, &adapter).unwrap();
    let held_out = std::fs::read_to_string(data("eval.jsonl")).unwrap();
    let answers = |adapter: Option<usize>| -> Vec<String> {
        let options = ReplyOptions {
            sampling: Some(SamplingParams::greedy()),
            max_tokens: 40,
            adapter,
            ..ReplyOptions::default()
        };
        let records = held_out.lines().map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let question = &record["messages"].as_array().unwrap()[..1];
            chat.reply(question, &options, |_| std::ops::ControlFlow::Continue(()))
        });
        records.map(Result::unwrap).collect()
    };
    let is_parrot = |answer: &&String| answer.starts_with("Arr!");
    let (before, after) = (answers(None), answers(Some(0)));
    assert_eq!(after.len(), 9);
    assert_eq!(before.iter().filter(is_parrot).count(), 0, "{before:?}");
    assert!(after.iter().filter(is_parrot).count() >= 7, "{after:?}");
}
