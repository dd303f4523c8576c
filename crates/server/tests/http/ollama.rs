//! Ollama's `/api/…`.

use super::*;
use crate::support::{Answer, merged};

/// The lines of an answer.
fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines = answer.text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn chat(server: &TestServer, extra: Value) -> Answer {
    let base = json!({ "model": "base", "messages": [{ "role": "user", "content": "hi" }] });
    server.post("/api/chat", &merged(base, extra))
}

fn generate(server: &TestServer, extra: Value) -> Answer {
    let base = json!({ "model": "base", "prompt": "hi", "stream": false });
    server.post("/api/generate", &merged(base, extra))
}

fn prompt(server: &TestServer) -> String {
    let prompt = server.last_request().prompt;
    let text = prompt.iter().filter(|&&id| id < 256).map(|&id| id as u8);
    String::from_utf8(text.collect()).unwrap()
}

#[test]
fn a_chat_comes_line_by_line() {
    let server = TestServer::start(|_| says("Hé!"));
    let streamed = lines(&chat(
        &server,
        json!({ "model": "base:latest", "keep_alive": "5m" }),
    ));
    let text: String = streamed
        .iter()
        .filter_map(|line| line["message"]["content"].as_str())
        .collect();
    assert_eq!(text, "Hé!");
    assert!(streamed.iter().all(|line| line["model"] == "base:latest"));
    let (last, others) = streamed.split_last().unwrap();
    assert!(others.iter().all(|line| line["done"] == json!(false)));
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    assert_eq!(
        (&last["prompt_eval_count"], &last["eval_count"]),
        (&json!(6), &json!(5))
    );
    assert!(last["total_duration"].as_u64().unwrap() > 0);
    assert!(last["created_at"].as_str().unwrap().ends_with('Z'));

    let whole = chat(&server, json!({ "stream": false })).json();
    assert_eq!(
        whole["message"],
        json!({ "role": "assistant", "content": "Hé!" })
    );
    assert_eq!(
        (&whole["done"], &whole["eval_count"]),
        (&json!(true), &json!(5))
    );
}

#[test]
fn a_last_message_of_the_assistant_is_continued() {
    let server = TestServer::start(|_| says("b"));
    let user = json!({ "role": "user", "content": "q" });
    let said = |extra: Value| merged(json!({ "role": "assistant", "content": "a" }), extra);
    let call = json!({ "function": { "name": "f", "arguments": {} } });
    for (last, expected) in [
        (said(json!({})), "u:q;a:a"),
        (said(json!({ "content": "" })), "u:q;a:;"),
        (said(json!({ "tool_calls": [call] })), "u:q;a:a;"),
        (user.clone(), "u:q;u:q;"),
    ] {
        let body = json!({ "messages": [user, last], "stream": false });
        let answer = chat(&server, body).json();
        assert_eq!(answer["message"]["content"], "b", "{answer}");
        assert_eq!(prompt(&server), expected);
    }
}

#[test]
fn options_reach_the_engine() {
    let server = TestServer::start(|_| says("one END two"));
    let options = json!({ "temperature": 0.25, "top_k": 7, "top_p": 0.5, "min_p": 0.125, "repeat_penalty": 1.5,
        "presence_penalty": 0.5, "frequency_penalty": 0.75, "seed": 11, "num_predict": 9, "stop": ["END"],
        "num_ctx": 100, "num_gpu": 1, "repeat_last_n": 33 });
    let answer = chat(&server, json!({ "options": options, "stream": false }));
    assert_eq!(
        answer.json()["message"]["content"],
        "one ",
        "{}",
        answer.text
    );
    let request = server.last_request();
    let sampling = &request.sampling;
    assert_eq!(request.max_tokens, 9);
    assert_eq!(
        (sampling.temperature, sampling.top_k, sampling.top_p),
        (0.25, 7, 0.5)
    );
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.125, 1.5));
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (0.5, 0.75)
    );
    assert_eq!(sampling.penalty_window, Some(33));
    assert_eq!(sampling.seed, Some(11));
    let room = chat(&server, json!({ "options": { "num_predict": 5000 } }));
    assert_eq!(room.status, 200);
    assert_eq!(server.last_request().max_tokens, MAX_MODEL_LEN - 6);
    let logprobs = chat(
        &server,
        json!({ "logprobs": true, "top_logprobs": 2, "stream": false }),
    )
    .json();
    let first = &logprobs["logprobs"][0];
    assert_eq!(
        (
            &first["token"],
            &first["logprob"],
            first["top_logprobs"].as_array().unwrap().len()
        ),
        (&json!("o"), &json!(-0.25), 2)
    );
}

#[test]
fn a_flag_shows_tokens_by_their_ids() {
    let server = TestServer::start_with(&["--return-tokens-as-token-ids"], |_| says("o"));
    let answer = chat(&server, json!({ "logprobs": true, "stream": false })).json();
    assert_eq!(answer["logprobs"][0]["token"], "token_id:111");
}

