//! The small endpoints of vLLM.

use super::*;

#[test]
fn the_division_of_the_memory_is_told_in_numbers() {
    let server = TestServer::start(|_| says("x"));
    let table = server.get("/memory").json();
    let own = &server.state.model().memory_table;
    assert_eq!(table, serde_json::to_value(own).unwrap());
    assert_eq!(table["weights"], 988_097_536_u64);
}

#[test]
fn a_flag_turns_load_on() {
    let off = TestServer::start(|_| says("x")).get("/load");
    assert_eq!(off.status, 404);
    assert!(off.text.contains("--enable-server-load-tracking"));
    let server =
        TestServer::start_with(&["--enable-server-load-tracking"], |_| Play::Hang(vec![65]));
    let load = || server.get("/load").json();
    assert_eq!(load(), json!({ "server_load": 0 }));
    let messages = json!([{ "role": "user", "content": "x" }]);
    let chat = json!({ "model": "base", "messages": messages, "max_tokens": 9, "stream": true });
    let prompt = json!({ "model": "base", "prompt": "x", "stream": true });
    let start = Instant::now();
    for (i, (path, body)) in [
        ("/v1/completions", &prompt),
        ("/v1/chat/completions", &chat),
        ("/v1/responses", &json!({ "input": "x", "stream": true })),
        ("/v1/messages", &chat),
        (
            "/api/chat",
            &json!({ "model": "base", "messages": messages }),
        ),
        ("/api/generate", &prompt),
        ("/invocations", &prompt),
    ]
    .into_iter()
    .enumerate()
    {
        let connection = server.begin(path, body);
        server.wait_for_requests(i + 1);
        let wait_for = |num: u64| {
            while load() != json!({ "server_load": num }) {
                assert!(start.elapsed() < Duration::from_secs(20), "{path}: {num}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for(1);
        drop(connection);
        wait_for(0);
    }
}

#[test]
fn the_engine_never_sleeps() {
    let server = TestServer::start(|_| says("x"));
    let answer = server.get("/is_sleeping");
    assert_eq!(answer.json(), json!({ "is_sleeping": false }));
    assert_eq!(server.post("/sleep", &json!({})).status, 404);
}

#[test]
fn a_flag_shows_the_tokenizer() {
    let off = TestServer::start(|_| says("x")).get("/tokenizer_info");
    assert_eq!(off.status, 404);
    assert!(off.text.contains("--enable-tokenizer-info-endpoint"));
    let server = TestServer::start_with(&["--enable-tokenizer-info-endpoint"], |_| says("x"));
    let info = server.get("/tokenizer_info").json();
    assert_eq!(info["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(info["eos_token"], "<|im_end|>");
    assert!(
        info["chat_template"]
            .as_str()
            .unwrap()
            .contains("add_generation_prompt")
    );
}

#[test]
fn invocations_go_where_their_body_belongs() {
    let server = TestServer::start(|_| says("hello"));
    let messages = json!([{ "role": "user", "content": "hi" }]);
    let chat = server.post("/invocations", &json!({ "messages": messages }));
    assert_eq!(chat.json()["choices"][0]["message"]["content"], "hello");
    let text = server
        .post("/invocations", &json!({ "prompt": "x" }))
        .json();
    assert_eq!(text["choices"][0]["text"], "hello");
    let nothing = server.post("/invocations", &json!({ "model": "base" }));
    assert_eq!(nothing.status, 400);
    let server = TestServer::start_pooling(&[], None);
    for (body, path) in [
        (json!({ "input": "x" }), "/v1/embeddings"),
        (json!({ "messages": messages }), "/v1/embeddings"),
        (json!({ "query": "x", "documents": ["y"] }), "/rerank"),
        (json!({ "text_1": "x", "text_2": "y" }), "/score"),
    ] {
        let (found, direct) = (server.post("/invocations", &body), server.post(path, &body));
        assert_eq!((found.status, direct.status), (200, 200), "{}", found.text);
        let same = |answer: Answer| {
            let mut answer = answer.json();
            answer
                .as_object_mut()
                .unwrap()
                .retain(|key, _| key != "id" && key != "created");
            answer
        };
        assert_eq!(same(found), same(direct));
    }
    let server = TestServer::start_pooling(&[], Some(&[0.0; 4]));
    let classified = server.post("/invocations", &json!({ "input": "x" })).json();
    assert_eq!(classified["data"][0]["num_classes"], 1, "{classified}");
}

#[test]
fn rendered_requests_are_not_computed() {
    let server = TestServer::start(|_| says("x"));
    let body = json!({ "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 5, "temperature": 0.5,
        "stop": "z", "seed": 7, "top_p": 0.7 });
    let answer = server.post("/v1/chat/completions/render", &body);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = answer.json();
    let tokens: Vec<u32> = bytes("u:hi;").chain([IM_START]).collect();
    assert_eq!(answer["token_ids"], json!(tokens));
    let params = &answer["sampling_params"];
    assert_eq!(
        (&params["max_tokens"], &params["temperature"]),
        (&json!(5), &json!(0.5))
    );
    assert_eq!(
        (&params["stop"], &params["seed"], &params["top_p"]),
        (&json!(["z"]), &json!(7), &json!(0.7))
    );
    for (seed, shown) in [(-1, Value::Null), (-2, json!(-2))] {
        let body = json!({ "prompt": "a", "seed": seed });
        let answer = server.post("/v1/completions/render", &body).json();
        assert_eq!(answer[0]["sampling_params"]["seed"], shown);
    }
    let body = json!({ "prompt": [[97], [98, 99]], "max_tokens": 3 });
    let answer = server.post("/v1/completions/render", &body).json();
    assert_eq!(answer.as_array().unwrap().len(), 2);
    assert_eq!(answer[1]["token_ids"], json!([98, 99]));
    assert!(server.seen.lock().unwrap().requests.is_empty());
    let wrong = server.post("/v1/completions/render", &json!({ "prompt": "a", "n": 0 }));
    assert_eq!(wrong.status, 400);
}
