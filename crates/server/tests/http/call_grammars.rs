//! Grammars of answers that call tools.

use super::tools::{CALL, tools};
use super::*;

/// Whether an answer that keeps to the last request's grammar may be this text, from its first byte to its last.
pub(super) fn accepts(server: &TestServer, text: &str) -> bool {
    let Some(mut constraint) = server.last_request().constraint else {
        return true;
    };
    for id in bytes(text) {
        if constraint.mask().is_some_and(|mask| !mask.allows(id)) {
            return false;
        }
        constraint.consume(id);
    }
    constraint.may_stop()
}

fn call(name: &str, arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

#[test]
fn a_required_call_keeps_to_a_grammar() {
    let server = TestServer::start(|_| says(CALL));
    let ask = |extra: Value| {
        let answer = server.chat(support::merged(json!({ "tools": tools() }), extra));
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["choices"][0].clone()
    };
    let choice = ask(json!({ "tool_choice": "required" }));
    assert_eq!(choice["finish_reason"], "tool_calls");
    let rome = call("weather", "{\"city\": \"Rome\"}");
    let both = format!("{rome}\n{}", call("time", "{\"city\": \"\"}"));
    for text in [
        &rome,
        &both,
        &format!("\n\n{rome}"),
        &call("time", "{\"city\":\"x\"}"),
    ] {
        assert!(accepts(&server, text), "{text}");
    }
    for text in [
        "",
        "Hi",
        &format!("Hi {rome}"),
        &call("other", "{}"),
        &call("weather", "{}"),
        &call("weather", "{\"city\": 5}"),
        &call("weather", "{\"city\": \"a\", \"more\": 1}"),
        &format!("{rome}\nDone."),
    ] {
        assert!(!accepts(&server, text), "{text}");
    }
    ask(json!({ "tool_choice": "required", "parallel_tool_calls": false }));
    assert!(accepts(&server, &rome) && !accepts(&server, &both));

    let named = json!({ "type": "function", "function": { "name": "time" } });
    let server_named = TestServer::start(|_| says(&call("time", "{\"city\": \"Rome\"}")));
    let answer = server_named
        .chat(json!({ "tools": tools(), "tool_choice": named }))
        .json();
    let choice = &answer["choices"][0];
    // As OpenAI's: the call was no choice of the model's.
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["name"],
        "time"
    );
    assert!(accepts(&server_named, &call("time", "{\"city\": \"a\"}")));
    assert!(!accepts(&server_named, &rome));

    let only = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "required", "tools": [named] } });
    ask(json!({ "tool_choice": only }));
    assert!(accepts(&server, &call("time", "{\"city\": \"a\"}")) && !accepts(&server, &rome));
}

