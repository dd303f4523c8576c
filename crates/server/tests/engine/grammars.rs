//! Structured output with the real engine.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::client::Server;
use crate::generated_schemas::Generator;
use crate::json_schema;
use crate::model::{Random, TestModel};

fn constrained(server: &Server, prompt: &[u32], extra: Value) -> Value {
    let base =
        json!({ "prompt": prompt, "max_tokens": 150, "temperature": 1, "top_k": 0, "top_p": 1 });
    let (status, answer) = server.post("/v1/completions", &merged(base, extra));
    assert_eq!(status, 200, "{answer}");
    answer
}

fn merged(mut base: Value, extra: Value) -> Value {
    let extra = extra.as_object().unwrap().clone();
    base.as_object_mut().unwrap().extend(extra);
    base
}

/// A schema with few texts, all of them short.
fn short() -> Value {
    json!({ "type": "object", "properties": {
        "kind": { "enum": ["cat", "dog", null] }, "sizes": { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 500 }, "minItems": 1, "maxItems": 3 },
        "code": { "type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$" }, "ok": { "type": "boolean" } },
        "required": ["kind", "sizes", "code"], "additionalProperties": false })
}

/// However tokens are chosen, they are those of the grammar.
#[test]
fn every_way_to_sample_keeps_to_the_schema() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let prompt = Random(1).tokens(20);
    let outputs = json!({ "json": short(), "disable_any_whitespace": true });
    for way in [
        json!({ "temperature": 0 }),
        json!({}),
        json!({ "top_k": 5 }),
        json!({ "top_p": 0.7, "temperature": 1.5 }),
        json!({ "min_p": 0.05 }),
        json!({ "logprobs": 3 }),
        json!({ "repetition_penalty": 1.3, "presence_penalty": 1 }),
        json!({ "top_k": 3, "repetition_penalty": 1.2 }),
        json!({ "logit_bias": { "5": 100, "60": -100 } }),
        json!({ "min_tokens": 120 }),
        json!({ "ignore_eos": true }),
        json!({ "allowed_token_ids": [300, 301] }),
        json!({ "bad_words": ["cat", "dog", "{"] }),
    ] {
        for seed in 0..3 {
            let fields = merged(
                way.clone(),
                json!({ "seed": seed, "structured_outputs": outputs }),
            );
            let answer = constrained(&server, &prompt, fields);
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "stop", "{way}: {choice}");
            let text = choice["text"].as_str().unwrap();
            let value: Value =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{way}: {error}: {text}"));
            json_schema::check(&short(), &value)
                .unwrap_or_else(|error| panic!("{way}: {error}: {text}"));
        }
    }
}

/// Rows with a constraint in a batch change nothing for the other ones.
#[test]
fn free_texts_beside_constrained_ones_are_what_they_are_alone() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let ways = [
        json!({ "temperature": 0, "max_tokens": 60 }),
        json!({ "temperature": 1, "seed": 3, "max_tokens": 60 }),
        json!({ "temperature": 1, "seed": 4, "top_k": 7, "max_tokens": 60, "logprobs": 2 }),
    ];
    let prompts = [
        Random(5).tokens(40),
        Random(6).tokens(7),
        Random(7).tokens(21),
    ];
    let free = |way: usize| server.choices(&prompts[way], ways[way].clone());
    let alone: Vec<_> = (0..3).map(free).collect();
    let outputs = json!({ "json": short() });
    std::thread::scope(|scope| {
        for seed in 0..6 {
            let (server, outputs) = (&server, &outputs);
            scope.spawn(move || {
                let fields =
                    json!({ "seed": seed, "structured_outputs": outputs, "temperature": seed % 2 });
                constrained(server, &Random(seed).tokens(30), fields);
            });
        }
        let beside: Vec<_> = (0..3).map(|way| scope.spawn(move || free(way))).collect();
        for (beside, alone) in beside.into_iter().zip(&alone) {
            assert_eq!(&beside.join().unwrap(), alone);
        }
    });
}

#[test]
fn choices_of_one_request_differ_and_all_keep_to_it() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let prompt = Random(2).tokens(20);
    let fields = json!({ "n": 8, "seed": 1, "guided_regex": "[a-z]{3,8}( [a-z]{3,8}){2}" });
    let ask = || constrained(&server, &prompt, fields.clone());
    let answer = ask();
    let texts: Vec<&str> = (0..8)
        .map(|i| answer["choices"][i]["text"].as_str().unwrap())
        .collect();
    for text in &texts {
        let words: Vec<&str> = text.split(' ').collect();
        assert!(
            words.len() == 3 && words.iter().all(|word| (3..=8).contains(&word.len())),
            "{text:?}"
        );
    }
    assert!(texts.iter().any(|text| *text != texts[0]), "{texts:?}");
    assert_eq!(ask()["choices"], answer["choices"], "equal seeds");
}

