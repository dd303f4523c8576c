//! `/openapi.json` against what the server answers. `TestServer::post` checks every other body of these tests, too.

use super::*;

fn chat(messages: Value) -> Value {
    json!({ "model": "base", "messages": messages, "max_tokens": 2, "stream": false })
}

fn call() -> Value {
    json!({ "id": "c", "type": "function", "function": { "name": "f", "arguments": "{}" } })
}

fn user(content: Value) -> Value {
    chat(json!([{ "role": "user", "content": content }]))
}

#[test]
fn what_is_answered_has_a_schema() {
    let server = TestServer::start(|_| says("x"));
    let with = |field: &str, value: Value| {
        let mut body = user(json!("hi"));
        body[field] = value;
        body
    };
    let function = json!({ "name": "f", "description": "d", "parameters": { "type": "object", "properties": {} }, "strict": true });
    let tool = json!([{ "type": "function", "function": function }]);
    let choice = |choice: Value| {
        let mut body = with("tools", tool.clone());
        body["tool_choice"] = choice;
        body
    };
    let named = json!({ "type": "function", "function": { "name": "f" } });
    for (path, body) in [
        // A call turn has no content.
        (
            "/v1/chat/completions",
            chat(
                json!([{ "role": "developer", "content": "d" }, { "role": "user", "content": "u" },
                { "role": "assistant", "tool_calls": [call()] }, { "role": "tool", "tool_call_id": "c", "content": "5" },
                { "role": "assistant", "content": null, "tool_calls": [call()], "reasoning": "hm", "refusal": null },
                { "role": "tool", "tool_call_id": "c", "name": "f", "content": [{ "type": "text", "text": "6" }] }]),
            ),
        ),
        (
            "/v1/chat/completions",
            user(
                json!(["a", { "type": "text", "text": "b" }, { "type": "input_text", "text": "c" },
                { "type": "output_text", "text": "d" }, { "type": "refusal", "refusal": "e" }, { "type": "thinking", "thinking": "f" }]),
            ),
        ),
        ("/v1/chat/completions", choice(json!("required"))),
        ("/v1/chat/completions", choice(named.clone())),
        (
            "/v1/chat/completions",
            choice(
                json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [named] } }),
            ),
        ),
        (
            "/v1/chat/completions",
            with("structured_outputs", json!({ "choice": ["a", "b"] })),
        ),
        (
            "/v1/chat/completions",
            with(
                "structured_outputs",
                json!({ "json": "{}", "disable_any_whitespace": true }),
            ),
        ),
        (
            "/v1/chat/completions",
            with("response_format", json!({ "type": "json_object" })),
        ),
        (
            "/v1/chat/completions",
            with(
                "response_format",
                json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": {} } }),
            ),
        ),
        (
            "/v1/responses",
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_text", "text": "a" }] },
                { "type": "reasoning", "summary": [{ "type": "summary_text", "text": "s" }], "encrypted_content": null },
                { "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" },
                { "type": "function_call_output", "call_id": "c", "output": [{ "type": "input_text", "text": "7" }] },
                { "type": "custom_tool_call", "call_id": "d", "name": "p", "input": "x" },
                { "type": "custom_tool_call_output", "call_id": "d", "output": "y" },
                { "role": "assistant", "content": "begun", "status": "incomplete" }],
                "include": ["reasoning.encrypted_content"], "reasoning": { "effort": "low", "summary": null },
                "text": { "format": { "type": "text" }, "verbosity": "medium" }, "metadata": { "k": "v" } }),
        ),
        (
            "/v1/responses",
            json!({ "input": "a", "tools": [{ "type": "web_search", "external_web_access": true }, { "type": "custom", "name": "p" },
                { "type": "namespace", "name": "n", "tools": [{ "type": "function", "name": "g" }] }], "tool_choice":
                { "type": "custom", "name": "p" } }),
        ),
        (
            "/v1/messages",
            json!({ "model": "base", "max_tokens": 9, "system": [{ "type": "text", "text": "s" }], "messages": [
                { "role": "user", "content": [{ "type": "text", "text": "u" }] },
                { "role": "assistant", "content": [{ "type": "thinking", "thinking": "t", "signature": "" },
                    { "type": "tool_use", "id": "i", "name": "f", "input": {} }] },
                { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "i", "content": "r", "is_error": true }] }],
                "tools": [{ "name": "f", "input_schema": { "type": "object" } }],
                "tool_choice": { "type": "auto", "disable_parallel_tool_use": true }, "thinking": { "type": "adaptive" } }),
        ),
        (
            "/api/chat",
            json!({ "model": "base", "stream": false, "format": { "type": "object" }, "options": { "num_predict": 2 }, "messages": [
                { "role": "user", "content": "u" },
                { "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": { "a": 1 } } }] },
                { "role": "tool", "tool_name": "f", "content": "5" }] }),
        ),
    ] {
        assert_eq!(server.schema_error(path, &body), None);
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {body}: {}", answer.text);
    }
}

