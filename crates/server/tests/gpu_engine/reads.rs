//! What the device draws itself, and which logits the host reads.

use std::sync::atomic::{AtomicUsize, Ordering};

use model_qwen::{ConstraintFactory, Grammar, SamplingParams, ThinkingBudget, Tokenizer};
use server::engine::GenerateRequest;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use super::*;

/// How many rows of logits were read to the host, by any engine.
static READS: AtomicUsize = AtomicUsize::new(0);

struct CountReads;

impl Visit for CountReads {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "rows" {
            READS.fetch_add(value as usize, Ordering::Relaxed);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Layer<Registry> for CountReads {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        _: &tracing::Id,
        _: Context<'_, Registry>,
    ) {
        if attributes.metadata().name() == "read_logits" {
            attributes.record(&mut Self);
        }
    }
}

/// Requests with a grammar, most of them, the others as [`request`] has them.
fn constrained_requests(grammars: &[Option<Grammar>], max_tokens: usize) -> Vec<GenerateRequest> {
    let dir = model_qwen::bundled_model_dir().expect("the bundled model");
    let tokenizer = Tokenizer::from_dir(&dir).expect("its tokenizer");
    let ends = model_qwen::end_tokens(&dir, &tokenizer, None).expect("its tokens");
    let factory = ConstraintFactory::new(&tokenizer, tokenizer.vocab_size(), &ends);
    let factory = factory.expect("a factory");
    let requests = (0..).zip(grammars).map(|(i, grammar)| {
        let compile = |grammar| factory.compile(grammar, None).expect("a grammar");
        GenerateRequest {
            constraint: grammar.as_ref().map(compile),
            max_tokens,
            stop_token_ids: ends.clone(),
            ..request(i)
        }
    });
    requests.collect()
}

fn regex(regex: &str) -> Option<Grammar> {
    Some(Grammar::Regex(regex.to_owned()))
}

/// Sequences with a grammar have the tokens that the CPU gives them, greedy and drawn, and the device draws them itself: no logits
/// are read, neither of them nor of the sequences beside them.
#[tokio::test]
async fn constrained_tokens_are_those_of_the_cpu_without_their_logits() {
    let _turn = DEVICE.lock().await;
    let _ = tracing_subscriber::registry().with(CountReads).try_init();
    let (cpu, gpu) = (start("cpu", &[]), start(gpu(), &[]));
    let eager = start(self::gpu(), &["--enforce-eager"]);
    let integers = serde_json::json!({ "type": "array", "items": { "type": "integer" } });
    let mut requests = constrained_requests(
        &[
            regex("[0-9]{40}"),
            Some(Grammar::JsonSchema(integers)),
            None,
            regex("[a-z]{2,6}( [a-z]{2,6}){1,9}"),
            regex("(yes|no)!{3}"),
            None,
            regex("[0-9a-f]{8}(-[0-9a-f]{4}){3}"),
            regex("[A-Za-z ,.]{5,60}"),
        ],
        24,
    );
    for (i, request) in requests.iter_mut().enumerate() {
        request.sampling = SamplingParams {
            temperature: [0.0, 1.0, 0.0, 0.7][i % 4],
            seed: Some(i as u64),
            // More than the grammar ever lets through.
            top_k: if i == 1 { 500 } else { 0 },
            top_p: if i == 1 { 0.8 } else { 1.0 },
            repetition_penalty: if i % 4 < 2 { 1.2 } else { 1.0 },
            ..SamplingParams::default()
        };
    }
    let expected = tokens(&cpu, requests.clone()).await;
    assert!(expected[0].len() >= 10 && expected[4].len() >= 3);
    let free = tokens(&cpu, (0..3).map(request).collect()).await;
    assert_ne!(
        free[0][..3],
        expected[0][..3],
        "the grammar changes the text"
    );

    READS.store(0, Ordering::Relaxed);
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    assert_eq!(tokens(&eager, requests.clone()).await, expected, "eager");
    for (request, expected) in requests.iter().zip(&expected).take(2) {
        let alone = tokens(&gpu, vec![request.clone()]).await;
        assert_eq!(&alone[0], expected, "alone");
    }
    assert_eq!(READS.load(Ordering::Relaxed), 0, "reads of logits");
    assert!(steps_ahead(&gpu) > 0);
    assert_eq!(steps_ahead(&eager), 0);
    // What is counted are such reads.
    requests[0].sampling.logprobs = Some(1);
    assert_eq!(tokens(&gpu, requests[..1].to_vec()).await, expected[..1]);
    assert_eq!(READS.load(Ordering::Relaxed), expected[0].len());
}

/// The device applies penalties, biases and bad words itself and draws from what they leave, also after a token that only it knows.
#[tokio::test]
async fn penalties_on_the_device_give_the_tokens_of_the_cpu_without_their_logits() {
    let _turn = DEVICE.lock().await;
    let _ = tracing_subscriber::registry().with(CountReads).try_init();
    let (cpu, gpu) = (start("cpu", &[]), start(gpu(), &[]));
    let eager = start(self::gpu(), &["--enforce-eager"]);
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    // What Qwen2.5 asks for by default.
    let sampled = SamplingParams {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        ..SamplingParams::default()
    };
    let hot = SamplingParams::default();
    let mut requests = [chats(), chats()].concat();
    requests.truncate(8);
    for (i, request) in requests.iter_mut().enumerate() {
        request.max_tokens = 40;
        let free = match i {
            0 | 1 | 5 => greedy.clone(),
            2 | 3 | 6 => sampled.clone(),
            _ => hot.clone(),
        };
        request.sampling = SamplingParams {
            seed: Some(i as u64),
            ..free
        };
    }
    let free = tokens(&cpu, requests.clone()).await;
    let mut change = |i: usize, change: fn(&mut SamplingParams, &[u32])| {
        change(&mut requests[i].sampling, &free[i]);
    };
    change(0, |params, _| params.repetition_penalty = 1.1);
    change(2, |params, _| params.repetition_penalty = 1.05);
    change(4, |params, _| {
        (params.presence_penalty, params.frequency_penalty) = (0.9, 0.4);
    });
    change(5, |params, free| {
        params.bad_words = vec![vec![free[0]], free[2..4].to_vec(), free[7..9].to_vec()];
        params.repetition_penalty = 1.02;
    });
    change(6, |params, free| {
        params.logit_bias = vec![(free[3], -4.0), (free[5], 1.5)];
        params.frequency_penalty = -0.2;
    });
    // A stop token that comes early, and may not.
    requests[7].stop_token_ids = vec![free[7][4]];
    requests[7].min_tokens = 20;
    let expected = tokens(&cpu, requests.clone()).await;
    for i in [0, 2, 4, 5, 6, 7] {
        assert_ne!(expected[i], free[i], "request {i} has another text");
    }
    assert!(expected[7].len() >= 20);

    READS.store(0, Ordering::Relaxed);
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    assert!(steps_ahead(&gpu) > 30, "{} steps ahead", steps_ahead(&gpu));
    assert_eq!(tokens(&eager, requests.clone()).await, expected, "eager");
    for (request, expected) in requests.iter().zip(&expected) {
        let ahead = steps_ahead(&gpu);
        assert_begins(&gpu, request, expected, 24).await;
        assert!(steps_ahead(&gpu) > ahead, "alone");
    }
    assert_eq!(READS.load(Ordering::Relaxed), 0, "reads of logits");
}

/// Two devices round log-probabilities in their own ways.
#[track_caller]
fn assert_scored((id, found): &ScoredToken, (expected_id, expected): &ScoredToken) {
    assert_eq!(id, expected_id);
    assert_eq!(found.is_some(), expected.is_some());
    let (Some(found), Some(expected)) = (found, expected) else {
        return;
    };
    let pairs = |scores: &TokenLogprobs| {
        let chosen = std::iter::once((scores.id, scores.logprob));
        chosen
            .chain(scores.top.iter().copied())
            .collect::<Vec<(u32, f32)>>()
    };
    let (found, expected) = (pairs(found), pairs(expected));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.0, expected.0);
        assert!(
            (found.1 - expected.1).abs() < 1e-3,
            "{found:?}, {expected:?}"
        );
    }
}

