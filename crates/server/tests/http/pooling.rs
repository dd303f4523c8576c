//! Embeddings and scores as clients ask for them. A vector is `[number of tokens, first token, last token, 1]`.

use model_qwen::pooling::ProblemType;

use super::*;

fn embed(server: &TestServer, body: Value) -> Value {
    let answer = server.post("/v1/embeddings", &body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.text);
    answer.json()
}

fn plain(server: &TestServer, input: Value) -> Value {
    let answer = embed(server, json!({ "input": input, "use_activation": false }));
    let vectors = answer["data"].as_array().unwrap().iter();
    vectors.map(|data| data["embedding"].clone()).collect()
}

#[test]
fn inputs_have_four_forms() {
    let server = TestServer::start_pooling(&[], None);
    let one = json!([[2.0, 104.0, 105.0, 1.0]]);
    let two = json!([[2.0, 104.0, 105.0, 1.0], [1.0, 120.0, 120.0, 1.0]]);
    assert_eq!(plain(&server, json!("hi")), one);
    assert_eq!(plain(&server, json!([104, 105.0])), one);
    assert_eq!(plain(&server, json!(["hi", "x"])), two);
    assert_eq!(plain(&server, json!([[104, 105.0], [120]])), two);
    let many: Vec<String> = (0..700).map(|i| "x".repeat(1 + i % 5)).collect();
    let found = plain(&server, json!(many));
    for (i, vector) in found.as_array().unwrap().iter().enumerate() {
        assert_eq!(vector[0], (1 + i % 5) as f64);
    }
}

#[test]
fn what_the_shutdown_cuts_is_told_so() {
    let mut server = TestServer::start_pooling(&["--shutdown-timeout", "1"], None);
    let mut stream = server.begin("/v1/embeddings", &json!({ "input": "hang" }));
    server.wait_for_requests(1);
    server.signal_shutdown();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("--shutdown-timeout"), "{answer}");
    server.join();
}

