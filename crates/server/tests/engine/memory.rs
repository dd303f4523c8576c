//! What fits, and what is said if it does not.

use serde_json::json;
use server::engine::Engine;

use crate::client::{Server, blocks, config};
use crate::model::{BLOCK_BYTES, MAX_POSITION_EMBEDDINGS, TestModel};

fn refusal(model: &TestModel, flags: &[&str]) -> String {
    match Engine::start(&config(model, flags)) {
        Ok(_) => panic!("{flags:?} fits"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_length_that_does_not_fit_is_refused_with_three_numbers() {
    let model = TestModel::new();
    assert_eq!(BLOCK_BYTES, 8192);
    let pool = blocks(10);
    let flags = ["--kv-cache-memory-bytes", &pool, "--max-model-len"];
    let with = |len| [&flags[..], &[len]].concat();

    let message = refusal(&model, &with("1024"));
    for part in [
        "--max-model-len 1024 needs 512.00 KiB",
        "80.00 KiB are available",
        "enough for 160 tokens",
        "increase --gpu-memory-utilization",
        "decrease --max-model-len",
    ] {
        assert!(message.contains(part), "{message}");
    }
    let message = refusal(&model, &with("161"));
    assert!(message.contains("88.00 KiB"), "{message}");

    let (_, info) = Engine::start(&config(&model, &with("160"))).unwrap();
    assert_eq!(info.max_model_len, 160);
    let table = info.memory_table;
    let text = table.to_string();
    assert!(
        text.contains("10 blocks of 16 tokens = 160 tokens"),
        "{text}"
    );
    assert_eq!(table.kv_cache, 10 * BLOCK_BYTES as u64);
    assert_eq!((table.max_model_len, table.max_concurrency), (160, 1.0));
    assert!(table.weights > 0 && table.activations > 0, "{text}");
    // Without a flag the budget is what all of it takes.
    let parts = table.weights + table.adapters + table.activations + table.kv_cache;
    assert_eq!(table.budget, parts);
    assert_eq!((table.driver, table.lm_head_int8), (None, None));
}

#[test]
fn auto_takes_what_fits_up_to_the_models_limit() {
    let model = TestModel::new();
    let length = |num_blocks| {
        let pool = blocks(num_blocks);
        let (_, info) =
            Engine::start(&config(&model, &["--kv-cache-memory-bytes", &pool])).unwrap();
        info.max_model_len
    };
    assert_eq!(length(10), 160);
    assert_eq!(length(1000), MAX_POSITION_EMBEDDINGS);
}

#[test]
fn a_length_beyond_the_model_and_a_budget_without_room_are_refused() {
    let model = TestModel::new();
    let message = refusal(&model, &["--max-model-len", "4097"]);
    assert!(
        message.contains("4097") && message.contains("4096"),
        "{message}"
    );

    let half = ["--device-memory", "1MiB", "--gpu-memory-utilization", "0.5"];
    let message = refusal(&model, &half);
    assert!(message.contains("the budget is 512.00 KiB"), "{message}");
    let message = refusal(&model, &["--device-memory", "1MiB"]);
    assert!(message.contains("the budget is 1.00 MiB"), "{message}");
    // What is asked for is not more than there is, and what no sequence could use is not asked for.
    let pool = blocks(1000);
    let cache = [
        "--kv-cache-memory-bytes",
        &pool,
        "--max-num-seqs",
        "256",
        "--device-memory",
    ];
    let message = refusal(&model, &[&cache[..], &["4MiB"]].concat());
    assert!(message.contains("the budget is 4.00 MiB"), "{message}");
    let one = ["--max-num-seqs", "1", "--max-model-len", "16"];
    let flags = [
        "--kv-cache-memory-bytes",
        "1GiB",
        "--device-memory",
        "64MiB",
    ];
    Engine::start(&config(&model, &[&flags[..], &one].concat())).unwrap();
    let less_than_a_block = ["--kv-cache-memory-bytes", "8191"];
    let message = refusal(&model, &less_than_a_block);
    assert!(message.contains("--kv-cache-memory-bytes"), "{message}");
}

#[test]
fn a_sequence_may_fill_the_whole_pool() {
    let model = TestModel::new();
    let pool = blocks(10);
    let server = Server::start(&model, &["--kv-cache-memory-bytes", &pool]);
    let prompt = vec![500; 100];
    let answer = server.complete(&prompt, json!({ "max_tokens": 60, "ignore_eos": true }));
    assert_eq!(
        (answer.tokens.len(), &*answer.finish_reason),
        (60, "length")
    );
    let body = json!({ "prompt": prompt, "max_tokens": 61 });
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 400, "{answer}");
    server.wait_until_free();
}
