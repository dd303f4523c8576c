use super::*;
use crate::protocol::fields::Endpoint;

fn taken(request: Value) -> Result<Prompt, ApiError> {
    let mut body = Body::of(request);
    body.check(Endpoint::Messages)?;
    let prompt = Prompt::take(&mut body)?;
    AnswerFields::read(&body)?;
    Ok(prompt)
}

fn request(messages: Value) -> Value {
    json!({ "model": "m", "max_tokens": 8, "messages": messages })
}

fn with(field: &str, value: Value) -> Value {
    let mut request = request(json!([{ "role": "user", "content": "hi" }]));
    request[field] = value;
    request
}

/// The messages as one value.
fn messages(request: Value) -> Value {
    let messages = taken(request).unwrap().messages;
    messages.into_iter().map(Value::Object).collect()
}

#[test]
fn a_conversation_with_tools_is_openais() {
    let found = messages(request(json!([
        { "role": "user", "content": [{ "type": "text", "text": "a", "cache_control": { "type": "ephemeral" } }] },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "b", "signature": "" },
            { "type": "redacted_thinking", "data": "xyz" },
            { "type": "text", "text": "c" },
            { "type": "tool_use", "id": "toolu_1", "name": "f", "input": { "x": 1 } },
            { "type": "tool_use", "id": "toolu_2", "name": "g", "input": {} },
        ] },
        { "role": "user", "content": [
            { "type": "text", "text": "f" },
            { "type": "tool_result", "tool_use_id": "toolu_1", "content": "d" },
            { "type": "tool_result", "tool_use_id": "toolu_2", "is_error": true,
              "content": [{ "type": "text", "text": "e1" }, { "type": "text", "text": "e2" }] },
        ] },
    ])));
    let call = |id: &str, name: &str, arguments: Value| {
        json!({ "id": id, "type": "function",
        "function": { "name": name, "arguments": arguments } })
    };
    let expected = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": "c", "reasoning_content": "b",
          "tool_calls": [call("toolu_1", "f", json!({ "x": 1 })), call("toolu_2", "g", json!({}))] },
        { "role": "tool", "content": "d", "name": "f", "tool_call_id": "toolu_1" },
        { "role": "tool", "content": "Error: e1\ne2", "name": "g", "tool_call_id": "toolu_2" },
        { "role": "user", "content": "f" },
    ]);
    assert_eq!(found, expected);
}

#[test]
fn a_call_without_text_has_no_content() {
    let call = json!({ "type": "tool_use", "id": "1", "name": "f" });
    let result = json!({ "type": "tool_result", "tool_use_id": "1", "is_error": true });
    let found = messages(request(json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": [call] },
        { "role": "user", "content": [result] },
    ])));
    assert_eq!(found[1]["content"], Value::Null);
    assert_eq!(found[2]["content"], "Error");
    assert_eq!(found.as_array().unwrap().len(), 3);
}

#[test]
fn instructions_come_first_or_stay_in_their_turn() {
    let mut leading = with(
        "system",
        json!([
            { "type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=ab;" },
            { "type": "text", "text": "a", "cache_control": { "type": "ephemeral" } },
            { "type": "text", "text": "b" },
        ]),
    );
    leading["messages"] =
        json!([{ "role": "system", "content": "c" }, { "role": "user", "content": "d" }]);
    assert_eq!(
        messages(leading),
        json!([{ "role": "system", "content": "a\nb\n\nc" }, { "role": "user", "content": "d" }])
    );
    let system = |text: &str| json!({ "role": "system", "content": text });
    let user = |text: &str| json!({ "role": "user", "content": text });
    let assistant = |text: &str| json!({ "role": "assistant", "content": text });
    for (given, expected) in [
        (json!([user("a"), system("b")]), json!([user("a\n\nb")])),
        (
            json!([user("a"), assistant("b"), system("c"), user("d")]),
            json!([user("a"), assistant("b"), user("c\n\nd")]),
        ),
        (
            json!([user("a"), assistant("b"), system("c"), assistant("d")]),
            json!([user("a"), assistant("b"), user("c"), assistant("d")]),
        ),
        (
            json!([user("a"), assistant("b"), system("c")]),
            json!([user("a"), assistant("b"), user("c")]),
        ),
    ] {
        assert_eq!(messages(request(given)), expected);
    }
    let call = json!({ "type": "tool_use", "id": "1", "name": "f", "input": {} });
    let result = json!({ "type": "tool_result", "tool_use_id": "1", "content": "r" });
    let found = messages(request(json!([
        user("a"), { "role": "assistant", "content": [call] }, system("b"), { "role": "user", "content": [result] },
    ])));
    assert_eq!(found[2]["content"], "r\n\nb");
    assert_eq!(found.as_array().unwrap().len(), 3);
}