#[test]
fn an_answer_has_openais_form() {
    let server = TestServer::start_pooling(&[], None);
    let answer = embed(
        &server,
        json!({ "input": ["hi", "x"], "model": "alias", "user": "me" }),
    );
    assert!(answer["id"].as_str().unwrap().starts_with("embd-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("alias"))
    );
    assert_eq!(answer["data"][1]["object"], "embedding");
    let usage = json!({ "prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0,
        "prompt_tokens_details": { "cached_tokens": 2 } });
    assert_eq!(answer["usage"], usage);
    let vector = answer["data"][0]["embedding"].as_array().unwrap();
    let norm: f64 = vector.iter().map(|x| x.as_f64().unwrap().powi(2)).sum();
    assert!((norm - 1.0).abs() < 1e-6);
    // The first two values of [1, 120, …] in base64: 1 and 120 as 32-bit floats.
    let body = json!({ "input": "x", "dimensions": 2, "normalize": false, "encoding_format": "base64",
        "endianness": "little" });
    assert_eq!(embed(&server, body)["data"][0]["embedding"], "AACAPwAA8EI=");
    let pooled = server
        .post(
            "/pooling",
            &json!({ "input": "x", "use_activation": false }),
        )
        .json();
    assert!(pooled["id"].as_str().unwrap().starts_with("pool-"));
    assert_eq!(
        pooled["data"][0],
        json!({ "index": 0, "object": "pooling", "data": [1.0, 120.0, 120.0, 1.0] })
    );
}

#[test]
fn conversations_are_written_by_the_template() {
    let server = TestServer::start_pooling(&[], None);
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let body = json!({ "messages": messages, "use_activation": false });
    let vector = &embed(&server, body)["data"][0]["embedding"];
    // `u:hi;`, without the start of an answer.
    assert_eq!(vector, &json!([5.0, 117.0, 59.0, 1.0]));
    let body =
        json!({ "messages": messages, "use_activation": false, "add_generation_prompt": true });
    assert_eq!(embed(&server, body)["data"][0]["embedding"][2], 256.0);
}

#[test]
fn what_is_wrong_is_named() {
    let server = TestServer::start_pooling(&[], None);
    for (path, body, param) in [
        ("/v1/embeddings", json!({}), "input"),
        ("/v1/embeddings", json!({ "input": "" }), "input"),
        ("/v1/embeddings", json!({ "input": [] }), "input"),
        ("/v1/embeddings", json!({ "input": ["x", ""] }), "input[1]"),
        (
            "/v1/embeddings",
            json!({ "input": { "text": "x" } }),
            "input",
        ),
        ("/v1/embeddings", json!({ "input": [[300]] }), "input"),
        (
            "/v1/embeddings",
            json!({ "input": [[1], [300]] }),
            "input[1]",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x".repeat(201) }),
            "input",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "messages": [{ "role": "user", "content": "x" }] }),
            "input",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "dimensions": 5 }),
            "dimensions",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "dimensions": 0 }),
            "dimensions",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "encoding_format": "bytes" }),
            "encoding_format",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "truncate_prompt_tokens": 0 }),
            "truncate_prompt_tokens",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "truncate_prompt_tokens": 201 }),
            "truncate_prompt_tokens",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "normalize": true, "use_activation": false }),
            "normalize",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "activation": false }),
            "activation",
        ),
        (
            "/pooling",
            json!({ "input": "x", "softmax": false }),
            "softmax",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "priority": 3 }),
            "priority",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "padding": "max_length" }),
            "padding",
        ),
        (
            "/v1/embeddings",
            json!({ "input": "x", "mm_processor_kwargs": { "a": 1 } }),
            "mm_processor_kwargs",
        ),
        (
            "/pooling",
            json!({ "input": "x", "task": "classify" }),
            "task",
        ),
        (
            "/pooling",
            json!({ "input": "x", "task": "token_embed" }),
            "task",
        ),
        ("/score", json!({ "text_1": "x" }), "text_2"),
        ("/score", json!({ "items": ["x"] }), "queries"),
        ("/score", json!({}), "text_1"),
        (
            "/score",
            json!({ "text_1": ["x", "y"], "text_2": ["z"] }),
            "text_1",
        ),
        ("/score", json!({ "text_1": "x", "text_2": [] }), "text_2"),
        (
            "/score",
            json!({ "queries": "x", "items": ["a", 3] }),
            "items[1]",
        ),
        (
            "/score",
            json!({ "text_1": "x", "text_2": "y", "instruction": "z" }),
            "instruction",
        ),
        (
            "/score",
            json!({ "text_1": "x", "text_2": "y", "data_1": "z" }),
            "data_1",
        ),
        (
            "/score",
            json!({ "queries": "x", "documents": "y", "items": "z" }),
            "items",
        ),
        (
            "/score",
            json!({ "text_1": "x", "documents": "y" }),
            "documents",
        ),
        (
            "/score",
            json!({ "text_1": "x", "text_2": "y", "use_activation": false }),
            "use_activation",
        ),
        (
            "/rerank",
            json!({ "query": "x", "documents": ["y"], "use_activation": true }),
            "use_activation",
        ),
        ("/rerank", json!({ "documents": ["x"] }), "query"),
        (
            "/rerank",
            json!({ "query": "x", "documents": [] }),
            "documents",
        ),
        (
            "/rerank",
            json!({ "query": ["x", "y"], "documents": ["x"] }),
            "query",
        ),
        (
            "/rerank",
            json!({ "query": "x", "documents": ["x"], "top_n": -1 }),
            "top_n",
        ),
        (
            "/rerank",
            json!({ "query": "x", "documents": [{ "image": "x" }] }),
            "documents[0]",
        ),
        (
            "/rerank",
            json!({ "query": "x", "documents": ["x"], "rank_fields": ["a"] }),
            "rank_fields",
        ),
    ] {
        let answer = server.post(path, &body);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!(param)),
            "{body}: {error}"
        );
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .contains(param.split('[').next().unwrap()),
            "{error}"
        );
    }
    let unknown = server.post("/v1/embeddings", &json!({ "input": "x", "model": "other" }));
    assert_eq!(unknown.status, 404);
}