/// A sequence whose logits the host has to read leaves the others to the device.
#[tokio::test]
async fn the_host_reads_only_the_logits_that_it_needs() {
    let _turn = DEVICE.lock().await;
    let _ = tracing_subscriber::registry().with(CountReads).try_init();
    let (cpu, gpu) = (start("cpu", &[]), start(gpu(), &[]));
    let eager = start(self::gpu(), &["--enforce-eager"]);
    let mut requests = chats();
    for (i, request) in requests.iter_mut().enumerate() {
        request.sampling = SamplingParams {
            temperature: [0.0, 0.9][i % 2],
            seed: Some(i as u64),
            repetition_penalty: if i > 2 { 1.1 } else { 1.0 },
            logprobs: [None, Some(2), None, None, Some(0)][i],
            ..SamplingParams::default()
        };
    }
    requests[2].prompt_logprobs = Some(1);
    let expected = scored_tokens(&cpu, requests.clone()).await;
    // Each of them is a row of its own.
    let num_reads = expected[1].len() + expected[4].len() + requests[2].prompt.len() - 1;
    for engine in [&gpu, &eager] {
        READS.store(0, Ordering::Relaxed);
        let found = scored_tokens(engine, requests.clone()).await;
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.len(), expected.len());
            let pairs = found.iter().zip(expected);
            pairs.for_each(|(found, expected)| assert_scored(found, expected));
        }
        assert_eq!(READS.load(Ordering::Relaxed), num_reads, "rows of logits");
    }
    assert!(steps_ahead(&gpu) > 0);
}

