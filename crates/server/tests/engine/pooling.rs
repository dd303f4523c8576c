//! Embeddings and scores: those of sentence-transformers and transformers (`xtask/golden/embedding.py`), whatever the chunks and
//! whatever runs beside them.

mod published;

use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use kv_paging::CausalAttention;
use lora_4bit::AdapterSelection;
use model_qwen::QwenModel;
use serde_json::{Value, json};
use server::burn;
use server::engine::Engine;

use crate::client::{Server, blocks, config, config_in};
use crate::model::{Random, TestModel};

/// What sums in another order differ by.
const TOLERANCE: f64 = 1e-4;
const RERANKER: &str = r#"{"architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": true}"#;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/golden")
        .join(case)
}

fn expected(case: &str) -> Value {
    let text = std::fs::read_to_string(golden(case).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    let values = value.as_array().unwrap_or_else(|| panic!("{value}"));
    values.iter().map(|value| value.as_f64().unwrap()).collect()
}

/// `key` of each object in `data`.
fn column<'a>(answer: &'a Value, data: &str, key: &str) -> Vec<&'a Value> {
    let rows = answer[data]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    for (i, row) in rows.iter().enumerate() {
        assert!(data != "data" || row["index"] == i, "{row}");
    }
    rows.iter().map(|row| &row[key]).collect()
}

#[track_caller]
fn check(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < TOLERANCE,
            "expected {expected}, found {found}"
        );
    }
}

fn embed(server: &Server, body: &Value) -> Vec<Vec<f64>> {
    let (status, answer) = server.post("/v1/embeddings", body);
    assert_eq!(status, 200, "{answer}");
    let vectors = column(&answer, "data", "embedding");
    vectors.into_iter().map(numbers).collect()
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    for case in ["embedding/last", "embedding/mean"] {
        let expected = expected(case);
        let vectors = |key: &str| -> Vec<Vec<f64>> {
            let rows = expected[key].as_array().unwrap();
            rows.iter().map(numbers).collect()
        };
        for flags in [
            &[][..],
            &["--max-num-batched-tokens", "7"],
            &["--block-size", "4", "--max-num-seqs", "2"],
        ] {
            let server = Server::start_in(&golden(case), flags);
            // The second time the beginnings are in the cache.
            for input in ["texts", "tokens", "texts"] {
                let found = embed(&server, &json!({ "input": expected[input] }));
                assert_eq!(found.len(), 5);
                for (found, expected) in found.iter().zip(&vectors("embeddings")) {
                    check(found, expected);
                }
            }
            let plain = json!({ "input": expected["texts"], "use_activation": false });
            let found = embed(&server, &plain);
            for (found, expected) in found.iter().zip(&vectors("without_activation")) {
                check(found, expected);
            }
            server.drained();
            server.wait_until_free();
        }
    }
}

#[test]
fn the_first_values_are_an_embedding_of_their_own() {
    let server = Server::start_in(&golden("embedding/last"), &[]);
    let text = &expected("embedding/last")["texts"][0];
    let whole = embed(&server, &json!({ "input": text })).remove(0);
    let short = embed(&server, &json!({ "input": text, "dimensions": 8 })).remove(0);
    let norm = whole[..8].iter().map(|x| x * x).sum::<f64>().sqrt();
    let scaled: Vec<f64> = whole[..8].iter().map(|x| x / norm).collect();
    check(&short, &scaled);
    for dimensions in [0, 33, -1] {
        let body = json!({ "input": text, "dimensions": dimensions });
        let (status, answer) = server.post("/v1/embeddings", &body);
        assert_eq!(
            (status, &answer["error"]["param"]),
            (400, &json!("dimensions"))
        );
    }
    let flag = r#"{"dimensions": 4, "pooling_type": "MEAN", "normalize": false}"#;
    let server = Server::start_in(
        &golden("embedding/last"),
        &["--override-pooler-config", flag],
    );
    assert_eq!(embed(&server, &json!({ "input": text })).remove(0).len(), 4);
}

#[test]
fn truncation_keeps_the_beginning_and_the_end_token() {
    let server = Server::start_in(&golden("embedding/last"), &["--max-model-len", "16"]);
    let expected = expected("embedding/last");
    let (long, ids) = (&expected["texts"][1], &expected["tokens"][1]);
    let (status, answer) = server.post("/v1/embeddings", &json!({ "input": long }));
    assert_eq!(status, 400);
    assert_eq!(
        answer["error"]["code"], "context_length_exceeded",
        "{answer}"
    );
    let ids = ids.as_array().unwrap();
    for (keep, side, tokens) in [
        (10, "right", [&ids[..9], &ids[ids.len() - 1..]].concat()),
        (-1, "right", [&ids[..15], &ids[ids.len() - 1..]].concat()),
        (10, "left", ids[ids.len() - 10..].to_vec()),
    ] {
        let body =
            json!({ "input": long, "truncate_prompt_tokens": keep, "truncation_side": side });
        let cut = embed(&server, &body).remove(0);
        check(&cut, &embed(&server, &json!({ "input": tokens })).remove(0));
    }
    // Of a list of ids the same end is cut, and none is special.
    let body = json!({ "input": ids, "truncate_prompt_tokens": 3 });
    let cut = embed(&server, &body).remove(0);
    check(
        &cut,
        &embed(&server, &json!({ "input": ids[..3] })).remove(0),
    );
}