#[test]
fn texts_are_cut_at_their_end() {
    let server = TestServer::start_pooling(&[], None);
    let cut = |side: &str| {
        let body = json!({ "input": "abcdef", "truncate_prompt_tokens": 2, "truncation_side": side,
            "use_activation": false });
        embed(&server, body)["data"][0]["embedding"].clone()
    };
    assert_eq!(cut("right"), json!([2.0, 97.0, 98.0, 1.0]));
    assert_eq!(cut("left"), json!([2.0, 101.0, 102.0, 1.0]));
    let body =
        json!({ "input": "x".repeat(500), "truncate_prompt_tokens": -1, "use_activation": false });
    assert_eq!(embed(&server, body)["data"][0]["embedding"][0], 200.0);
}

#[test]
fn scores_are_products_or_cosines() {
    let server = TestServer::start_pooling(&[], Some(&[0.0, 0.0, 0.5, 0.0]));
    let score = |extra: Value| {
        let body = support::merged(json!({ "text_1": "q", "text_2": ["ab", "ac"] }), extra);
        let answer = server.post("/score", &body);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()
    };
    // Query and document are one text: the last token is the document's.
    assert_eq!(
        score(json!({ "use_activation": false }))["data"][1]["score"],
        49.5
    );
    assert_eq!(score(json!({}))["data"][0]["score"], 1.0);
    assert_eq!(score(json!({}))["usage"]["prompt_tokens"], 6);
    let body = json!({ "query": "q", "documents": ["a", "c", "b"], "top_n": "2", "use_activation": false,
        "return_documents": true });
    let answer = server.post("/rerank", &body).json();
    let order: Vec<&Value> = answer["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["index"])
        .collect();
    assert_eq!(order, [1, 2]);
    assert_eq!(
        answer["results"][0],
        json!({ "index": 1, "document": { "text": "c" }, "relevance_score": 49.5 })
    );
    // What /pooling says of a score has the form that a vector would have.
    let pooled = |extra: Value| {
        let body = support::merged(json!({ "input": "ab", "use_activation": false }), extra);
        server.post("/pooling", &body)
    };
    assert_eq!(pooled(json!({})).json()["data"][0]["data"], json!([49.0]));
    for (extra, data) in [
        (json!({ "endianness": "little" }), "AABEQg=="),
        (json!({ "endianness": "big" }), "QkQAAA=="),
        (
            json!({ "endianness": "big", "embed_dtype": "float16" }),
            "UiA=",
        ),
    ] {
        let extra = support::merged(extra, json!({ "encoding_format": "base64" }));
        assert_eq!(pooled(extra).json()["data"][0]["data"], data);
    }
    let refused = pooled(json!({ "dimensions": 1 }));
    let error = &refused.json()["error"];
    assert_eq!(
        (refused.status, &error["param"]),
        (400, &json!("dimensions"))
    );

    let server = TestServer::start_pooling(&[], None);
    let answer = server
        .post(
            "/v1/score",
            &json!({ "data_1": ["a", "b"], "data_2": ["a", "aaaaaaaa"] }),
        )
        .json();
    assert_eq!(answer["data"][0]["score"], 1.0);
    assert!(answer["data"][1]["score"].as_f64().unwrap() < 1.0);
}

/// The vector of `x` is `[1, 120, 120, 1]`, so that the logits are 1 and 3.
#[test]
fn several_labels_have_the_probabilities_of_their_problem() {
    let rows = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0];
    for (problem_type, expected) in [
        (ProblemType::SingleLabel, [0.119_202_9, 0.880_797]),
        (ProblemType::MultiLabel, [0.731_058_6, 0.952_574_1]),
        (ProblemType::Regression, [1.0, 3.0]),
    ] {
        let server = TestServer::start_classifier(&[], Some(&rows), problem_type);
        let check = |answer: &Value, expected: [f64; 2]| {
            let found: Vec<f64> = serde_json::from_value(answer.clone()).unwrap();
            let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6;
            assert!(found.iter().zip(&expected).all(near), "{found:?}");
            assert_eq!(found.len(), 2);
        };
        let answer = server.post("/classify", &json!({ "input": "x" })).json();
        let class = &answer["data"][0];
        assert_eq!(
            (&class["label"], &class["num_classes"]),
            (&json!("other"), &json!(2))
        );
        check(&class["probs"], expected);
        let answer = server.post("/pooling", &json!({ "input": "x" })).json();
        check(&answer["data"][0]["data"], expected);
        let body = json!({ "input": "x", "use_activation": false });
        let answer = server.post("/classify", &body).json();
        check(&answer["data"][0]["probs"], [1.0, 3.0]);
        for (path, body) in [
            ("/score", json!({ "text_1": "a", "text_2": "b" })),
            ("/rerank", json!({ "query": "a", "documents": ["b"] })),
        ] {
            let answer = server.post(path, &body);
            assert_eq!(answer.status, 400, "{}", answer.text);
            assert!(answer.text.contains("2 labels"), "{}", answer.text);
        }
    }
}

