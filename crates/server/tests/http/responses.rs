//! `/v1/responses`: answers, events and refusals.

use super::support::{Answer, merged};
use super::*;

pub(super) fn respond(server: &TestServer, extra: Value) -> Answer {
    server.post("/v1/responses", &merged(json!({ "input": "hi" }), extra))
}

/// The prompt of the last request, which the scripted template writes as `r:content;`.
pub(super) fn last_prompt(server: &TestServer) -> String {
    let prompt = server.last_request().prompt;
    let text = prompt.iter().filter(|&&id| id < 256).map(|&id| id as u8);
    String::from_utf8(text.collect()).unwrap()
}

/// The events of a stream, after checking that each has a line with its type and a number.
fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let events = answer.text.split_terminator("\n\n").enumerate();
    let event = |(i, text): (usize, &str)| {
        let (name, data) = text.split_once('\n').unwrap();
        let (name, data) = match name.strip_prefix("event: ") {
            Some(name) => (name, data.strip_prefix("data: ").unwrap()),
            None => (
                data.strip_prefix("event: ").unwrap(),
                name.strip_prefix("data: ").unwrap(),
            ),
        };
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            (event["type"].as_str(), &event["sequence_number"]),
            (Some(name), &json!(i))
        );
        event
    };
    events.map(event).collect()
}

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!({ "type": "function", "name": "weather", "parameters": parameters, "strict": null })
}

const CALL: &str =
    "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rom\"}}\n</tool_call>";

#[test]
fn an_answer_has_all_fields() {
    let server = TestServer::start(|_| says("Grüße"));
    let extra = json!({ "model": "alias", "instructions": "be kind", "temperature": 0.3, "metadata": { "k": "v" }, "user": "me",
        "reasoning": { "effort": "low", "summary": "auto" }, "max_output_tokens": 50, "seed": 5, "top_k": 3 });
    let answer = respond(&server, extra);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let mut body = answer.json();
    let id = body["id"].as_str().unwrap().to_owned();
    let item = body["output"][0]["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("resp_") && item.starts_with("msg_"));
    for time in ["created_at", "completed_at"] {
        assert!(body[time].as_u64().unwrap() > 1_700_000_000);
        body.as_object_mut().unwrap().remove(time);
    }
    // The prompt is `s:be kind;u:hi;` and the generation prompt; the output is 7 bytes and the end of sequence.
    let content =
        json!([{ "type": "output_text", "text": "Grüße", "annotations": [], "logprobs": [] }]);
    assert_eq!(
        body,
        json!({ "id": id, "object": "response", "status": "completed", "background": false, "error": null,
            "incomplete_details": null, "instructions": "be kind", "max_output_tokens": 50, "max_tool_calls": null,
            "model": "alias", "parallel_tool_calls": true, "previous_response_id": null, "prompt_cache_key": null,
            "output": [{ "id": item, "type": "message", "role": "assistant", "content": content, "status": "completed" }],
            "reasoning": { "effort": "low", "summary": "auto" }, "safety_identifier": null, "service_tier": "default",
            "store": true, "temperature": 0.3, "text": { "format": { "type": "text" }, "verbosity": "medium" },
            "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "truncation": "disabled", "user": "me", "metadata": { "k": "v" },
            "usage": { "input_tokens": 16, "input_tokens_details": { "cached_tokens": 2, "cache_write_tokens": 0 },
                "output_tokens": 8, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 24 } })
    );
    assert_eq!(last_prompt(&server), "s:be kind;u:hi;");
    let request = server.last_request();
    assert_eq!(
        (
            request.max_tokens,
            request.sampling.seed,
            request.sampling.top_k
        ),
        (50, Some(5), 3)
    );
}

#[test]
fn text_is_streamed_in_events() {
    let server = TestServer::start(|_| says("né"));
    let found = events(&respond(&server, json!({ "stream": true })));
    let types: Vec<_> = found
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let created = &found[0]["response"];
    assert_eq!(
        (&created["status"], &created["output"], &created["usage"]),
        (&json!("in_progress"), &json!([]), &Value::Null)
    );
    let done = &found[9]["response"];
    assert_eq!(
        (&done["id"], &done["status"]),
        (&created["id"], &json!("completed"))
    );
    assert_eq!(done["output"], json!([found[8]["item"]]));
    assert_eq!(done["output"][0]["content"][0]["text"], "né");
    assert_eq!(done["usage"]["output_tokens"], 4);
    // What is streamed and what is not are the same but for ids and times.
    let whole = respond(&server, json!({})).json();
    assert_eq!(whole["usage"], done["usage"]);
    assert_eq!(whole["output"][0]["content"], done["output"][0]["content"]);
    let keys = [&whole, done, created].map(|response| {
        let keys = response.as_object().unwrap().keys();
        keys.cloned().collect::<Vec<_>>()
    });
    assert!(keys[0] == keys[1] && keys[1] == keys[2]);
}

#[test]
fn reasoning_and_calls_are_items() {
    let answer = format!("Hm.</think>ok{CALL}");
    let server = TestServer::start_with(&["--reasoning-parser", "deepseek_r1"], move |_| {
        says(&answer)
    });
    let extra = json!({ "tools": [weather()], "include": ["message.output_text.logprobs"], "top_logprobs": 1 });
    let body = respond(&server, extra.clone()).json();
    assert!(last_prompt(&server).contains("tools=1;"));
    let output = body["output"].as_array().unwrap();
    assert_eq!(
        output[0]["content"],
        json!([{ "type": "reasoning_text", "text": "Hm." }])
    );
    assert_eq!(output[1]["content"][0]["text"], "ok");
    let logprobs = output[1]["content"][0]["logprobs"].as_array().unwrap();
    let tokens: Vec<_> = logprobs
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, ["o", "k"]);
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 1);
    assert_eq!(
        (
            &output[2]["type"],
            &output[2]["name"],
            &output[2]["arguments"],
            &output[2]["status"]
        ),
        (
            &json!("function_call"),
            &json!("weather"),
            &json!("{\"city\": \"Rom\"}"),
            &json!("completed")
        )
    );
    assert!(output[2]["call_id"].as_str().unwrap().starts_with("call_"));
    assert!(
        body["usage"]["output_tokens_details"]["reasoning_tokens"]
            .as_u64()
            .unwrap()
            >= 3
    );
    assert_eq!(
        (&body["tools"][0]["name"], &body["top_logprobs"]),
        (&json!("weather"), &json!(1))
    );

    let streamed = events(&respond(&server, merged(extra, json!({ "stream": true }))));
    let joined = |of_type: &str| -> String {
        let deltas = streamed.iter().filter(|event| event["type"] == of_type);
        deltas
            .map(|event| event["delta"].as_str().unwrap())
            .collect()
    };
    assert_eq!(joined("response.reasoning_text.delta"), "Hm.");
    assert_eq!(joined("response.output_text.delta"), "ok");
    assert_eq!(
        joined("response.function_call_arguments.delta"),
        "{\"city\": \"Rom\"}"
    );
    let last = streamed.last().unwrap();
    assert_eq!(
        last["response"]["output"][1]["content"],
        output[1]["content"]
    );

    let hidden = respond(
        &server,
        json!({ "tools": [weather()], "include_reasoning": false }),
    )
    .json();
    let types: Vec<_> = hidden["output"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["type"].clone())
        .collect();
    assert_eq!(types, ["message", "function_call"]);
}