#[test]
fn only_allowed_tools_are_called() {
    let allowed = |names: &[&str]| {
        let function = |name| json!({ "type": "function", "function": { "name": name } });
        let list: Vec<Value> = names.iter().map(function).collect();
        json!({ "tools": tools(), "tool_choice": { "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": list } } })
    };
    let server = TestServer::start(|_| says(CALL));
    let all = server.chat(json!({ "tools": tools() })).json();
    let prompt = server.last_request().prompt;
    // The prompt stays the same, whichever tools are allowed.
    let answer = server.chat(allowed(&["weather"])).json();
    assert_eq!(server.last_request().prompt, prompt);
    let called =
        |answer: &Value| answer["choices"][0]["message"]["tool_calls"][0]["function"].clone();
    assert_eq!(called(&answer), called(&all));
    let rome = call("weather", "{\"city\": \"Rome\", \"more\": 1}");
    for text in [
        "Just text.",
        "<tool>",
        &format!("I look.\n{rome}\n{rome}"),
        &rome,
    ] {
        assert!(accepts(&server, text), "{text}");
    }
    for text in [
        call("time", "{\"city\": \"a\"}"),
        format!("I look.\n{}", call("time", "{}")),
        format!("{rome}\n{}", call("time", "{}")),
        call("weather", "[]"),
    ] {
        assert!(!accepts(&server, &text), "{text}");
    }

    // A call of another tool is text, where nothing kept the model from it.
    for names in [&["time"] as &[&str], &[]] {
        let body = allowed(names);
        let answer = server.chat(body.clone()).json();
        assert_eq!(server.last_request().prompt, prompt);
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], CALL, "{names:?}");
        assert_eq!(choice["message"].get("tool_calls"), None);
        assert_eq!(choice["finish_reason"], "stop");
        let streamed = server.chat(support::merged(body, json!({ "stream": true })));
        assert_eq!(streamed_text(&streamed.events(), 0), CALL);
        assert!(!streamed.text.contains("tool_calls"), "{}", streamed.text);
    }

    let mut body = allowed(&["weather"]);
    body["tools"][0]["function"]["strict"] = json!(true);
    server.chat(body);
    let bare = |arguments: &str| format!("{{\"name\": \"weather\", \"arguments\": {arguments}}}");
    assert!(accepts(&server, &bare("{\"city\": \"Rome\"}")));
    assert!(!accepts(&server, &bare("{\"city\": 1}")) && !accepts(&server, &rome));

    // The same for the API of responses.
    let list: Vec<Value> = tools()
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| support::merged(tool["function"].clone(), json!({ "type": "function" })))
        .collect();
    let choice = json!({ "type": "allowed_tools", "mode": "auto", "tools": [{ "type": "function", "name": "time" }] });
    let body = json!({ "input": "hi", "tools": list, "tool_choice": choice });
    let answer = server.post("/v1/responses", &body).json();
    assert_eq!(answer["output"][0]["content"][0]["text"], CALL, "{answer}");
    assert!(accepts(&server, &call("time", "{}")) && !accepts(&server, &rome));
    let streamed = server.post(
        "/v1/responses",
        &support::merged(body.clone(), json!({ "stream": true })),
    );
    assert!(
        !streamed.text.contains("function_call"),
        "{}",
        streamed.text
    );
    let mut required = body;
    required["tool_choice"]["mode"] = json!("required");
    server.post("/v1/responses", &required);
    let time = call("time", "{\"city\": \"Rome\"}");
    assert!(accepts(&server, &time) && !accepts(&server, &rome));
    assert!(!accepts(&server, "Just text."));
}

#[test]
fn only_allowed_functions_are_called() {
    let server = TestServer::start_with(&["--tool-call-parser", "qwen3_coder"], |_| {
        says(
            "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        )
    });
    let ask = |name: &str| {
        let function = json!({ "type": "function", "function": { "name": name } });
        let choice = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "auto", "tools": [function] } });
        server
            .chat(json!({ "tools": tools(), "tool_choice": choice }))
            .json()["choices"][0]["message"]
            .clone()
    };
    let function = |name: &str| {
        format!(
            "<tool_call>\n<function={name}>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>"
        )
    };
    assert_eq!(
        ask("weather")["tool_calls"][0]["function"]["name"],
        "weather"
    );
    assert_eq!(ask("time")["content"], function("weather"));
    for text in [function("time"), call("time", "{}"), "text".to_owned()] {
        assert!(accepts(&server, &text), "{text}");
    }
    for text in [function("weather"), call("weather", "{}")] {
        assert!(!accepts(&server, &text), "{text}");
    }
}

