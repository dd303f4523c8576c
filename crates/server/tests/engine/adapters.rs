//! Adapters that come and go while the server works.

use std::path::Path;

use lora_4bit::peft::LoraAdapter;
use serde_json::{Value, json};

use crate::client::Server;
use crate::model::{Random, TestModel, greedy};

fn load(server: &Server, name: &str, path: &Path) -> (u16, Value) {
    let body = json!({ "lora_name": name, "lora_path": path });
    server.post("/v1/load_lora_adapter", &body)
}

fn unload(server: &Server, name: &str) -> u16 {
    let body = json!({ "lora_name": name });
    server.post_text("/v1/unload_lora_adapter", &body).0
}

/// The error of a request for an unknown model.
fn assert_unknown(server: &Server, name: &str) {
    let body = json!({ "model": name, "prompt": [500], "max_tokens": 1 });
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(
        (status, &answer["error"]["code"]),
        (404, &json!("model_not_found")),
        "{answer}"
    );
}

#[test]
fn what_cannot_be_loaded_is_refused_by_path() {
    let model = TestModel::new();
    let server = Server::start(&model, &["--enable-lora", "--max-lora-rank", "4"]);
    let refused = |path: &Path, expected: u16, reason: &str| {
        let (status, answer) = load(&server, "adapter", path);
        let error = &answer["error"];
        assert_eq!((status, &error["param"]), (expected, &json!("lora_path")));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(message.contains(reason), "{message}");
        assert_unknown(&server, "adapter");
    };
    refused(Path::new("/no/such/adapter"), 404, "no such folder");
    refused(model.dir(), 404, "adapter_config.json");
    // Rank 5, but only 4 are allowed.
    refused(&model.adapter(1), 400, "--max-lora-rank");

    let mut adapter = LoraAdapter::load(&model.adapter(0)).unwrap();
    let matrices = adapter.modules.values_mut().next().unwrap();
    matrices.in_features /= 2;
    matrices.a.truncate(matrices.r * matrices.in_features);
    let narrow = model.dir().join("narrow");
    adapter.save(&narrow).unwrap();
    refused(&narrow, 400, "features");

    let damaged = model.adapter(3);
    std::fs::write(damaged.join("adapter_model.safetensors"), b"damaged").unwrap();
    refused(&damaged, 400, "");
}

#[test]
fn adapters_come_and_go_while_the_server_works() {
    let model = TestModel::new();
    let (first, second) = (model.adapter(0), model.adapter(2));
    let server = Server::start(&model, &["--enable-lora", "--max-loras", "2"]);
    let prompt = Random(30).tokens(60);
    let expected = |path: &Path| greedy(&model.load_with(path), &prompt, 20, Some(0));
    let (as_first, as_second) = (expected(&first), expected(&second));
    assert_ne!(as_first, as_second);
    let cached_tokens = |answer: &Value| {
        let usage = &answer["usage"];
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    let ask = |name: &str| {
        let answer = server.response(&prompt, json!({ "model": name }));
        let tokens = crate::client::token_ids(&answer["choices"][0]["logprobs"]["tokens"]);
        (tokens, cached_tokens(&answer))
    };

    let background = Random(31).tokens(10);
    let long = json!({ "max_tokens": 600, "ignore_eos": true });
    let undisturbed = server.complete(&background, long.clone());
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| server.stream(&background, long));
        server.wait_for("the background", |stats| stats.num_running == 1);
        assert_unknown(&server, "adapter");

        server.load_adapter("adapter", &first);
        assert_eq!(ask("adapter"), (as_first.clone(), 0));
        assert_eq!(ask("adapter"), (as_first.clone(), 48));
        assert_eq!(
            load(&server, "adapter", &second).0,
            400,
            "the name is taken"
        );
        server.load_adapter("other", &first);
        assert_eq!(
            load(&server, "third", &second).0,
            400,
            "both slots are taken"
        );

        assert_eq!(unload(&server, "adapter"), 200);
        assert_unknown(&server, "adapter");
        assert_eq!(unload(&server, "adapter"), 404);
        assert_eq!(ask("other"), (as_first.clone(), 0), "still loaded");

        // The prefix cached under the name belongs to the first adapter.
        server.load_adapter("adapter", &second);
        assert_eq!(ask("adapter"), (as_second.clone(), 0));
        assert_eq!(ask("adapter"), (as_second.clone(), 48));
        assert_eq!(busy.join().unwrap(), undisturbed);
    });
    server.wait_until_free();
}

#[test]
fn unloading_ends_the_requests_of_the_adapter_and_no_others() {
    let model = TestModel::new();
    let server = Server::start(&model, &["--enable-lora"]);
    server.load_adapter("adapter", &model.adapter(1));
    let ask = |name: &str, max_tokens: usize| {
        let body = json!({ "model": name, "prompt": [500, 600], "max_tokens": max_tokens, "ignore_eos": true });
        server.post("/v1/completions", &body)
    };
    std::thread::scope(|scope| {
        let adapted = scope.spawn(|| ask("adapter", 4000));
        let base = scope.spawn(|| ask("base", 500));
        server.wait_for("two running sequences", |stats| stats.num_running == 2);
        assert_eq!(unload(&server, "adapter"), 200);
        assert_eq!(adapted.join().unwrap().0, 503);
        let (status, answer) = base.join().unwrap();
        assert_eq!(
            (status, &answer["usage"]["completion_tokens"]),
            (200, &json!(500))
        );
    });
    server.wait_until_free();
}
