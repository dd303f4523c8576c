//! Adapters that come and go while the server works.

use std::path::Path;

use lora_4bit::peft::{LoraAdapter, SavedModule, TargetModules};
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
    refused(&damaged, 400, "header too small");
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
fn unloading_lets_running_requests_finish() {
    let model = TestModel::new();
    let (first, second) = (model.adapter(1), model.adapter(2));
    let server = Server::start(&model, &["--enable-lora", "--max-loras", "2"]);
    let prompt = Random(32).tokens(30);
    let expected = |path: &Path, num| greedy(&model.load_with(path), &prompt, num, Some(0));
    let ask = |max_tokens: usize| {
        let extra = json!({ "model": "adapter", "max_tokens": max_tokens, "ignore_eos": true });
        server.complete(&prompt, extra)
    };
    server.load_adapter("adapter", &first);
    let undisturbed = ask(600);
    // Otherwise the sequence that runs next could be this one.
    server.wait_until_free();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| ask(600));
        server.wait_for("a running sequence", |stats| stats.num_running == 1);
        assert_eq!(unload(&server, "adapter"), 200);
        assert_unknown(&server, "adapter");
        // Another adapter of the same name while the first still answers.
        server.load_adapter("adapter", &second);
        assert_eq!(ask(10).tokens, expected(&second, 10));
        let in_place = json!({ "lora_name": "adapter", "lora_path": first, "load_inplace": true });
        assert_eq!(server.post_text("/v1/load_lora_adapter", &in_place).0, 200);
        assert_eq!(ask(10).tokens, expected(&first, 10));
        assert_eq!(running.join().unwrap(), undisturbed);
    });
    server.wait_until_free();
    let names: Vec<_> = server
        .engine
        .adapters()
        .into_iter()
        .map(|a| a.name)
        .collect();
    assert_eq!(names, ["adapter"]);
}

#[test]
fn more_adapters_than_slots_take_turns() {
    let model = TestModel::new();
    let paths: Vec<_> = (0..3).map(|seed| model.adapter(seed)).collect();
    let prompt = Random(33).tokens(25);
    let expected: Vec<_> = paths
        .iter()
        .map(|path| greedy(&model.load_with(path), &prompt, 15, Some(0)))
        .collect();
    for flags in [&["--max-cpu-loras", "2"][..], &[]] {
        let flags = [&["--enable-lora", "--max-loras", "1"], flags].concat();
        let server = Server::start(&model, &flags);
        for (i, path) in paths.iter().enumerate() {
            server.load_adapter(&format!("adapter-{i}"), path);
        }
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..12)
                .map(|i| {
                    let (server, prompt) = (&server, &prompt);
                    scope.spawn(move || {
                        let name = format!("adapter-{}", i % 3);
                        server.complete(prompt, json!({ "model": name, "max_tokens": 15 }))
                    })
                })
                .collect();
            let base = server.complete(&prompt, json!({ "max_tokens": 5 }));
            assert_eq!(base.tokens, greedy(&model.load(), &prompt, 5, None));
            for (i, client) in clients.into_iter().enumerate() {
                let tokens = client.join().unwrap().tokens;
                let expected = &expected[i % 3];
                assert_eq!(&tokens[..expected.len()], expected, "request {i}");
            }
        });
        server.wait_until_free();
        // One whose files have gone can't come back.
        if flags.len() == 3 {
            std::fs::remove_file(paths[0].join("adapter_model.safetensors")).unwrap();
            server.complete(&prompt, json!({ "model": "adapter-1", "max_tokens": 2 }));
            let body = json!({ "model": "adapter-0", "prompt": [500], "max_tokens": 2 });
            let (status, answer) = server.post("/v1/completions", &body);
            assert_eq!(status, 503, "{answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            let start = format!("LoRA adapter at {} cannot be used: ", paths[0].display());
            assert!(message.starts_with(&start), "{message}");
            assert!(message.contains("adapter_model.safetensors"), "{message}");
            server.complete(&prompt, json!({ "model": "adapter-2", "max_tokens": 2 }));
        }
    }
}

/// A training run may write into a folder whose adapter is loaded: its old weights are not mixed with the new ones.
#[test]
fn files_that_change_while_an_adapter_waits_have_no_old_prefixes() {
    let model = TestModel::new();
    let (first, second, other) = (model.adapter(0), model.adapter(2), model.adapter(1));
    let server = Server::start(&model, &["--enable-lora", "--max-loras", "1"]);
    let prompt = Random(34).tokens(60);
    let of = |path: &Path| greedy(&model.load_with(path), &prompt, 20, Some(0));
    let (as_first, as_second) = (of(&first), of(&second));
    let ask = |name: &str| {
        let answer = server.response(&prompt, json!({ "model": name }));
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        let tokens = &answer["choices"][0]["logprobs"]["tokens"];
        (crate::client::token_ids(tokens), cached.as_u64().unwrap())
    };
    server.load_adapter("adapter", &first);
    server.load_adapter("other", &other);
    assert_eq!(ask("adapter"), (as_first.clone(), 0));
    // It leaves its slot, and comes back as it was.
    ask("other");
    assert_eq!(ask("adapter"), (as_first, 48));
    ask("other");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(second.join(name), first.join(name)).unwrap();
    }
    assert_eq!(ask("adapter"), (as_second.clone(), 0));
    ask("other");
    assert_eq!(ask("adapter"), (as_second, 48));
}

#[test]
fn adapters_of_other_parts_are_refused_with_the_reason() {
    let model = TestModel::new();
    let server = Server::start(&model, &["--enable-lora"]);
    let mut adapter = LoraAdapter::load(&model.adapter(0)).unwrap();
    let matrices = adapter.modules.values().next().unwrap().clone();
    adapter.modules.insert("lm_head".to_owned(), matrices);
    let modules = ["q_proj", "v_proj", "lm_head"].map(str::to_owned);
    adapter.config.target_modules = TargetModules::List(modules.to_vec());
    let path = model.dir().join("head");
    adapter.save(&path).unwrap();
    let (status, answer) = load(&server, "head", &path);
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400, "{message}");
    assert!(message.contains("the head, the embedding"), "{message}");
    adapter.modules.remove("lm_head");
    adapter.config.modules_to_save = vec!["lm_head".to_owned()];
    let shape = model.load().lm_head.weight.shape();
    let weight = vec![0.0; shape[0] * shape[1]];
    let head = SavedModule { weight, shape };
    adapter.saved.insert("lm_head".to_owned(), head);
    adapter.save(&path).unwrap();
    let (status, answer) = load(&server, "head", &path);
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400, "{message}");
    assert!(
        message.contains("whole weight of lm_head, expected")
            && message.contains("trainer-sft merge"),
        "{message}"
    );
    // Of a vocabulary that has grown there is nothing to merge.
    let grown = SavedModule {
        weight: vec![0.0; (shape[0] + 4) * shape[1]],
        shape: [shape[0] + 4, shape[1]],
    };
    adapter.saved.insert("lm_head".to_owned(), grown);
    adapter.save(&path).unwrap();
    let (status, answer) = load(&server, "head", &path);
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400, "{message}");
    let rows = format!(
        "the adapter's vocabulary has {} rows, the base model's {}: resize the base model first",
        shape[0] + 4,
        shape[0]
    );
    assert!(
        message.contains(&rows) && !message.contains("merge"),
        "{message}"
    );
    let (status, answer) = load(&server, "hub", Path::new("acme/sql-lora"));
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 404, "{message}");
    assert!(message.contains("local"), "{message}");
}