/// What the host has to choose, or what begins to be constrained within a text, beside sequences that the device draws.
#[tokio::test]
async fn constrained_tokens_with_other_parameters_are_those_of_the_cpu() {
    let _turn = DEVICE.lock().await;
    let (cpu, gpu) = (start("cpu", &[]), start(gpu(), &[]));
    let word = || regex("[a-z]{2,6}( [a-z]{2,6}){1,9}");
    let grammars = [word(), word(), word(), None, word(), None, word(), word()];
    let mut requests = constrained_requests(&grammars, 24);
    let free = tokens(&cpu, (0..8).map(request).collect()).await;
    for (i, request) in requests.iter_mut().enumerate() {
        request.sampling = SamplingParams {
            temperature: if i % 2 == 0 { 0.0 } else { 0.8 },
            seed: Some(i as u64),
            top_k: if i == 1 { 20 } else { 0 },
            repetition_penalty: if i < 2 { 1.2 } else { 1.0 },
            logprobs: (i == 2).then_some(2),
            ..SamplingParams::default()
        };
        // A budget of reasoning that is spent, or nearly: then one token may come, and then those of the grammar.
        if i >= 4 {
            request.stop_token_ids.clear();
        }
        if i >= 5 {
            request.sampling.thinking_budget = Some(ThinkingBudget {
                num_tokens: i - 3,
                begin: None,
                end: 300,
            });
        }
        let constraint = request.constraint.take();
        request.constraint = match i {
            // After a token of the free text, behind which that would end, or after the reasoning.
            4 => constraint.map(|constraint| constraint.after(Some(free[4][1]))),
            5.. => constraint.map(|constraint| constraint.after(Some(300))),
            _ => constraint,
        };
    }
    requests[0].min_tokens = 20;
    let expected = tokens(&cpu, requests.clone()).await;
    assert_eq!(expected[4][..2], free[4][..2]);
    assert_ne!(expected[4], free[4]);
    for (i, tokens) in expected.iter().enumerate().skip(5) {
        assert_eq!(tokens.iter().position(|id| *id == 300), Some(i - 3));
    }
    assert_eq!(tokens(&gpu, requests.clone()).await, expected);
    assert!(steps_ahead(&gpu) > 0);
    for (request, expected) in requests.into_iter().zip(expected).skip(4).step_by(3) {
        let ahead = steps_ahead(&gpu);
        assert_eq!(tokens(&gpu, vec![request]).await, [expected], "alone");
        assert!(steps_ahead(&gpu) > ahead, "alone");
    }
}