#[test]
fn tools_are_called_and_answered() {
    let call =
        "<tool_call>\n{\"name\": \"look\", \"arguments\": {\"place\": \"Rome\"}}\n</tool_call>";
    let server = TestServer::start(move |_| says(call));
    let tools = json!([{ "type": "function", "function": { "name": "look", "parameters": { "type": "object",
        "properties": { "place": { "type": "string" } } } } }]);
    let streamed = lines(&chat(&server, json!({ "tools": tools })));
    let calls: Vec<&Value> = streamed
        .iter()
        .filter_map(|line| line["message"].get("tool_calls"))
        .collect();
    assert_eq!(calls.len(), 1);
    let function = &calls[0][0]["function"];
    assert_eq!(
        (&function["name"], &function["arguments"]),
        (&json!("look"), &json!({ "place": "Rome" }))
    );
    let called = chat(&server, json!({ "tools": tools, "stream": false })).json();
    let messages = json!([
        { "role": "user", "content": "hi" },
        called["message"],
        { "role": "tool", "tool_name": "look", "content": "Sunny." },
    ]);
    let answer = chat(&server, json!({ "messages": messages, "tools": tools }));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(
        prompt(&server).ends_with("t:Sunny.;tools=1;"),
        "{}",
        prompt(&server)
    );
}

#[test]
fn formats_constrain_the_answer() {
    let server = TestServer::start(|_| says("{}"));
    for format in [
        json!("json"),
        json!({ "type": "object", "properties": { "x": { "type": "integer" } } }),
    ] {
        for raw in [false, true] {
            let answer = generate(&server, json!({ "format": format, "raw": raw }));
            assert_eq!(answer.status, 200, "{}", answer.text);
            assert!(server.last_request().constraint.is_some());
        }
        assert_eq!(chat(&server, json!({ "format": format })).status, 200);
        assert!(server.last_request().constraint.is_some());
    }
    chat(&server, json!({ "format": "" }));
    assert!(server.last_request().constraint.is_none());
    let wrong = chat(&server, json!({ "format": { "type": "thing" } }));
    assert_eq!(wrong.status, 400);
    assert!(wrong.json()["error"].as_str().unwrap().contains("`format`"));
}

#[test]
fn thinking_is_shown_or_left_out() {
    let server = TestServer::start_with(&["--reasoning-parser", "qwen3"], |_| {
        says("<think>\nHm.\n</think>\n\nYes.")
    });
    let message = |think: Value| {
        chat(&server, json!({ "think": think, "stream": false })).json()["message"].clone()
    };
    let thought = json!({ "role": "assistant", "content": "Yes.", "thinking": "Hm.\n" });
    assert_eq!(message(json!(true)), thought);
    assert_eq!(message(json!("high")), thought);
    let answer = generate(&server, json!({ "think": true })).json();
    assert_eq!(
        (&answer["response"], &answer["thinking"]),
        (&json!("Yes."), &json!("Hm.\n"))
    );

    let plain = TestServer::start(|_| says("Yes."));
    let refused = chat(&plain, json!({ "think": true }));
    assert_eq!(refused.status, 400);
    assert!(
        refused.json()["error"]
            .as_str()
            .unwrap()
            .contains("thinking")
    );
    assert_eq!(chat(&plain, json!({ "think": false })).status, 200);
}

#[test]
fn prompts_are_generated_from() {
    let server = TestServer::start(|_| says("Hello."));
    let answer = generate(&server, json!({ "system": "Be kind." })).json();
    assert_eq!(
        (&answer["response"], &answer["done"]),
        (&json!("Hello."), &json!(true))
    );
    assert_eq!(prompt(&server), "s:Be kind.;u:hi;");
    let raw = generate(
        &server,
        json!({ "raw": true, "options": { "num_predict": 3 } }),
    );
    assert_eq!(raw.json()["response"], "Hello.", "{}", raw.text);
    assert_eq!(prompt(&server), "hi");
    assert_eq!(server.last_request().max_tokens, 3);
    let streamed = lines(&generate(&server, json!({ "stream": null })));
    let text: String = streamed
        .iter()
        .filter_map(|line| line["response"].as_str())
        .collect();
    assert_eq!(text, "Hello.");

    let num = server.seen.lock().unwrap().requests.len();
    let loaded = generate(&server, json!({ "prompt": "", "keep_alive": 0 })).json();
    assert_eq!(
        (&loaded["done_reason"], &loaded["response"]),
        (&json!("load"), &json!(""))
    );
    let loaded = chat(&server, json!({ "messages": [] })).json();
    assert_eq!(
        loaded["message"],
        json!({ "role": "assistant", "content": "" })
    );
    assert_eq!(server.seen.lock().unwrap().requests.len(), num);
}