#[test]
fn a_reranker_scores_as_its_card_says() {
    let expected = expected("embedding/reranker");
    let pairs = expected["pairs"].as_array().unwrap();
    let side = |i: usize| -> Vec<&Value> { pairs.iter().map(|pair| &pair[i]).collect() };
    let server = Server::start_in(
        &golden("embedding/reranker"),
        &["--hf-overrides", RERANKER, "--max-num-batched-tokens", "32"],
    );
    for (key, activation) in [("scores", true), ("logits", false)] {
        let body = json!({ "text_1": side(0), "text_2": side(1), "use_activation": activation });
        for path in ["/score", "/v1/score"] {
            let (status, answer) = server.post(path, &body);
            assert_eq!(status, 200, "{answer}");
            let found = column(&answer, "data", "score");
            let found: Vec<f64> = found.iter().map(|score| score.as_f64().unwrap()).collect();
            check(&found, &numbers(&expected[key]));
        }
    }
    let scores = numbers(&expected["scores"]);
    let best = json!({ "query": pairs[0][0], "documents": [pairs[1][1], { "text": pairs[0][1] }] });
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        let (status, answer) = server.post(path, &best);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(column(&answer, "results", "index"), [1, 0]);
        assert_eq!(answer["results"][0]["document"]["text"], pairs[0][1]);
        let found = column(&answer, "results", "relevance_score");
        let found: Vec<f64> = found.iter().map(|score| score.as_f64().unwrap()).collect();
        check(&found, &scores[..2]);
    }
    let top = json!({ "query": pairs[0][0], "documents": side(1), "top_n": 1 });
    let (_, answer) = server.post("/rerank", &top);
    assert_eq!(answer["results"].as_array().unwrap().len(), 1);
    // The instruction is a part of the prompt, and a prompt that a client has written stays as it is.
    let told = json!({ "text_1": pairs[0][0], "text_2": pairs[0][1], "instruction": "Find ducks" });
    let (_, answer) = server.post("/score", &told);
    assert!((answer["data"][0]["score"].as_f64().unwrap() - scores[0]).abs() > TOLERANCE);
    let query = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. \
                 Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, \
                 retrieve relevant passages that answer the query\n<Query>: Who lives in the harbour?\n";
    let document = "<Document>: An old fisherman lives in the harbour.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let (_, answer) = server.post(
        "/score",
        &json!({ "queries": query, "documents": document }),
    );
    check(
        &[answer["data"][0]["score"].as_f64().unwrap()],
        &scores[..1],
    );
    // A document that is cut leaves the prompt around it whole.
    let cut = json!({ "text_1": pairs[0][0], "text_2": "duck ".repeat(300), "truncate_prompt_tokens": 200 });
    let (status, answer) = server.post("/score", &cut);
    assert_eq!(
        (status, &answer["usage"]["prompt_tokens"]),
        (200, &json!(200)),
        "{answer}"
    );
    let (status, answer) = server.post("/pooling", &json!({ "input": "x", "task": "classify" }));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["data"][0]["data"].as_array().unwrap().len(), 1);
    let (status, classes) = server.post("/classify", &json!({ "input": "x" }));
    assert_eq!(status, 200, "{classes}");
    let class = &classes["data"][0];
    assert_eq!(
        (&class["label"], &class["num_classes"]),
        (&json!("LABEL_0"), &json!(1))
    );
    check(
        &numbers(&class["probs"]),
        &numbers(&answer["data"][0]["data"]),
    );
    let (status, _) = server.post("/v1/embeddings", &json!({ "input": "x" }));
    assert_eq!(status, 400);
}

#[test]
fn scores_of_an_embedding_model_are_cosines() {
    let server = Server::start_in(&golden("embedding/mean"), &[]);
    let texts = &expected("embedding/mean")["texts"];
    let vectors = embed(&server, &json!({ "input": texts }));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let body = json!({ "text_1": texts[0], "text_2": [texts[1], texts[2]] });
    let (status, answer) = server.post("/score", &body);
    assert_eq!(status, 200, "{answer}");
    let found = column(&answer, "data", "score");
    let found: Vec<f64> = found.iter().map(|score| score.as_f64().unwrap()).collect();
    check(
        &found,
        &[dot(&vectors[0], &vectors[1]), dot(&vectors[0], &vectors[2])],
    );
}

