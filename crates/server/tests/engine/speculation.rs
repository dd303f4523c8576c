//! Speculative decoding changes how fast tokens come, and nothing else.

use model_qwen::SamplingParams;
use server::engine::{EngineOutput, GenerateRequest, SpeculationStats};

use crate::client::{Server, blocks, request};
use crate::model::{Random, TestModel};

const ON: [&str; 2] = [
    "--speculative-config",
    r#"{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3, "prompt_lookup_min": 1}"#,
];
const OFF: [&str; 2] = ["--speculative-config", "off"];

/// Sampled and greedy, with everything that looks at the tokens so far. Few tokens are allowed, so that n-grams repeat and guesses
/// are right now and then.
fn requests() -> Vec<GenerateRequest> {
    let mut random = Random(11);
    let shared = random.tokens(300);
    let few = || Some(vec![300, 301, 302]);
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    let sampled = SamplingParams {
        seed: Some(5),
        allowed_token_ids: few(),
        ..SamplingParams::default()
    };
    let kinds = [
        greedy.clone(),
        SamplingParams {
            allowed_token_ids: few(),
            logprobs: Some(2),
            ..greedy.clone()
        },
        sampled.clone(),
        SamplingParams {
            logprobs: Some(0),
            top_p: 0.9,
            temperature: 0.5,
            ..sampled.clone()
        },
        SamplingParams {
            repetition_penalty: 1.3,
            frequency_penalty: 0.2,
            presence_penalty: -0.4,
            ..sampled.clone()
        },
        SamplingParams {
            bad_words: vec![vec![300, 301], vec![302, 302, 302]],
            top_k: 2,
            ..sampled.clone()
        },
        SamplingParams {
            seed: Some(9),
            temperature: 0.05,
            top_k: 5,
            ..SamplingParams::default()
        },
        SamplingParams {
            logit_bias: vec![(400, 60.0), (401, 60.0), (402, 60.0)],
            ..greedy.clone()
        },
    ];
    (0..32)
        .map(|i| {
            let mut prompt = shared[..6 * i].to_vec();
            prompt.extend(random.tokens(1 + 3 * i));
            prompt.extend([300, 301, 302, 300, 302].repeat(i % 3));
            GenerateRequest {
                sampling: kinds[i % kinds.len()].clone(),
                // Ends in the middle of a draft, by a stop token or by the length.
                stop_token_ids: if i % 5 == 4 { vec![302, 402] } else { vec![] },
                min_tokens: if i % 5 == 4 { 30 } else { 0 },
                prompt_logprobs: (i % 7 == 6).then_some(1),
                ..request(prompt, 40 + i % 9)
            }
        })
        .collect()
}

/// All outputs of a sequence; the prefix cache apart, which depends on what ran before.
fn outputs(server: &Server, request: &GenerateRequest) -> Vec<EngineOutput> {
    let mut stream = server.submit(request.clone());
    let mut all = Vec::new();
    while let Some(mut output) = server.next(&mut stream) {
        if let EngineOutput::Token {
            num_cached_tokens, ..
        } = &mut output
        {
            *num_cached_tokens = 0;
        }
        all.push(output);
    }
    all
}

fn stats(server: &Server) -> SpeculationStats {
    server.wait_until_free().speculation.expect("drafts")
}

#[test]
fn each_request_alone_has_the_same_tokens_and_log_probabilities() {
    let model = TestModel::new();
    let (off, on) = (Server::start(&model, &OFF), Server::start(&model, &ON));
    for (i, request) in requests().iter().enumerate() {
        assert_eq!(outputs(&on, request), outputs(&off, request), "request {i}");
    }
    assert_eq!(off.wait_until_free().speculation, None);
    let stats = stats(&on);
    let of_places: u64 = stats.accepted_per_position.iter().sum();
    assert!(stats.num_accepted_tokens > 100, "{stats:?}");
    assert!(
        stats.num_accepted_tokens < stats.num_draft_tokens,
        "{stats:?}"
    );
    assert_eq!(
        (of_places, stats.accepted_per_position.len()),
        (stats.num_accepted_tokens, 5)
    );
}

/// Together they share steps and prefixes, lose their blocks and get them back.
#[test]
fn requests_together_have_the_tokens_that_they_have_alone() {
    let model = TestModel::new();
    let off = Server::start(&model, &OFF);
    let requests = requests();
    let expected: Vec<Vec<EngineOutput>> = requests.iter().map(|r| outputs(&off, r)).collect();
    let pool = blocks(60);
    let small = ["--kv-cache-memory-bytes", &pool, "--max-model-len", "512"];
    let on = Server::start(
        &model,
        &[&ON[..], &small, &["--max-num-batched-tokens", "70"]].concat(),
    );
    for _ in 0..2 {
        let found: Vec<Vec<EngineOutput>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (requests.iter())
                .map(|r| scope.spawn(|| outputs(&on, r)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        // Log-probabilities of a prompt depend on how it was cut into chunks, in their last bits.
        let ids = |outputs: &[EngineOutput]| -> Vec<u32> {
            let id = |output: &EngineOutput| match output {
                EngineOutput::Token { id, .. } => Some(*id),
                _ => None,
            };
            outputs.iter().filter_map(id).collect()
        };
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(ids(found), ids(expected), "request {i}");
            assert_eq!(found.last(), expected.last(), "request {i}");
        }
    }
    assert!(stats(&on).num_accepted_tokens > 0, "{:?}", stats(&on));
    assert!(on.engine.stats().num_preemptions > 0);
    assert!(on.engine.stats().prefix_hits > 0);
}

/// A text of a thousand tokens in no order: one that came before is followed by another one than before. After a few tries there
/// are no drafts.
#[test]
fn a_text_that_does_not_repeat_gets_few_drafts() {
    let model = TestModel::new();
    // A guess after one equal token is worth a try at first.
    let config = r#"{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 1, "prompt_lookup_min": 1}"#;
    let server = Server::start(&model, &["--speculative-config", config]);
    let num_tokens = 600;
    let request = GenerateRequest {
        sampling: SamplingParams {
            seed: Some(3),
            temperature: 1000.0,
            allowed_token_ids: Some((300..1300).collect()),
            ..SamplingParams::default()
        },
        stop_token_ids: Vec::new(),
        ..request(Random(5).tokens(40), num_tokens)
    };
    let outputs = outputs(&server, &request);
    assert_eq!(outputs.len(), num_tokens + 1);
    let stats = stats(&server);
    // About 150 tokens come again, each with up to 5 guesses.
    assert!((1..60).contains(&stats.num_draft_tokens), "{stats:?}");
}

/// The longest sequence ends where it ends without drafts, though a draft would go on.
#[test]
fn no_draft_goes_beyond_the_longest_sequence() {
    let model = TestModel::new();
    let limit = ["--max-model-len", "64"];
    let servers = [OFF, ON].map(|flags| Server::start(&model, &[&flags[..], &limit].concat()));
    let bias = SamplingParams {
        temperature: 0.0,
        logit_bias: vec![(400, 80.0)],
        ..SamplingParams::default()
    };
    for prompt in 1..8 {
        let request = GenerateRequest {
            sampling: bias.clone(),
            ..request(vec![400; prompt], 64 - prompt)
        };
        let [off, on] = servers.each_ref().map(|server| outputs(server, &request));
        assert_eq!(on, off);
        assert_eq!(on.len(), 64 - prompt + 1);
    }
    let stats = stats(&servers[1]);
    assert!(
        2 * stats.num_accepted_tokens > stats.num_draft_tokens,
        "{stats:?}"
    );
}
