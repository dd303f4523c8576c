//! Log-probabilities of prompts and outputs against a forward pass without cache and engine.

use serde_json::{Value, json};
use server::engine::{EngineOutput, TokenLogprobs};

use crate::client::{Server, blocks, request, token_ids};
use crate::model::{Random, TestModel, log_softmax};

const TOLERANCE: f64 = 1e-4;

/// Checks an echoed answer's lists against `expected[i]`, the log-probabilities of all tokens after token `i`.
fn assert_echoes(logprobs: &Value, expected: &[Vec<f64>], num_top: usize) {
    let tokens = token_ids(&logprobs["tokens"]);
    assert_eq!(tokens.len(), expected.len() + 1);
    let chosen = logprobs["token_logprobs"].as_array().unwrap();
    let tops = logprobs["top_logprobs"].as_array().unwrap();
    assert_eq!((&chosen[0], &tops[0]), (&Value::Null, &Value::Null));
    for (i, row) in expected.iter().enumerate() {
        let position = i + 1;
        let (found, token) = (chosen[position].as_f64().unwrap(), tokens[position]);
        let wanted = row[token as usize];
        assert!(
            (found - wanted).abs() < TOLERANCE,
            "{position}: {found} instead of {wanted}"
        );
        let top = tops[position].as_object().unwrap();
        let mut sorted = row.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let chosen_is_extra = usize::from(wanted < sorted[num_top - 1]);
        assert_eq!(top.len(), num_top + chosen_is_extra, "{position}: {top:?}");
        for (token, found) in top {
            let id = token_ids(&json!([token]))[0];
            let (found, wanted) = (found.as_f64().unwrap(), row[id as usize]);
            assert!((found - wanted).abs() < TOLERANCE, "{position}: {token}");
            assert!(id == tokens[position] || wanted > sorted[num_top] - TOLERANCE);
        }
    }
}

#[test]
fn echoed_prompts_have_the_models_logprobs() {
    let model = TestModel::new();
    let path = model.adapter(2);
    let adapted = model.load_with(&path);
    let prompt = Random(40).tokens(150);
    for flags in [&[][..], &["--max-num-batched-tokens", "7"]] {
        let server = Server::start(&model, &[&["--enable-lora"], flags].concat());
        server.load_adapter("adapter", &path);
        for (name, slot) in [("base", None), ("adapter", Some(0))] {
            let extra = json!({ "model": name, "echo": true, "logprobs": 3, "max_tokens": 5 });
            // The second time the prompt is in the prefix cache, which must not hide its logits.
            for _ in 0..2 {
                let answer = server.response(&prompt, extra.clone());
                let logprobs = &answer["choices"][0]["logprobs"];
                let tokens = token_ids(&logprobs["tokens"]);
                assert_eq!(tokens[..150], prompt);
                let expected = log_softmax(&adapted, &tokens[..tokens.len() - 1], slot);
                assert_echoes(logprobs, &expected, 3);
            }
        }
        let extra = json!({ "echo": true, "logprobs": 1, "max_tokens": 0 });
        let answer = server.response(&prompt, extra);
        let expected = log_softmax(&adapted, &prompt[..149], None);
        assert_echoes(&answer["choices"][0]["logprobs"], &expected, 1);
        let text = answer["choices"][0]["text"].as_str().unwrap();
        let tokens = json!({ "tokens": prompt });
        let (_, detokenized) = server.post("/detokenize", &tokens);
        assert_eq!(detokenized["prompt"], text);
    }
}

#[test]
fn a_prompt_that_is_preempted_half_way_has_the_models_logprobs() {
    let model = TestModel::new();
    let pool = blocks(11);
    let server = Server::start(
        &model,
        &[
            "--kv-cache-memory-bytes",
            &pool,
            "--max-num-batched-tokens",
            "5",
            "--max-model-len",
            "160",
        ],
    );
    // Three sequences that grow, one token each per step, and push out what came after them.
    let mut growing: Vec<_> = (0..3)
        .map(|seed| {
            let mut request = request(Random(50 + seed).tokens(8), 100);
            request.stop_token_ids.clear();
            server.submit(request)
        })
        .collect();
    for stream in &mut growing {
        assert!(server.next(stream).is_some());
    }
    let prompt = Random(60).tokens(100);
    let mut scored = request(prompt.clone(), 3);
    scored.prompt_logprobs = Some(2);
    let mut outputs = server.submit(scored);

    let first = server.next(&mut outputs);
    // Whoever came last is preempted first, so it was this one before its prompt was complete.
    assert!(server.engine.stats().num_preemptions > 0);
    let Some(EngineOutput::PromptLogprobs(scores)) = first else {
        panic!("{first:?}")
    };
    assert_eq!((scores.len(), &scores[0]), (100, &None));
    let expected = log_softmax(&model.load(), &prompt[..99], None);
    for (i, (score, row)) in scores[1..].iter().zip(&expected).enumerate() {
        let Some(TokenLogprobs { id, logprob, top }) = score else {
            panic!("no log-probability at {i}")
        };
        assert_eq!(*id, prompt[i + 1]);
        for &(id, logprob) in top.iter().chain([&(*id, *logprob)]) {
            let difference = (f64::from(logprob) - row[id as usize]).abs();
            assert!(difference < TOLERANCE, "position {}: {difference}", i + 1);
        }
    }
    let output = server.next(&mut outputs);
    assert!(
        matches!(output, Some(EngineOutput::Token { .. })),
        "scores come once: {output:?}"
    );
}