#[test]
fn a_last_turn_of_the_assistant_is_continued() {
    let last = |content: Value| {
        let request = request(json!([
            { "role": "user", "content": "a" }, { "role": "assistant", "content": content },
        ]));
        taken(request).unwrap().template.continue_final_message
    };
    assert_eq!(last(json!("The answer is (")), Some(true));
    let call = json!([{ "type": "tool_use", "id": "1", "name": "f", "input": {} }]);
    assert_eq!(last(call), None);
}

#[test]
fn tools_are_functions() {
    let tool = json!({ "name": "f", "description": "d", "input_schema": { "properties": {} }, "type": "custom",
        "cache_control": { "type": "ephemeral" }, "strict": true });
    let tools = taken(with("tools", json!([tool]))).unwrap().template.tools;
    let function = json!({ "name": "f", "description": "d", "strict": true,
        "parameters": { "properties": {}, "type": "object" } });
    assert_eq!(
        tools.unwrap(),
        [json!({ "type": "function", "function": function })]
    );
    for (choice, expected, only_one) in [
        (json!({ "type": "auto" }), json!("auto"), false),
        (json!({ "type": "none" }), json!("none"), false),
        (
            json!({ "type": "any", "disable_parallel_tool_use": true }),
            json!("required"),
            true,
        ),
        (
            json!({ "type": "tool", "name": "f" }),
            json!({ "type": "function", "function": { "name": "f" } }),
            false,
        ),
    ] {
        let prompt = taken(with("tool_choice", choice)).unwrap();
        assert_eq!(
            (prompt.tool_choice, prompt.only_one_call),
            (Some(expected), only_one)
        );
    }
}