#[test]
fn a_score_is_the_probability_of_the_one_class() {
    let server = TestServer::start_pooling(&[], Some(&[0.0, 0.0, 0.5, -48.5]));
    let classify = |body: Value| {
        let answer = server.post("/classify", &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text);
        answer.json()
    };
    let answer = classify(json!({ "input": ["ab", "aa"], "model": "alias", "user": "me" }));
    assert!(answer["id"].as_str().unwrap().starts_with("classify-"));
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("alias"))
    );
    assert!(answer["created"].is_u64());
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    assert_eq!(
        answer["data"][1],
        json!({ "index": 1, "label": "relevant", "probs": [0.5], "num_classes": 1 })
    );
    let found = answer["data"][0]["probs"][0].as_f64().unwrap();
    assert!((found - 1.0 / (1.0 + (-0.5f64).exp())).abs() < 1e-6);
    let logits = classify(json!({ "input": [97, 98], "use_activation": false }));
    assert_eq!(logits["data"][0]["probs"], json!([0.5]));
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let template = classify(json!({ "messages": messages, "use_activation": false }));
    // `;` is the last token.
    assert_eq!(template["data"][0]["probs"], json!([-19.0]));
    let cut = classify(json!({ "input": "abc", "truncate_prompt_tokens": 1 }));
    assert_eq!(
        (&cut["data"][0]["probs"][0], &cut["usage"]["prompt_tokens"]),
        (&json!(0.5), &json!(1))
    );
    // Of embeddings: unknown here, like any other name.
    let others =
        json!({ "input": "ab", "dimensions": 0, "encoding_format": 3, "normalize": false });
    assert_eq!(classify(others)["data"], json!([answer["data"][0]]));
    for (body, param) in [
        (json!({}), "input"),
        (json!({ "input": ["x", ""] }), "input[1]"),
        (json!({ "input": "x", "priority": 1 }), "priority"),
        (
            json!({ "input": "x", "use_activation": "maybe" }),
            "use_activation",
        ),
    ] {
        let refused = server.post("/classify", &body);
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["param"]),
            (400, &json!(param)),
            "{error}"
        );
    }
    let without = TestServer::start_pooling(&[], None);
    let refused = without.post("/classify", &json!({ "input": "x" }));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("model")));
    assert!(
        error["message"].as_str().unwrap().contains("no classes"),
        "{error}"
    );
}

#[test]
fn a_server_pools_or_generates() {
    let server = TestServer::start_pooling(&[], None);
    let refused = server.complete(json!({}));
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["param"]), (400, &json!("model")));
    let server = TestServer::start(|_| says("x"));
    for path in [
        "/v1/embeddings",
        "/pooling",
        "/classify",
        "/score",
        "/rerank",
        "/v2/rerank",
    ] {
        let answer = server.post(path, &json!({ "input": "x" }));
        assert_eq!(answer.status, 400);
        assert!(answer.text.contains("--runner pooling"), "{}", answer.text);
    }
}