/// A schema that took everything would say nothing.
#[test]
fn what_is_refused_by_name_is_refused_by_its_schema() {
    let server = TestServer::start(|_| says("x"));
    let with = |field: &str, value: Value| {
        let mut body = user(json!("hi"));
        body[field] = value;
        body
    };
    let item = |item: Value| json!({ "input": [item] });
    let block = |block: Value| json!({ "model": "base", "max_tokens": 9, "messages": [{ "role": "user", "content": [block] }] });
    let ask = |field: &str, value: Value| {
        let mut body = json!({ "model": "base", "max_tokens": 9, "messages": [{ "role": "user", "content": "u" }] });
        body[field] = value;
        body
    };
    let bodies = [
        ("/v1/chat/completions", chat(json!([{ "role": "user" }]))),
        (
            "/v1/chat/completions",
            chat(json!([{ "role": "odd", "content": "x" }])),
        ),
        (
            "/v1/chat/completions",
            user(json!([{ "type": "image_url" }])),
        ),
        ("/v1/chat/completions", user(json!([{ "type": "text" }]))),
        (
            "/v1/chat/completions",
            chat(json!([{ "role": "assistant", "tool_calls": [{ "type": "function" }] }])),
        ),
        (
            "/v1/chat/completions",
            with("tools", json!([{ "type": "web_search" }])),
        ),
        (
            "/v1/chat/completions",
            with(
                "tools",
                json!([{ "type": "function", "function": { "name": "" } }]),
            ),
        ),
        ("/v1/chat/completions", with("tool_choice", json!("some"))),
        (
            "/v1/chat/completions",
            with("response_format", json!({ "type": "xml" })),
        ),
        (
            "/v1/chat/completions",
            with(
                "response_format",
                json!({ "type": "json_schema", "json_schema": { "name": "n" } }),
            ),
        ),
        (
            "/v1/chat/completions",
            with("structured_outputs", json!({ "choice": "a" })),
        ),
        (
            "/v1/chat/completions",
            with("structured_outputs", json!({ "xml": true })),
        ),
        ("/v1/responses", item(json!({ "type": "computer_call" }))),
        (
            "/v1/responses",
            item(json!({ "type": "function_call", "call_id": "c", "name": "f" })),
        ),
        (
            "/v1/responses",
            item(
                json!({ "role": "user", "content": [{ "type": "input_image", "image_url": "x" }] }),
            ),
        ),
        (
            "/v1/responses",
            json!({ "input": "a", "tools": [{ "type": "custom", "name": "p", "format": { "type": "grammar" } }] }),
        ),
        (
            "/v1/responses",
            json!({ "input": "a", "reasoning": { "effort": "odd" } }),
        ),
        (
            "/v1/responses",
            json!({ "input": "a", "text": { "format": { "type": "xml" } } }),
        ),
        ("/v1/responses", json!({ "input": "a", "include": ["all"] })),
        (
            "/v1/messages",
            block(json!({ "type": "image", "source": {} })),
        ),
        ("/v1/messages", block(json!({ "type": "tool_result" }))),
        ("/v1/messages", ask("tools", json!([{ "name": "f" }]))),
        (
            "/v1/messages",
            ask("tool_choice", json!({ "type": "some" })),
        ),
        (
            "/v1/messages",
            ask("thinking", json!({ "type": "enabled", "budget_tokens": 5 })),
        ),
        (
            "/api/chat",
            json!({ "model": "base", "messages": [{ "role": "user", "content": "u", "images": ["x"] }] }),
        ),
    ];
    let mut inside = Vec::new();
    for (path, base, narrow) in narrow_bodies() {
        // Only the one value is wrong.
        assert_eq!(server.schema_error(path, &base), None, "{path}: {base}");
        assert_eq!(server.post(path, &base).status, 200, "{path}: {base}");
        let bodies = narrow.into_iter();
        inside.extend(bodies.map(|more| (path, support::merged(base.clone(), more))));
    }
    for (path, body) in bodies.into_iter().chain(inside) {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 400, "{path}: {body}: {}", answer.text);
        let error = server.schema_error(path, &body);
        assert!(error.is_some(), "{path}: {body} fits its schema");
    }
}