#[test]
fn a_body_needs_no_type_unless_a_page_sends_it() {
    let server = TestServer::start(|_| says("x"));
    let body = json!({ "model": "base", "prompt": "hi" }).to_string();
    let form = "content-type: application/x-www-form-urlencoded";
    let status = |headers: &[&str]| server.raw("POST", "/api/generate", headers, &body).status;
    assert_eq!(status(&[form]), 200);
    assert_eq!(status(&[form, "origin: http://evil.example"]), 415);
    assert_eq!(
        server.raw("POST", "/v1/completions", &[form], &body).status,
        415
    );
}

#[test]
fn models_are_listed_and_shown() {
    let server = TestServer::start(|_| says("x"));
    let tags = server.get("/api/tags").json();
    let names: Vec<&Value> = tags["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["name"])
        .collect();
    assert_eq!(names, ["base", "alias"]);
    let model = &tags["models"][0];
    assert_eq!(model["digest"].as_str().unwrap().len(), 64);
    assert_ne!(model["digest"], tags["models"][1]["digest"]);
    assert_eq!(
        model["details"],
        json!({ "parent_model": "", "format": "safetensors", "family": "qwen2", "families": ["qwen2"],
            "parameter_size": "494.03M", "quantization_level": "BF16" })
    );
    let running = server.get("/api/ps").json();
    assert_eq!(running["models"][0]["context_length"], MAX_MODEL_LEN);
    assert_eq!(running["models"][0]["size_vram"], 0);
    for body in [
        json!({ "model": "base:latest" }),
        json!({ "name": "base", "verbose": true }),
    ] {
        let shown = server.post("/api/show", &body);
        assert_eq!(shown.status, 200, "{}", shown.text);
        let shown = shown.json();
        assert_eq!(shown["capabilities"], json!(["completion", "tools"]));
        assert_eq!(shown["model_info"]["general.architecture"], "qwen2");
        assert_eq!(shown["model_info"]["qwen2.context_length"], 32_768);
        assert!(shown["template"].as_str().unwrap().contains("messages"));
        assert!(shown["parameters"].as_str().unwrap().contains("top_k"));
    }
    assert!(server.get("/api/version").json()["version"].is_string());
    for path in ["/", "/api/version"] {
        let head = server.raw("HEAD", path, &[], "");
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
    }
    assert_eq!(server.get("/").text, "Ollama is running");
}

#[test]
fn errors_are_ollamas() {
    let server = TestServer::start(|_| says("x"));
    for (path, body, status, part) in [
        ("/api/chat", json!({ "model": "llama3" }), 404, "`llama3`"),
        ("/api/chat", json!({ "messages": [] }), 400, "`model`"),
        (
            "/api/chat",
            json!({ "model": "base", "format": "xml" }),
            400,
            "`format`",
        ),
        (
            "/api/chat",
            json!({ "model": "base", "options": { "temperature": -1 } }),
            400,
            "options.temperature",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "", "options": { "top_p": 2 } }),
            400,
            "options.top_p",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "images": ["a"] }),
            400,
            "`images`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "suffix": "y" }),
            400,
            "`suffix`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "system": "y", "raw": true }),
            400,
            "`raw`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "system": "y", "suffix": "z" }),
            400,
            "`system`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "top_logprobs": 2 }),
            400,
            "`top_logprobs`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "template": "{{ .Prompt }}" }),
            400,
            "`template`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "context": [1] }),
            400,
            "`context`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "options": { "num_ctx": 4096 } }),
            400,
            "`options.num_ctx`",
        ),
        (
            "/api/generate",
            json!({ "model": "base", "prompt": "x", "options": { "repeat_penalty": 0 } }),
            400,
            "options.repeat_penalty",
        ),
        ("/api/show", json!({ "model": "llama3" }), 404, "`llama3`"),
        ("/api/show", json!({}), 400, "`model`"),
        ("/api/pull", json!({ "model": "llama3" }), 501, "/api/pull"),
        ("/api/push", json!({ "model": "llama3" }), 501, "/api/push"),
        (
            "/api/create",
            json!({ "model": "llama3" }),
            501,
            "/api/create",
        ),
        ("/api/copy", json!({ "source": "a" }), 501, "/api/copy"),
        (
            "/api/embed",
            json!({ "model": "base", "input": "x" }),
            400,
            "--runner pooling",
        ),
        ("/api/nothing", json!({}), 404, "/api/nothing"),
        ("/api/tags", json!({}), 405, "/api/tags"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text);
        let error = answer.json();
        let message = error["error"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
        assert_eq!(error.as_object().unwrap().len(), 1);
    }
    let failed = || SequenceError::Failed("bad luck".into());
    let server = TestServer::start(move |_| Play::Fails(bytes("so").collect(), failed()));
    let streamed = lines(&chat(&server, json!({})));
    let last = streamed.last().unwrap();
    assert!(last["error"].as_str().unwrap().contains("bad luck"));
    assert_eq!(chat(&server, json!({ "stream": false })).status, 500);
}