#[test]
fn calls_of_strict_tools_keep_to_their_schemas() {
    let server = TestServer::start(|_| says("x"));
    let mut list = tools();
    server.chat(json!({ "tools": list }));
    assert!(server.last_request().constraint.is_none());
    list[0]["function"]["strict"] = json!(true);
    server.chat(json!({ "tools": list }));
    let bare = |arguments: &str| {
        format!("So:\n```json\n{{\n  \"name\": \"weather\",\n  \"arguments\": {arguments}\n}}\n```")
    };
    for text in [
        "Just text, with \"name\": \"Ada\" in it.",
        &call("weather", "{\"city\": \"Rome\"}"),
        &call("time", "{\"anything\": 1}"),
        &bare("{\n    \"city\": \"Rome\"\n  }"),
        "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":\"Rome\"}}</tool_call>",
        // JSON with the tool's name that is no call.
        "{\"version\": \"1.0.0\", \"name\": \"weather\", \"private\": true}",
        "{\"name\": \"weather\"}, {\"name\":\"weather\",\"a\":1,\"args\":2}, {\"name\" : \"weather\" ,\n  \"\": 1}",
        "{\"name\": \"weather\", \"argument\": 1, \"argumentsOf\": {\"city\": 1}}",
        &call("time", "{\"name\": \"weather\"}"),
    ] {
        assert!(accepts(&server, text), "{text}");
    }
    for text in [
        call("weather", "{\"city\": 1}"),
        call("weather", "{}"),
        bare("{\"town\": \"Rome\"}"),
        "<tool_call>{\"name\":\"weather\",\"arguments\":{\"city\":1}}</tool_call>".to_owned(),
        "{\"name\" : \"weather\" , \"arguments\" : {\"city\": 1}}".to_owned(),
    ] {
        assert!(!accepts(&server, &text), "{text}");
    }
}

#[test]
fn an_answer_is_a_call_or_in_the_format() {
    let server = TestServer::start(|_| says("x"));
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": "object",
        "properties": { "a": { "type": "integer" } }, "required": ["a"], "additionalProperties": false } } });
    server.chat(json!({ "tools": tools(), "response_format": format }));
    assert!(accepts(&server, "{\"a\": 1}") && accepts(&server, &call("time", "{\"city\": \"a\"}")));
    assert!(!accepts(&server, "Hello") && !accepts(&server, "{\"b\": 1}"));
    let both = server
        .chat(json!({ "tools": tools(), "response_format": format, "tool_choice": "required" }));
    assert_eq!(
        (both.status, &both.json()["error"]["param"]),
        (400, &json!("tool_choice"))
    );
}

#[test]
fn a_grammar_begins_behind_reasoning() {
    let flags = ["--trust-request-chat-template"];
    let server = TestServer::start_with(&flags, |_| says("x"));
    let yes = json!({ "structured_outputs": { "choice": ["yes", "no"] } });
    let hybrid = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}";
    let with = |template: &str, extra: Value| {
        let body = support::merged(yes.clone(), json!({ "chat_template": template }));
        let answer = server.chat(support::merged(body, extra));
        assert_eq!(answer.status, 200, "{}", answer.text);
    };
    with(hybrid, json!({}));
    for (text, accepted) in [
        ("<think>no?</think>\n\nyes", true),
        ("yes", true),
        ("<think>no?</think>maybe", false),
        ("maybe", false),
    ] {
        assert_eq!(accepts(&server, text), accepted, "{text}");
    }
    with(
        hybrid,
        json!({ "chat_template_kwargs": { "enable_thinking": false } }),
    );
    assert!(accepts(&server, "yes") && !accepts(&server, "<think>"));
    let open = "{{ messages[0].content }}<think>\n";
    with(open, json!({}));
    assert!(accepts(&server, "no?</think>\n\nyes") && !accepts(&server, "yes"));
    // What cannot be a part of another grammar.
    let structures = json!([{ "begin": "<a>", "schema": {}, "end": "</a>" }]);
    for (outputs, param) in [
        (
            json!({ "choice": ["", "yes"] }),
            "structured_outputs.choice",
        ),
        (
            json!({ "structural_tag": { "structures": structures, "triggers": ["<a"] } }),
            "structured_outputs.structural_tag",
        ),
    ] {
        let body = json!({ "structured_outputs": outputs, "chat_template": open });
        let refused = server.chat(body);
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["param"]),
            (400, &json!(param)),
            "{error}"
        );
        assert!(
            error["message"].as_str().unwrap().contains("</think>"),
            "{error}"
        );
    }
}