/// Bodies, and for each of them values that are refused in it: keys that nothing is known of, types, bounds, and what has to be
/// empty.
fn narrow_bodies() -> [(&'static str, Value, Vec<Value>); 6] {
    let function = |more: Value| support::merged(json!({ "type": "function", "name": "f" }), more);
    let format = |of: Value| json!({ "response_format": of });
    let list = |tool: Value| json!({ "tools": [tool] });
    let options = |options: Value| json!({ "options": options });
    let array = json!({ "type": "array" });
    let of_chat = [
        format(json!({ "type": "text", "x": 1 })),
        format(json!({ "type": "json_object", "schema": {} })),
        format(
            json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": {}, "x": 1 } }),
        ),
        format(
            json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": {} }, "schema": {} }),
        ),
        format(json!({ "type": "structural_tag" })),
        format(json!({ "type": "structural_tag", "format": {} })),
        format(json!({ "type": "structural_tag", "structures": [], "triggers": [] })),
        list(json!({ "type": "function", "function": { "name": "f", "parameters": array } })),
        json!({ "structured_outputs": { "choice": [""] } }),
        json!({ "stop": [""] }),
        json!({ "bad_words": [""] }),
        json!({ "truncate_prompt_tokens": 0 }),
        json!({ "thinking_token_budget": -5 }),
        json!({ "reasoning_effort": "odd" }),
        json!({ "chat_template_kwargs": { "tools": [] } }),
        json!({ "documents": ["x"] }),
        json!({ "chat_template": "x" }),
        json!({ "guided_decoding_backend": "outlines" }),
        json!({ "guided_json": false }),
        json!({ "structural_tag": true }),
        json!({ "logprobs": true, "top_logprobs": -1 }),
        json!({ "logprobs": true, "top_logprobs": 21 }),
        json!({ "max_tokens": 100_000 }),
        json!({ "max_completion_tokens": 0 }),
        json!({ "n": 0 }),
        json!({ "n": 129 }),
        json!({ "top_k": -2 }),
        json!({ "best_of": 2 }),
        json!({ "stop_token_ids": [100_000] }),
        json!({ "allowed_token_ids": [100_000] }),
        json!({ "truncate_prompt_tokens": 100_000 }),
    ];
    let of_completions = [
        json!({ "max_tokens": 0 }),
        json!({ "logprobs": -1 }),
        json!({ "logprobs": 21 }),
        json!({ "prompt_logprobs": 21 }),
        json!({ "prompt": [100_000] }),
        json!({ "prompt": [[5], [100_000]] }),
        json!({ "packed_top_logprobs": true }),
    ];
    let of_responses = [
        list(function(json!({ "defer_loading": true }))),
        list(function(json!({ "allowed_callers": ["code"] }))),
        list(function(json!({ "parameters": array }))),
        list(json!({ "type": "custom", "name": "p", "defer_loading": true })),
        list(json!({ "type": "custom", "name": "p", "format": { "type": "text", "x": 1 } })),
        list(
            json!({ "type": "namespace", "name": "n", "tools": [function(json!({ "defer_loading": true }))] }),
        ),
        list(json!({ "type": "namespace", "name": "n", "tools": [], "defer_loading": true })),
        list(json!({ "type": "odd" })),
        json!({ "input": [{ "role": "tool", "content": "x" }] }),
        json!({ "text": { "x": 1 } }),
        json!({ "text": { "format": { "type": "text", "x": 1 } } }),
        json!({ "reasoning": { "x": 1 } }),
        json!({ "stream_options": { "include_obfuscation": true } }),
        json!({ "truncation": "odd" }),
        json!({ "tool_choice": { "name": "f" } }),
        json!({ "tool_choice": { "type": "allowed_tools", "mode": "auto", "tools": [{}] } }),
        json!({ "max_tool_calls": 0 }),
    ];
    let of_messages = [
        list(json!({ "name": "f", "input_schema": array })),
        json!({ "n": 2 }),
        json!({ "model": "" }),
        json!({ "tool_choice": { "type": "tool", "name": "" } }),
        json!({ "output_config": { "effort": "odd" } }),
    ];
    let of_options = [
        options(json!({ "repeat_last_n": -2 })),
        options(json!({ "repeat_penalty": 0 })),
        options(json!({ "num_ctx": -1 })),
        options(json!({ "stop": [""] })),
    ];
    let of_generate = [
        json!({ "images": ["x"] }),
        json!({ "context": [1] }),
        json!({ "template": "x" }),
    ];
    let asked = json!([{ "role": "user", "content": "u" }]);
    let messages = json!({ "model": "base", "max_tokens": 9, "messages": asked });
    let generate = json!({ "model": "base", "prompt": "p", "stream": false });
    let completion = json!({ "prompt": "p", "max_tokens": 2 });
    [
        ("/v1/chat/completions", chat(asked), of_chat.to_vec()),
        ("/v1/completions", completion, of_completions.to_vec()),
        (
            "/v1/responses",
            json!({ "input": "a" }),
            of_responses.to_vec(),
        ),
        ("/v1/messages", messages, of_messages.to_vec()),
        ("/api/generate", generate.clone(), of_options.to_vec()),
        ("/api/generate", generate, of_generate.to_vec()),
    ]
}

#[test]
fn bounds_are_those_of_the_server() {
    let server = TestServer::start_with(&["--max-logprobs", "-1"], |_| says("x"));
    let completion = |more: Value| support::merged(json!({ "prompt": "p", "max_tokens": 2 }), more);
    // A server without `--max-logprobs -1` refuses this.
    let whole = completion(json!({ "logprobs": -1 }));
    assert_eq!(server.post("/v1/completions", &whole).status, 200);
    let echo = json!({ "echo": true, "max_tokens": 0 });
    assert_eq!(
        server.post("/v1/completions", &completion(echo)).status,
        200
    );
    let document = server.get("/openapi.json").json();
    assert_eq!(document, server::api_description(&server.state));
    let fields = &document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
        ["schema"]["properties"];
    assert_eq!(fields["logprobs"]["minimum"], -1);
    assert_eq!(fields["logprobs"]["maximum"], Value::Null);
}

#[test]
fn what_is_empty_fits_its_schema() {
    let server = TestServer::start(|_| says("x"));
    let body = json!({ "model": "base", "prompt": "p", "stream": false, "images": [], "context": [], "template": "",
        "options": { "num_predict": 2, "top_k": -5, "top_p": 0, "repeat_last_n": -1 } });
    assert_eq!(server.schema_error("/api/generate", &body), None);
    assert_eq!(server.post("/api/generate", &body).status, 200);
}