#[test]
fn a_template_of_a_reranker_has_the_servers_variables() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("template.jinja");
    let source = "{{ words }}{% for message in messages %}{{ message.content }}{% endfor %}";
    std::fs::write(&template, source).unwrap();
    let num_tokens = |words: &str| {
        let kwargs = json!({ "words": words }).to_string();
        let flags = [
            "--hf-overrides",
            RERANKER,
            "--chat-template",
            template.to_str().unwrap(),
            "--default-chat-template-kwargs",
            &kwargs,
        ];
        let server = Server::start_in(&golden("embedding/reranker"), &flags);
        let (status, answer) = server.post("/score", &json!({ "text_1": "x", "text_2": "y" }));
        assert_eq!(status, 200, "{answer}");
        // Nothing is guessed where nothing is generated.
        assert!(server.engine.stats().speculation.is_none());
        answer["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert!(num_tokens("duck duck duck") > num_tokens(""));
}

#[test]
fn a_model_is_for_text_or_for_vectors() {
    let server = Server::start_in(&golden("embedding/last"), &[]);
    let (status, answer) = server.post("/v1/completions", &json!({ "prompt": "x" }));
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(message.contains("its folder has modules.json"), "{message}");
    let model = TestModel::new();
    let server = Server::start(&model, &[]);
    for (path, body) in [
        ("/v1/embeddings", json!({ "input": "x" })),
        ("/pooling", json!({ "input": "x" })),
        ("/classify", json!({ "input": "x" })),
        ("/score", json!({ "text_1": "x", "text_2": "y" })),
        ("/rerank", json!({ "query": "x", "documents": ["y"] })),
    ] {
        let (status, answer) = server.post(path, &body);
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(status, 400, "{path}");
        assert!(message.contains("--runner pooling"), "{path}: {message}");
    }
    let refusal = |flags: &[&str]| match Engine::start(&config_in(&golden("embedding/last"), flags))
    {
        Ok(_) => panic!("{flags:?} starts"),
        Err(error) => error.to_string(),
    };
    let error = refusal(&["--runner", "generate"]);
    assert!(error.contains("lm_head"), "{error}");
    let error = refusal(&["--convert", "classify"]);
    assert!(error.contains("classifier_from_token"), "{error}");
    let error = refusal(&["--pooler-config", r#"{"dimensions": 33}"#]);
    assert!(error.contains("at most 32, found 33"), "{error}");
    let error = refusal(&["--pooler-config", r#"{"task": "classify"}"#]);
    assert!(error.contains("expected embed"), "{error}");
    for (pooler, expected) in [
        (
            r#"{"pooling_type": "MEAN"}"#,
            "`pooling_type`: expected LAST",
        ),
        (
            r#"{"dimensions": 8}"#,
            "`dimensions`: this is of embeddings",
        ),
    ] {
        let flags = ["--hf-overrides", RERANKER, "--pooler-config", pooler];
        let config = config_in(&golden("embedding/reranker"), &flags);
        let error = Engine::start(&config).map(drop).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (overrides, expected) in [
        (
            r#"{"method": "from_2_way_softmax"}"#,
            "with 2 of the tokens, found 0",
        ),
        (
            r#"{"method": "no_post_processing", "classifier_from_token": ["no", "yes"]}"#,
            "with 1 of the tokens, found 2",
        ),
    ] {
        let error = refusal(&["--hf-overrides", overrides]);
        assert!(error.contains(expected), "{error}");
    }
    let error = match Engine::start(&config(
        &model,
        &["--runner", "pooling", "--convert", "none"],
    )) {
        Ok(_) => panic!("it starts"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("--convert"), "{error}");
}

/// The last hidden state of a text, of length 1.
fn last_hidden(model: &QwenModel, tokens: &[u32], adapter: Option<usize>) -> Vec<f64> {
    let positions: Vec<u32> = (0..tokens.len() as u32).collect();
    let selection = AdapterSelection::per_row(&vec![adapter; tokens.len()], &model.device());
    let mut causal = CausalAttention::new(&[tokens.len()]);
    let hidden: Tensor<2> = model.forward(tokens, &positions, &selection, &mut causal);
    let last = hidden.narrow(0, tokens.len() - 1, 1).into_data();
    let last: Vec<f64> = last.iter::<f64>().collect();
    let norm = last.iter().map(|x| x * x).sum::<f64>().sqrt();
    last.iter().map(|x| x / norm).collect()
}

#[test]
fn adapters_and_preemptions_change_nothing_else() {
    let model = TestModel::new();
    let adapter = model.adapter(0);
    // Not all texts have room at once.
    let pool = blocks(12);
    let flags = [
        "--runner",
        "pooling",
        "--enable-lora",
        "--kv-cache-memory-bytes",
        &pool,
        "--max-num-batched-tokens",
        "50",
    ];
    let server = Server::start(&model, &flags);
    server.load_adapter("tuned", &adapter);
    let mut random = Random(5);
    let texts: Vec<Vec<u32>> = (0..12).map(|i| random.tokens(10 + 11 * i)).collect();
    for (name, slot, plain) in [
        ("base", None, model.load()),
        ("tuned", Some(0), model.load_with(&adapter)),
    ] {
        let found = embed(&server, &json!({ "input": texts, "model": name }));
        for (found, text) in found.iter().zip(&texts) {
            check(found, &last_hidden(&plain, text, slot));
        }
    }
    // A text of the whole context.
    let longest = random.tokens(192);
    let found = embed(&server, &json!({ "input": longest })).remove(0);
    check(&found, &last_hidden(&model.load(), &longest, None));
    server.wait_until_free();
}