/// The log-probabilities are those of the model, whatever the grammar leaves.
#[test]
fn logprobs_are_of_the_raw_logits() {
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    let prompt = Random(3).tokens(20);
    let free = constrained(
        &server,
        &prompt,
        json!({ "temperature": 0, "max_tokens": 1, "logprobs": 5 }),
    );
    let fields =
        json!({ "temperature": 0, "max_tokens": 1, "logprobs": 5, "guided_choice": ["yes", "no"] });
    let answer = constrained(&server, &prompt, fields);
    let logprobs = |answer: &Value| answer["choices"][0]["logprobs"].clone();
    let (free, answer) = (logprobs(&free), logprobs(&answer));
    let top = |logprobs: &Value| logprobs["top_logprobs"][0].as_object().unwrap().clone();
    let chosen = answer["tokens"][0].as_str().unwrap();
    for (token, logprob) in top(&free) {
        let difference = top(&answer)[&token].as_f64().unwrap() - logprob.as_f64().unwrap();
        assert!(difference.abs() < 1e-4, "{token}: {difference}");
    }
    assert!(
        answer["token_logprobs"][0].as_f64().unwrap()
            <= free["token_logprobs"][0].as_f64().unwrap() + 1e-4
    );
    assert!(
        "yes".starts_with(chosen) || "no".starts_with(chosen),
        "{chosen}"
    );
}

/// Schemas over all features: each one gives JSON that it accepts, or is refused, or runs into `max_tokens`.
///
/// `SCHEMAS=1000` tries as many.
#[test]
fn generated_schemas_are_kept_to_or_refused_by_name() {
    let num: u64 = std::env::var("SCHEMAS").map_or(40, |num| num.parse().unwrap());
    let model = match std::env::var_os("SCHEMAS") {
        Some(_) => None,
        None => Some(TestModel::new()),
    };
    let server = match &model {
        Some(model) => Server::start(model, &[]),
        None => Server::start_bundled(&[]),
    };
    let next = AtomicU64::new(0);
    let tally = || {
        let mut tally = [0; 3];
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= num {
                return tally;
            }
            tally[try_schema(&server, seed)] += 1;
        }
    };
    let tallies: Vec<[u64; 3]> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(tally)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect()
    });
    let sum = |place: usize| tallies.iter().map(|tally| tally[place]).sum::<u64>();
    let (stopped, cut, refused) = (sum(0), sum(1), sum(2));
    eprintln!("{num} schemas: {stopped} kept to, {cut} cut at max_tokens, {refused} refused");
    // A small model goes on writing white space where it may.
    assert!(stopped > num / 20);
    // One in ten has a keyword that the server refuses.
    assert!(refused <= num / 6, "{refused} of {num} schemas are refused");
}

/// 0 for an answer that fits the schema of `seed`, 1 for one that `max_tokens` cut, 2 for a refusal.
fn try_schema(server: &Server, seed: u64) -> usize {
    let schema = Generator::new(seed).schema();
    let prompt = Random(seed).tokens(10);
    // Without white space more answers come to their end.
    let asked = match seed % 2 {
        0 => {
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "generated", "schema": schema } } })
        }
        _ => json!({ "structured_outputs": { "json": schema, "disable_any_whitespace": true } }),
    };
    let fields = json!({ "prompt": prompt, "max_tokens": 200, "temperature": 1, "top_k": 0, "top_p": 1, "seed": seed });
    let fields = merged(fields, asked);
    let (status, answer) = server.post("/v1/completions", &fields);
    if status == 400 {
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("` cannot be used: "), "{message}");
        eprintln!("{seed} refused: {message}");
        return 2;
    }
    assert_eq!(status, 200, "{seed}: {answer}");
    let choice = &answer["choices"][0];
    if choice["finish_reason"] == "length" {
        return 1;
    }
    let text = choice["text"].as_str().unwrap();
    match serde_json::from_str::<Value>(text) {
        Ok(value) => json_schema::check(&schema, &value)
            .unwrap_or_else(|error| panic!("{seed}: {error}: {text}\n{schema}")),
        // JSON's numbers have no bounds, unless the schema has some; Rust's have.
        Err(error) if error.to_string().starts_with("number out of range") => {}
        Err(error) => panic!("{seed}: {error}: {text}"),
    }
    0
}
