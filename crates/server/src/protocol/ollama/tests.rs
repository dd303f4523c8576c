use super::*;
use crate::protocol::common::Texts;
use crate::protocol::sampling::MaxTokens;

fn chat(extra: Value) -> Result<Request, ApiError> {
    let mut request = json!({ "model": "m", "messages": [] });
    request
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    let mut body = Body::of(request);
    body.check(Endpoint::OllamaChat)?;
    take_messages(&mut body)?;
    take_tools(&mut body)?;
    Request::take(&mut body)
}

fn read(messages: Value) -> Result<Value, ApiError> {
    let mut body = Body::of(json!({ "messages": messages }));
    let messages = take_messages(&mut body)?.unwrap();
    Ok(messages.into_iter().map(Value::Object).collect())
}

#[test]
fn messages_are_openais() {
    let call = json!({ "function": { "name": "f", "arguments": { "x": 1 }, "index": 0 } });
    let found = read(json!([
        { "role": "system", "content": "a" },
        { "role": "user", "content": "b", "images": null },
        { "role": "assistant", "content": "", "thinking": "c", "tool_calls": [call] },
        { "role": "tool", "content": "d", "tool_name": "f" },
    ]));
    let mut called = call.clone();
    called["type"] = json!("function");
    let expected = json!([
        { "role": "system", "content": "a" },
        { "role": "user", "content": "b" },
        { "role": "assistant", "content": null, "reasoning_content": "c", "tool_calls": [called] },
        { "role": "tool", "content": "d", "name": "f" },
    ]);
    assert_eq!(found.unwrap(), expected);
    for (message, param) in [
        (
            json!({ "role": "user", "images": ["iVBO"] }),
            "messages[0].images",
        ),
        (
            json!({ "role": "user", "content": ["a"] }),
            "messages[0].content",
        ),
        (json!("hi"), "messages[0]"),
        (
            json!({ "role": "assistant", "tool_calls": [{}] }),
            "messages[0].tool_calls[0].function",
        ),
        (
            json!({ "role": "assistant", "tool_calls": [{ "function": { "name": "f", "arguments": "{}" } }] }),
            "messages[0].tool_calls[0].function.arguments",
        ),
    ] {
        let error = read(json!([message])).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
    }
}

#[test]
fn options_are_sampling_fields() {
    let options = json!({ "temperature": 0.5, "top_k": 40.0, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.5,
        "presence_penalty": 0.25, "frequency_penalty": 0.75, "seed": 7, "num_predict": 12, "stop": ["a", "b"],
        "num_ctx": 50, "num_thread": 8, "mirostat": 0, "typical_p": 1.0, "penalize_newline": true, "repeat_last_n": -1 });
    let request = chat(json!({ "options": options })).unwrap();
    let sampling = request.options.sampling();
    assert_eq!(
        (
            sampling.temperature,
            sampling.top_k,
            sampling.repetition_penalty,
            sampling.seed
        ),
        (Some(0.5), Some(40), Some(1.5), Some(7))
    );
    assert_eq!(sampling.penalty_window, None);
    assert_eq!(Texts::of(sampling.stop.as_ref()), ["a", "b"]);
    assert_eq!(request.options.max_tokens(), MaxTokens::AtMost(12));
    assert!(request.options.check_length(50).is_ok());
    let error = request.options.check_length(49).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("options.num_ctx"));

    let options = |options: Value| chat(json!({ "options": options }));
    let off = json!({ "num_predict": -1, "seed": -1, "top_k": -1, "repeat_last_n": 0, "repeat_penalty": 1.3 });
    let off = options(off).unwrap().options;
    assert_eq!(off.max_tokens(), MaxTokens::Room);
    let sampling = off.sampling();
    assert_eq!(
        (sampling.seed, sampling.top_k, sampling.repetition_penalty),
        (None, Some(0), Some(1.0))
    );
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (Some(0.0), Some(0.0))
    );
    for (given, window) in [
        (json!({ "repeat_penalty": 1.1 }), 64),
        (json!({ "repeat_last_n": 5, "repeat_penalty": 1.1 }), 5),
        (json!({ "repeat_last_n": 7, "an_option_of_tomorrow": 1 }), 7),
    ] {
        let sampling = options(given).unwrap().options.sampling();
        assert_eq!(sampling.penalty_window, Some(window));
    }
    let likeliest = options(json!({ "top_p": 0, "top_k": 40 }))
        .unwrap()
        .options
        .sampling();
    assert_eq!((likeliest.top_p, likeliest.top_k), (None, Some(1)));
    for (given, param) in [
        (json!({ "mirostat": 1 }), "options.mirostat"),
        (json!({ "tfs_z": 0.5 }), "options.tfs_z"),
        (json!({ "typical_p": 0.7 }), "options.typical_p"),
        (
            json!({ "repeat_last_n": -2, "repeat_penalty": 1.1 }),
            "options.repeat_last_n",
        ),
        (json!({ "temperature": "hot" }), "options.temperature"),
        (json!({ "stop": [""] }), "options.stop"),
        (json!("fast"), "options"),
    ] {
        let error = options(given).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
        assert!(error.message.contains(&format!("`{param}`")), "{error:?}");
    }
}

#[test]
fn thinking_is_a_switch_or_a_level() {
    for (think, effort, on, shows) in [
        (json!(null), None, None, true),
        (json!(true), None, Some(true), true),
        (json!(false), Some(ReasoningEffort::None), None, false),
        (json!("high"), Some(ReasoningEffort::High), None, true),
    ] {
        let request = chat(json!({ "think": think })).unwrap();
        let template = request.template();
        let kwargs = template.chat_template_kwargs;
        let found = kwargs.and_then(|kwargs| kwargs["enable_thinking"].as_bool());
        assert_eq!(
            (template.reasoning_effort, found, request.shows_thinking()),
            (effort, on, shows),
            "{think}"
        );
    }
    let error = chat(json!({ "think": "a lot" })).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("think"));
}

#[test]
fn what_asks_for_something_is_refused_by_name() {
    for (field, value) in [
        ("format", json!("xml")),
        ("format", json!(5)),
        ("truncate", json!(true)),
        ("shift", json!(true)),
        ("tools", json!("f")),
    ] {
        let error = chat(json!({ field: value })).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(field), "{error:?}");
    }
    let format = |format: Value| {
        let request = chat(json!({ "format": format })).unwrap();
        request
            .grammar(&JsonStyle::default())
            .map(|asked| asked.grammar)
    };
    let style = JsonStyle::default();
    assert_eq!(format(json!("")), None);
    assert_eq!(
        format(json!("json")),
        Some(Grammar::JsonObject.styled(&style))
    );
    let schema = json!({ "type": "object" });
    let expected = Grammar::JsonSchema(schema.clone()).styled(&style);
    assert_eq!(format(schema), Some(expected));
    let empty = json!({ "format": "", "keep_alive": "5m", "tools": [], "options": {}, "stream": false, "tomorrow": 1 });
    assert!(chat(empty).is_ok());
}