/// Two turns of a coding agent that keeps its conversation itself.
#[test]
fn an_agent_has_its_tools_and_its_reasoning() {
    let call = "Hm.</think><tool_call>\n{\"name\": \"apply_patch\", \"arguments\": {\"input\": \"*** Begin\\n+é\"}}\n</tool_call>";
    let server =
        TestServer::start_with(&["--reasoning-parser", "deepseek_r1"], move |_| says(call));
    let grammar =
        json!({ "type": "grammar", "syntax": "lark", "definition": "start: \"*** Begin\" /.*/" });
    let patch =
        json!({ "type": "custom", "name": "apply_patch", "description": "d", "format": grammar });
    let mcp = json!({ "type": "namespace", "name": "files", "description": "d", "tools": [
        { "type": "function", "name": "list", "description": null, "parameters": null, "strict": null }] });
    let search = json!({ "type": "web_search", "external_web_access": true });
    let extra = json!({ "tools": [search, weather(), patch, mcp], "store": false, "include": ["reasoning.encrypted_content"] });
    let body = respond(&server, extra.clone()).json();
    assert!(last_prompt(&server).contains("tools=3;"));
    let shown = body["tools"].as_array().unwrap();
    assert_eq!((shown.len(), &shown[1], &shown[2]), (3, &patch, &mcp));
    let output = body["output"].as_array().unwrap();
    assert_eq!(output[0]["encrypted_content"], "qwen-burn:Hm.");
    assert_eq!(
        (&output[1]["type"], &output[1]["name"], &output[1]["input"]),
        (
            &json!("custom_tool_call"),
            &json!("apply_patch"),
            &json!("*** Begin\n+é")
        )
    );
    let streamed = events(&respond(
        &server,
        merged(extra.clone(), json!({ "stream": true })),
    ));
    let delta = streamed
        .iter()
        .find(|event| event["type"] == "response.custom_tool_call_input.delta");
    assert_eq!(delta.unwrap()["delta"], "*** Begin\n+é");

    // The client sends back what it can keep.
    let mut thought = output[0].clone();
    thought.as_object_mut().unwrap().remove("content");
    let done = json!({ "type": "custom_tool_call_output", "call_id": output[1]["call_id"], "output": "ok" });
    let input = json!([{ "role": "user", "content": "u" }, thought, output[1], done]);
    let answer = respond(&server, merged(extra, json!({ "input": input })));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(last_prompt(&server).contains("t:ok;tools=3;"));
}