#[test]
fn a_grammar_begins_behind_reasoning_that_nobody_looks_for() {
    let flags = [
        "--trust-request-chat-template",
        "--reasoning-parser",
        "none",
    ];
    let server = TestServer::start_with(&flags, |_| says("x"));
    let object = json!({ "type": "json_object" });
    let open = "{{ messages[0].content }}<think>\n";
    server.chat(json!({ "response_format": object, "chat_template": open }));
    assert!(accepts(&server, "{no?</think>\n{\"a\": 1}") && !accepts(&server, "{}"));
    let continues = |begun: &str| {
        let messages =
            json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": begun }]);
        let body = json!({ "messages": messages, "continue_final_message": true, "response_format": object });
        let answer = server.chat(support::merged(
            body,
            json!({ "add_generation_prompt": false }),
        ));
        assert_eq!(answer.status, 200, "{}", answer.text);
    };
    continues("<think>so");
    assert!(accepts(&server, " it is</think>{}") && !accepts(&server, "{}"));
    continues("<think>so</think>");
    assert!(accepts(&server, "{}") && !accepts(&server, " it is</think>{}"));
}

#[test]
fn schemas_that_no_grammar_takes_are_refused() {
    let server = TestServer::start(|_| says("x"));
    let mut list = tools();
    list[0]["function"]["parameters"] =
        json!({ "type": "object", "properties": { "a": { "type": "number", "multipleOf": "x" } } });
    let answer = server.chat(json!({ "tools": list, "tool_choice": "required" }));
    let error = &answer.json()["error"];
    assert_eq!(
        (answer.status, &error["param"]),
        (400, &json!("tools[0].function.parameters")),
        "{error}"
    );
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("`weather`") && !message.contains("%json"),
        "{message}"
    );
    // One that nothing ends.
    list[0]["function"]["parameters"] =
        json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] });
    let answer = server.chat(json!({ "tools": list, "tool_choice": "required" }));
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "tools[0].function.parameters");
    assert!(
        error["message"].as_str().unwrap().contains("has no end"),
        "{error}"
    );
    assert_eq!(server.chat(json!({ "tools": list })).status, 200);
    // The place is that of the request's list, whichever tools are allowed.
    let function = json!({ "type": "function", "function": { "name": "weather" } });
    let only = json!({ "type": "allowed_tools", "allowed_tools": { "mode": "required", "tools": [function] } });
    list.as_array_mut().unwrap().reverse();
    let answer = server.chat(json!({ "tools": list, "tool_choice": only }));
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "tools[1].function.parameters", "{error}");
    // Responses and Messages name it in their own way.
    let tools: Vec<Value> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| &tool["function"])
        .map(|function| support::merged(function.clone(), json!({ "type": "function" })))
        .collect();
    let body = json!({ "model": "base", "input": "x", "tools": tools, "tool_choice": "required" });
    let answer = server.post("/v1/responses", &body);
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "tools[1].parameters", "{error}");
}

#[test]
fn a_tool_is_named_only_where_its_schema_is_in_the_grammar() {
    let server = TestServer::start(|_| says("x"));
    let mut list = tools();
    list[0]["function"]["strict"] = json!(true);
    list[0]["function"]["parameters"] =
        json!({ "type": "object", "properties": { "a": { "type": "number", "multipleOf": "x" } } });
    let param = |fields: Value| {
        let answer = server.chat(support::merged(json!({ "tools": list }), fields));
        answer.json()["error"]["param"].clone()
    };
    assert_eq!(param(json!({})), "tools[0].function.parameters");
    assert_eq!(param(json!({ "guided_regex": "(" })), "guided_regex");
    let format = json!({ "type": "json_object" });
    assert_eq!(
        param(json!({ "response_format": format })),
        "tools[0].function.parameters"
    );
}
