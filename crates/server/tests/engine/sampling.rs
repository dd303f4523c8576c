//! Seeds, and greedy decoding against the model without an engine.

use std::collections::HashSet;

use serde_json::json;

use crate::client::Server;
use crate::model::{EOS, Random, TestModel, greedy};

/// The request's tokens without an end-of-sequence token.
fn without_eos(mut tokens: Vec<u32>) -> Vec<u32> {
    if tokens.last().is_some_and(|last| EOS.contains(last)) {
        tokens.pop();
    }
    tokens
}

#[test]
fn temperature_0_is_greedy() {
    let model = TestModel::new();
    let path = model.adapter(2);
    let (base, adapted) = (model.load(), model.load_with(&path));
    let server = Server::start(&model, &["--enable-lora"]);
    server.load_adapter("adapter", &path);
    for (seed, len) in [(10, 1), (11, 33), (12, 150)] {
        let prompt = Random(seed).tokens(len);
        let expected = greedy(&base, &prompt, 40, None);
        for extra in [
            json!({ "max_tokens": 40 }),
            json!({ "max_tokens": 40, "seed": 5, "top_k": 50, "top_p": 0.5 }),
            json!({ "max_tokens": 40, "temperature": 1.5, "top_k": 1 }),
        ] {
            let answer = server.complete(&prompt, extra.clone());
            assert_eq!(without_eos(answer.tokens), expected, "{len}: {extra}");
        }
        let answer = server.complete(&prompt, json!({ "max_tokens": 40, "model": "adapter" }));
        let with_adapter = greedy(&adapted, &prompt, 40, Some(0));
        assert_eq!(without_eos(answer.tokens), with_adapter, "{len}: adapter");
        assert_ne!(with_adapter, expected, "the adapter changes nothing");
    }
}

#[test]
fn equal_seeds_give_equal_texts() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let prompt = Random(20).tokens(30);
    let sample = |seed: u64, n: usize| {
        let extra = json!({ "temperature": 1, "top_k": 0, "top_p": 1, "seed": seed, "n": n });
        server.choices(&prompt, extra)
    };
    let alone = sample(1, 1);
    assert_eq!(sample(1, 1), alone);
    assert_ne!(sample(2, 1), alone);

    let three = sample(1, 3);
    assert_eq!(three[0], alone[0], "the first choice has the seed itself");
    let distinct: HashSet<&str> = three.iter().map(|choice| &*choice.text).collect();
    assert_eq!(distinct.len(), 3, "{three:?}");
    // Beside other requests, too.
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| sample(99, 8));
        assert_eq!(sample(1, 3), three);
        busy.join().unwrap();
    });
}

#[test]
fn choices_differ_with_a_seed_of_the_server() {
    let model = TestModel::new();
    let prompt = Random(21).tokens(30);
    let sample = || {
        let server = Server::start(&model, &["--seed", "3"]);
        let extra = json!({ "temperature": 1, "top_k": 0, "top_p": 1, "n": 3 });
        let first = server.choices(&prompt, extra.clone());
        [first, server.choices(&prompt, extra)].concat()
    };
    let all = sample();
    let distinct: HashSet<&str> = all.iter().map(|choice| &*choice.text).collect();
    assert_eq!(distinct.len(), 6, "{all:?}");
    assert_eq!(
        sample(),
        all,
        "the same requests to the same server started again"
    );
}