#[test]
fn what_is_cut_off_is_incomplete() {
    let server = TestServer::start(|_| Play::Tokens(bytes("abc").collect(), FinishReason::Length));
    let body = respond(&server, json!({ "max_output_tokens": 3 })).json();
    assert_eq!(
        (
            &body["status"],
            &body["incomplete_details"],
            &body["completed_at"]
        ),
        (
            &json!("incomplete"),
            &json!({ "reason": "max_output_tokens" }),
            &Value::Null
        )
    );
    assert_eq!(body["output"][0]["status"], "incomplete");
    let streamed = events(&respond(&server, json!({ "stream": true })));
    assert_eq!(streamed.last().unwrap()["type"], "response.incomplete");
    // Without a new item the answer goes on.
    let next = json!({ "previous_response_id": body["id"], "input": [] });
    let next = respond(&server, next);
    assert_eq!(next.status, 200, "{}", next.text);
    assert!(last_prompt(&server).ends_with("a:abc"));
}

#[test]
fn an_error_ends_a_stream_as_an_event() {
    let fails = || {
        Play::Fails(
            bytes("ab").collect(),
            SequenceError::Failed("no memory".to_owned()),
        )
    };
    let server = TestServer::start(move |_| fails());
    let found = events(&respond(&server, json!({ "stream": true })));
    let last = found.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    let failed = &last["response"];
    assert_eq!(
        (&failed["status"], &failed["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    assert!(
        failed["error"]["message"]
            .as_str()
            .unwrap()
            .contains("no memory")
    );
    assert_eq!(failed["output"][0]["content"][0]["text"], "ab");
    assert_eq!(respond(&server, json!({})).status, 500);
}

#[test]
fn items_are_shown_to_the_template() {
    let server = TestServer::start(|_| says("x"));
    let call = json!({ "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}" });
    let output = json!({ "type": "function_call_output", "call_id": "c", "output": [{ "type": "input_text", "text": "7" }] });
    let input = json!([{ "role": "developer", "content": "d" }, { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "u" }] },
        { "type": "reasoning", "id": "rs_1", "summary": [] }, { "role": "assistant", "content": "a" }, call, output]);
    let answer = respond(&server, json!({ "input": input, "instructions": "i" }));
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(last_prompt(&server), "s:i;s:d;u:u;a:a;t:7;");
    // An answer that was cut off is continued.
    let begun = json!([{ "role": "user", "content": "u" }, { "role": "assistant", "content": "beg", "status": "incomplete" }]);
    assert_eq!(respond(&server, json!({ "input": begun })).status, 200);
    assert_eq!(last_prompt(&server), "u:u;a:beg");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let server = TestServer::start(|_| says("x"));
    let message = |content: Value| json!([{ "role": "user", "content": content }]);
    for (extra, param) in [
        (json!({ "input": null }), "input"),
        (json!({ "input": [] }), "input"),
        (
            json!({ "input": message(json!([{ "type": "input_image", "image_url": "x" }])) }),
            "input[0].content[0].type",
        ),
        (
            json!({ "input": [{ "type": "computer_call" }] }),
            "input[0].type",
        ),
        (
            json!({ "input": [{ "role": "odd", "content": "x" }] }),
            "input[0].role",
        ),
        (
            json!({ "input": [{ "role": "tool", "content": "x" }] }),
            "input[0].role",
        ),
        (json!({ "input": "x".repeat(300) }), "input"),
        (json!({ "tools": [{ "type": "odd" }] }), "tools[0].type"),
        (
            json!({ "tools": [{ "type": "web_search" }, { "type": "custom", "name": "p", "format":
                { "type": "grammar", "syntax": "regex", "definition": "(" } }] }),
            "tools[1].format.definition",
        ),
        // Right as a regular expression, but not as a grammar.
        (
            json!({ "tools": [{ "type": "custom", "name": "p", "format":
                { "type": "grammar", "syntax": "regex", "definition": r"a\bc" } }] }),
            "tools[0].format.definition",
        ),
        (
            json!({ "input": [{ "type": "reasoning", "summary": [], "encrypted_content": "gAAAA" }] }),
            "input[0].encrypted_content",
        ),
        (
            json!({ "tools": [weather()], "tool_choice": { "type": "function", "name": "f" } }),
            "tool_choice.name",
        ),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
        (json!({ "max_output_tokens": 5000 }), "max_output_tokens"),
        (json!({ "max_tool_calls": 0 }), "max_tool_calls"),
        (json!({ "top_logprobs": 21 }), "top_logprobs"),
        (json!({ "include": ["everything"] }), "include[0]"),
        (
            json!({ "reasoning": { "effort": "odd" } }),
            "reasoning.effort",
        ),
        (
            json!({ "text": { "format": { "type": "odd" } } }),
            "text.format.type",
        ),
        (json!({ "text": { "verbosity": "low" } }), "text.verbosity"),
        (
            json!({ "stream": true, "stream_options": { "include_obfuscation": true } }),
            "stream_options.include_obfuscation",
        ),
        (json!({ "truncation": "middle" }), "truncation"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "metadata": { "a": 1 } }), "metadata.a"),
        (json!({ "background": true }), "background"),
        (json!({ "conversation": "conv_1" }), "conversation"),
        (json!({ "prompt": { "id": "p" } }), "prompt"),
        (
            json!({ "response_format": { "type": "json_object" } }),
            "response_format",
        ),
        (json!({ "max_tokens": 5 }), "max_tokens"),
        (json!({ "n": 2 }), "n"),
    ] {
        let answer = respond(&server, extra.clone());
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, error["param"].as_str()),
            (400, Some(param)),
            "{extra}: {error}"
        );
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    let unknown = respond(&server, json!({ "model": "odd" }));
    assert_eq!(
        (unknown.status, unknown.json()["error"]["code"].clone()),
        (404, json!("model_not_found"))
    );
    for harmless in [
        json!({ "background": false, "conversation": null, "prompt": null, "n": 1, "service_tier": "auto" }),
        json!({ "include": ["reasoning.encrypted_content"], "store": false, "prompt_cache_key": "k", "text": { "format": { "type": "text" } } }),
        json!({ "truncation": "auto", "input": "x".repeat(300) }),
    ] {
        assert_eq!(respond(&server, harmless.clone()).status, 200, "{harmless}");
    }
    assert_eq!(server.last_request().prompt.len(), MAX_MODEL_LEN - 1);
}

