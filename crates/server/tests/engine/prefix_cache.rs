//! Prompts that begin as an earlier one.

use serde_json::{Value, json};

use crate::client::Server;
use crate::model::{Random, TestModel};

fn ask(server: &Server, prompt: &[u32], extra: Value) -> (String, u64) {
    let answer = server.response(prompt, extra);
    let details = &answer["usage"]["prompt_tokens_details"];
    let text = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    (text, details["cached_tokens"].as_u64().unwrap())
}

#[test]
fn equal_beginnings_are_computed_once_per_salt() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let prompt = Random(70).tokens(60);
    let (text, cached_tokens) = ask(&server, &prompt, json!({}));
    assert_eq!(cached_tokens, 0);
    // Three full blocks of 16.
    assert_eq!(ask(&server, &prompt, json!({})), (text.clone(), 48));
    let salted = json!({ "cache_salt": "mine" });
    assert_eq!(ask(&server, &prompt, salted.clone()), (text.clone(), 0));
    assert_eq!(ask(&server, &prompt, salted), (text.clone(), 48));
    let other = json!({ "cache_salt": "yours" });
    assert_eq!(ask(&server, &prompt, other), (text, 0));

    let mut branch = prompt[..40].to_vec();
    branch.extend(Random(71).tokens(20));
    assert_eq!(ask(&server, &branch, json!({})).1, 32);
    // The last token is computed in any case, as its logits are needed.
    assert_eq!(ask(&server, &prompt[..48], json!({})).1, 32);
}

#[test]
fn nothing_is_shared_without_prefix_caching() {
    let model = TestModel::new();
    let (on, off) = (
        Server::start(&model, &[]),
        Server::start(&model, &["--no-enable-prefix-caching"]),
    );
    let prompt = Random(72).tokens(60);
    let (text, _) = ask(&on, &prompt, json!({}));
    for _ in 0..2 {
        assert_eq!(ask(&off, &prompt, json!({})), (text.clone(), 0));
    }
}
