//! Many sequences at once against the same sequences alone.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::client::{Completion, Server, blocks};
use crate::model::{Random, TestModel};

const NUM_REQUESTS: usize = 32;
const MODELS: [&str; 4] = ["base", "first", "second", "third"];

/// Prompts of 1 to 200 tokens that share beginnings, and 20 to 49 tokens of output, on four models.
fn requests() -> Vec<(Vec<u32>, Value)> {
    let mut random = Random(1);
    let shared = random.tokens(200);
    (0..NUM_REQUESTS)
        .map(|i| {
            let len = 1 + i * 199 / (NUM_REQUESTS - 1);
            let mut prompt = shared[..len * 2 / 3].to_vec();
            prompt.extend(random.tokens(len - prompt.len()));
            let extra = json!({ "model": MODELS[i % 4], "max_tokens": 20 + i * 7 % 30 });
            (prompt, extra)
        })
        .collect()
}

#[test]
fn preempted_batches_of_adapters_answer_as_each_request_alone() {
    let model = TestModel::new();
    let adapters = |i: usize| format!("{}={}", MODELS[i + 1], model.adapter(i).display());
    let (first, second, third) = (adapters(0), adapters(1), adapters(2));
    let lora = ["--enable-lora", "--lora-modules", &first, &second, &third];
    let requests = requests();

    let alone = Server::start(
        &model,
        &[&lora[..], &["--no-enable-prefix-caching"]].concat(),
    );
    let expected: Vec<Completion> = requests
        .iter()
        .map(|(prompt, extra)| alone.complete(prompt, extra.clone()))
        .collect();
    let stats = alone.wait_until_free();
    assert_eq!((stats.num_preemptions, stats.prefix_hits), (0, 0));
    drop(alone);
    let distinct: HashSet<u32> = expected.iter().flat_map(|e| e.tokens.clone()).collect();
    assert!(distinct.len() > 200, "only {} tokens", distinct.len());

    // 40 blocks hold 640 of the 4,300 tokens.
    let pool = blocks(40);
    let small = ["--kv-cache-memory-bytes", &pool, "--max-model-len", "256"];
    let busy = Server::start(
        &model,
        &[&lora[..], &small, &["--max-num-batched-tokens", "40"]].concat(),
    );
    let streamed: Vec<Completion> = std::thread::scope(|scope| {
        let threads: Vec<_> = requests
            .iter()
            .map(|(prompt, extra)| scope.spawn(|| busy.stream(prompt, extra.clone())))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (i, (streamed, expected)) in streamed.iter().zip(&expected).enumerate() {
        let (prompt_len, model) = (requests[i].0.len(), &requests[i].1["model"]);
        assert_eq!(
            streamed, expected,
            "request {i}: {model}, {prompt_len} tokens"
        );
    }
    let stats = busy.wait_until_free();
    assert_eq!(stats.num_blocks, 40);
    assert!(stats.num_preemptions > 0, "{stats:?}");
    assert!(stats.prefix_hits > 0, "{stats:?}");
}

#[test]
fn adapters_of_one_batch_do_not_mix() {
    let model = TestModel::new();
    let paths: Vec<_> = (0..3).map(|seed| model.adapter(seed)).collect();
    let server = Server::start(&model, &["--enable-lora"]);
    for (name, path) in MODELS[1..].iter().zip(&paths) {
        server.load_adapter(name, path);
    }
    let prompt = Random(2).tokens(50);
    let answers: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let ask = |name| server.stream(&prompt, json!({ "model": name })).tokens;
        let threads = MODELS.map(|name| scope.spawn(move || ask(name)));
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let distinct: HashSet<&Vec<u32>> = answers.iter().collect();
    assert_eq!(distinct.len(), 4, "{answers:?}");
    // The cached prefix of one adapter is of no use to another.
    assert_eq!(server.wait_until_free().prefix_hits, 0);
}