#[test]
fn thinking_and_formats_are_told() {
    let template = |thinking: Value, effort: Value| {
        let mut request = with("thinking", thinking);
        request["max_tokens"] = json!(4096);
        request["output_config"] = json!({ "effort": effort });
        let prompt = taken(request).unwrap();
        let on = prompt.template.chat_template_kwargs;
        let on = on.and_then(|kwargs| kwargs["enable_thinking"].as_bool());
        let budget = prompt.thinking_budget;
        (prompt.template.reasoning_effort, on, budget, prompt.shown)
    };
    let none = Value::Null;
    assert_eq!(
        template(
            json!({ "type": "enabled", "budget_tokens": 1024 }),
            none.clone()
        ),
        (None, Some(true), Some(1024), ThinkingShown::Text)
    );
    assert_eq!(
        template(
            json!({ "type": "adaptive", "display": "omitted" }),
            json!("high")
        ),
        (
            Some(ReasoningEffort::High),
            None,
            None,
            ThinkingShown::Blocks
        )
    );
    assert_eq!(
        template(json!({ "type": "disabled" }), json!("max")),
        (
            Some(ReasoningEffort::None),
            Some(false),
            None,
            ThinkingShown::Nothing
        )
    );
    let schema = json!({ "type": "object" });
    let format = json!({ "type": "json_schema", "schema": schema });
    for (field, value) in [
        ("output_config", json!({ "format": format })),
        ("output_format", format.clone()),
    ] {
        let grammar = taken(with(field, value)).unwrap().grammar.unwrap().grammar;
        assert_eq!(grammar, Grammar::JsonSchema(schema.clone()));
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let user = |block: Value| request(json!([{ "role": "user", "content": [block] }]));
    let assistant = |block: Value| request(json!([{ "role": "assistant", "content": [block] }]));
    let format = json!({ "type": "json_schema", "schema": {} });
    let mut two_formats = with("output_config", json!({ "format": format }));
    two_formats["output_format"] = format;
    let tool = |tool: Value| with("tools", json!([tool]));
    let block = "messages[0].content[0]";
    for (request, param) in [
        (
            user(json!({ "type": "image", "source": {} })),
            format!("{block}.type"),
        ),
        (
            user(json!({ "type": "document", "source": {} })),
            format!("{block}.type"),
        ),
        (
            user(json!({ "type": "tool_use", "id": "1", "name": "f" })),
            format!("{block}.type"),
        ),
        (user(json!({ "text": "x" })), format!("{block}.type")),
        (user(json!({ "type": "text" })), format!("{block}.text")),
        (user(json!("x")), block.to_owned()),
        (
            user(json!({ "type": "tool_result", "content": "x" })),
            format!("{block}.tool_use_id"),
        ),
        (
            user(
                json!({ "type": "tool_result", "tool_use_id": "1", "content": [{ "type": "image" }] }),
            ),
            format!("{block}.content[0].type"),
        ),
        (
            user(json!({ "type": "tool_result", "tool_use_id": "1", "is_error": 2 })),
            format!("{block}.is_error"),
        ),
        (
            assistant(json!({ "type": "tool_use", "id": "1", "name": "f", "input": "x" })),
            format!("{block}.input"),
        ),
        (
            assistant(json!({ "type": "server_tool_use", "id": "1", "name": "web_search" })),
            format!("{block}.type"),
        ),
        (
            request(json!([{ "role": "tool", "content": "x" }])),
            "messages[0].role".to_owned(),
        ),
        (
            request(json!([{ "role": "user" }])),
            "messages[0].content".to_owned(),
        ),
        (request(json!("hi")), "messages".to_owned()),
        (
            json!({ "model": "m", "max_tokens": 1 }),
            "messages".to_owned(),
        ),
        (
            json!({ "model": "m", "messages": [] }),
            "max_tokens".to_owned(),
        ),
        (
            json!({ "max_tokens": 1, "messages": [] }),
            "model".to_owned(),
        ),
        (with("max_tokens", json!(0)), "max_tokens".to_owned()),
        (
            with("system", json!([{ "type": "image" }])),
            "system[0].type".to_owned(),
        ),
        (
            with("stop_sequences", json!([""])),
            "stop_sequences".to_owned(),
        ),
        (
            with("stop_sequences", json!("x")),
            "stop_sequences".to_owned(),
        ),
        (
            tool(json!({ "type": "web_search_20250305", "name": "web_search" })),
            "tools[0].type".to_owned(),
        ),
        (
            tool(json!({ "type": "bash_20250124", "name": "bash" })),
            "tools[0].type".to_owned(),
        ),
        (
            tool(json!({ "name": "f" })),
            "tools[0].input_schema".to_owned(),
        ),
        (
            tool(json!({ "input_schema": {} })),
            "tools[0].name".to_owned(),
        ),
        (
            with("thinking", json!({ "type": "enabled", "budget_tokens": 5 })),
            "thinking.budget_tokens".to_owned(),
        ),
        (
            with(
                "thinking",
                json!({ "type": "enabled", "budget_tokens": 4000 }),
            ),
            "thinking.budget_tokens".to_owned(),
        ),
        (
            with("tool_choice", json!({ "type": "some" })),
            "tool_choice".to_owned(),
        ),
        (
            with("tool_choice", json!(["auto", true])),
            "tool_choice".to_owned(),
        ),
        (with("thinking", json!(["disabled"])), "thinking".to_owned()),
        (
            with("output_config", json!(["low", null])),
            "output_config".to_owned(),
        ),
        (
            with(
                "output_config",
                json!({ "format": { "type": "json_schema", "schema": {}, "zzz": 1 } }),
            ),
            "output_config.format.zzz".to_owned(),
        ),
        (two_formats, "output_format".to_owned()),
        (
            with("mcp_servers", json!([{ "url": "x" }])),
            "mcp_servers".to_owned(),
        ),
        (with("container", json!("x")), "container".to_owned()),
        (with("n", json!(2)), "n".to_owned()),
    ] {
        let error = taken(request.clone()).unwrap_err();
        let found = error.param.as_deref().unwrap_or_default();
        assert!(found.starts_with(param.as_str()), "{request}: {error:?}");
        assert!(error.message.contains(&param), "{error:?}");
    }
    for (field, value) in [
        ("metadata", json!({ "user_id": "u" })),
        ("service_tier", json!("auto")),
        ("mcp_servers", json!([])),
        ("context_management", json!({ "edits": [] })),
        ("cache_control", json!({ "type": "ephemeral" })),
        ("thinking", Value::Null),
        ("output_config", Value::Null),
    ] {
        assert!(taken(with(field, value)).is_ok(), "{field}");
    }
}

#[test]
fn a_share_of_nothing_leaves_the_likeliest_token() {
    for (top_p, expected) in [(0.0, (None, Some(1))), (0.5, (Some(0.5), None))] {
        let body = Body::of(with("top_p", json!(top_p)));
        let sampling = AnswerFields::read(&body).unwrap().sampling();
        assert_eq!((sampling.top_p, sampling.top_k), expected);
    }
}