#[test]
fn a_format_constrains_the_answer() {
    let server = TestServer::start(|_| says("{}"));
    let schema = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    let format = json!({ "type": "json_schema", "name": "n", "schema": schema, "strict": true });
    let answer = respond(&server, json!({ "text": { "format": format } })).json();
    assert_eq!(answer["text"]["format"], format);
    assert!(server.last_request().constraint.is_some());
    for constrained in [
        json!({ "text": { "format": { "type": "json_object" } } }),
        json!({ "structured_outputs": { "regex": "a+" } }),
        json!({ "tools": [weather()], "tool_choice": "required" }),
        json!({ "tools": [weather()], "tool_choice": { "type": "function", "name": "weather" } }),
    ] {
        let answer = respond(&server, constrained.clone());
        assert_eq!(answer.status, 200, "{constrained}: {}", answer.text);
        assert!(server.last_request().constraint.is_some(), "{constrained}");
    }
    respond(&server, json!({ "text": { "format": { "type": "text" } } }));
    assert!(server.last_request().constraint.is_none());
    let named = |format: Value| json!({ "text": { "format": format } });
    for (extra, param) in [
        (
            named(json!({ "type": "json_object", "schema": {} })),
            "text.format.schema",
        ),
        (
            named(json!({ "type": "json_schema", "schema": {} })),
            "text.format.name",
        ),
        (
            named(json!({ "type": "json_schema", "name": "n" })),
            "text.format.schema",
        ),
        (
            named(json!({ "type": "json_schema", "name": "n", "schema": { "type": "odd" } })),
            "text.format.schema",
        ),
        (
            named(json!({ "type": "json_schema", "name": "n", "schema": {}, "strict": 2 })),
            "text.format.strict",
        ),
        (
            json!({ "text": { "format": { "type": "json_object" } }, "structured_outputs": { "regex": "a" } }),
            "structured_outputs.regex",
        ),
    ] {
        let error = &respond(&server, extra.clone()).json()["error"];
        assert_eq!(error["param"].as_str(), Some(param), "{extra}: {error}");
        assert!(
            !error["message"]
                .as_str()
                .unwrap()
                .contains("response_format"),
            "{error}"
        );
    }
}
