//! `/api/embed` and `/api/embeddings`. A vector is `[number of tokens, first token, last token, 1]`.

use super::*;

fn scaled(values: [f64; 4]) -> Vec<f64> {
    let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    values.iter().map(|x| x / norm).collect()
}

#[track_caller]
fn check(found: &Value, expected: &[f64]) {
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found.as_f64().unwrap() - expected).abs() < 1e-6);
    }
}

fn embed(server: &TestServer, extra: Value) -> Value {
    let body = support::merged(json!({ "model": "base" }), extra);
    let answer = server.post("/api/embed", &body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.text);
    answer.json()
}

#[test]
fn vectors_have_ollamas_form_and_length_1() {
    let server = TestServer::start_pooling(&[], None);
    let answer = embed(
        &server,
        json!({ "model": "alias:latest", "input": ["hi", "x"], "keep_alive": "5m" }),
    );
    assert_eq!(answer["model"], "alias:latest");
    assert_eq!(answer["prompt_eval_count"], 3);
    assert_eq!(answer["load_duration"], 0);
    assert!(answer["total_duration"].as_u64().unwrap() > 0);
    check(&answer["embeddings"][0], &scaled([2.0, 104.0, 105.0, 1.0]));
    check(&answer["embeddings"][1], &scaled([1.0, 120.0, 120.0, 1.0]));
    assert_eq!(answer["embeddings"].as_array().unwrap().len(), 2);
    let one = embed(&server, json!({ "input": "hi" }));
    assert_eq!(one["embeddings"], json!([answer["embeddings"][0]]));
    let short = embed(&server, json!({ "input": "hi", "dimensions": 2 }));
    let norm = (4.0f64 + 104.0 * 104.0).sqrt();
    check(&short["embeddings"][0], &[2.0 / norm, 104.0 / norm]);
    let whole = embed(&server, json!({ "input": "hi", "dimensions": 0 }));
    assert_eq!(whole["embeddings"], one["embeddings"]);
    for none in [json!({}), json!({ "input": "" }), json!({ "input": [] })] {
        let answer = embed(&server, none);
        assert_eq!(answer["embeddings"], json!([]));
        assert_eq!(answer["prompt_eval_count"], 0);
    }
}

#[test]
fn long_texts_are_cut_unless_they_may_not_be() {
    let server = TestServer::start_pooling(&[], None);
    let long = "a".repeat(250) + "b";
    for (extra, num) in [
        (json!({}), 200),
        (json!({ "truncate": true }), 200),
        (
            json!({ "options": { "num_ctx": 3, "temperature": 0.5 } }),
            3,
        ),
        (json!({ "options": { "num_ctx": "3" } }), 3),
    ] {
        let answer = embed(&server, support::merged(json!({ "input": long }), extra));
        assert_eq!(answer["prompt_eval_count"], num);
        check(
            &answer["embeddings"][0],
            &scaled([f64::from(num), 97.0, 97.0, 1.0]),
        );
    }
    for (path, body, part) in [
        (
            "/api/embed",
            json!({ "input": long, "truncate": false }),
            "maximum context length",
        ),
        (
            "/api/embed",
            json!({ "input": ["x", "abcd"], "truncate": false, "options": { "num_ctx": 3 } }),
            "`input[1]`: expected at most 3",
        ),
        (
            "/api/embed",
            json!({ "input": "x", "options": { "num_ctx": 4096 } }),
            "`options.num_ctx`",
        ),
        (
            "/api/embed",
            json!({ "input": "x", "options": { "mirostat": 1 } }),
            "`options.mirostat`",
        ),
        (
            "/api/embed",
            json!({ "input": "x", "options": 5 }),
            "`options`",
        ),
        (
            "/api/embed",
            json!({ "input": "x", "dimensions": 5 }),
            "`dimensions`",
        ),
        (
            "/api/embed",
            json!({ "input": "x", "dimensions": -1 }),
            "`dimensions`",
        ),
        ("/api/embed", json!({ "input": 5 }), "`input`"),
        ("/api/embed", json!({ "input": ["x", 5] }), "`input[1]`"),
        ("/api/embed", json!({ "input": ["x", ""] }), "`input[1]`"),
        (
            "/api/embed",
            json!({ "input": "x", "truncate": "maybe" }),
            "`truncate`",
        ),
        (
            "/api/embeddings",
            json!({ "prompt": long }),
            "maximum context length",
        ),
        ("/api/embeddings", json!({ "prompt": 5 }), "`prompt`"),
    ] {
        let body = support::merged(json!({ "model": "base" }), body);
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        let error = answer.json();
        let message = error["error"].as_str().unwrap();
        assert!(
            message.contains(part) && !message.contains("truncate_prompt_tokens"),
            "{message}"
        );
    }
    let unknown = server.post("/api/embed", &json!({ "model": "llama3", "input": "x" }));
    assert_eq!(unknown.status, 404);
    let unnamed = server.post("/api/embed", &json!({ "input": "x" }));
    assert_eq!(unnamed.status, 400);
}

#[test]
fn the_older_endpoint_gives_vectors_as_they_are() {
    let server = TestServer::start_pooling(&[], None);
    let post = |prompt: &str| {
        let body = json!({ "model": "base", "prompt": prompt });
        server.post("/api/embeddings", &body).json()
    };
    assert_eq!(post("hi"), json!({ "embedding": [2.0, 104.0, 105.0, 1.0] }));
    assert_eq!(post(""), json!({ "embedding": [] }));
}

#[test]
fn a_pooling_server_says_what_it_is_for() {
    for (score, capabilities) in [(None, json!(["embedding"])), (Some([1.0; 4]), json!([]))] {
        let server = TestServer::start_pooling(&[], score.as_ref().map(|score| score.as_slice()));
        let shown = server.post("/api/show", &json!({ "model": "base" })).json();
        assert_eq!(shown["capabilities"], capabilities);
    }
    let server = TestServer::start_pooling(&[], Some(&[1.0; 4]));
    for path in ["/api/embed", "/api/embeddings"] {
        let body = json!({ "model": "base", "input": "x", "prompt": "x" });
        let refused = server.post(path, &body);
        assert_eq!(refused.status, 400);
        let error = refused.json();
        assert!(error["error"].as_str().unwrap().contains("/classify"));
    }
}
