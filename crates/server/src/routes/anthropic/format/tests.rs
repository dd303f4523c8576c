use std::sync::Arc;

use super::*;

fn format(thinking: ThinkingShown) -> MessageFormat {
    let lens: Arc<[usize]> = Arc::new([10]);
    let counts = TokenCounts::new(&lens, 1);
    MessageFormat::new("msg_1".into(), "m".into(), counts, thinking, false)
}

fn finish(reason: FinishReason, stop_reason: Value) -> Option<Finish> {
    Some(Finish {
        reason,
        stop_reason,
    })
}

/// Thoughts, text, and two calls.
fn parts() -> Vec<Part> {
    let arguments = |index, text: &str| Part::Arguments {
        index,
        text: text.to_owned(),
    };
    let call = |index, name: &str| Part::Call {
        index,
        id: format!("call_{index}"),
        name: name.to_owned(),
    };
    vec![
        Part::Reasoning("\nhm".into()),
        Part::Reasoning(" so".into()),
        Part::Content("\n\n".into()),
        Part::Content("Let me".into()),
        Part::Content(" look.".into()),
        call(0, "f"),
        arguments(0, "{\"x\""),
        arguments(0, ": 1}"),
        Part::CallEnd { index: 0 },
        call(1, "g"),
        Part::CallEnd { index: 1 },
    ]
}

fn delta(parts: Vec<Part>, finish: Option<Finish>) -> Delta {
    Delta {
        parts,
        num_tokens: 7,
        num_cached_tokens: 4,
        finish,
        ..Delta::default()
    }
}

/// All events, with a delta per part.
fn events(mut format: MessageFormat, parts: Vec<Part>, finish: Option<Finish>) -> Vec<Value> {
    let mut events = format.first();
    for part in parts {
        events.extend(format.delta(0, delta(vec![part], None)));
    }
    events.extend(format.delta(0, delta(Vec::new(), finish)));
    events.extend(format.last());
    events
}

#[test]
fn events_are_in_anthropics_order() {
    let events = events(
        format(ThinkingShown::Text),
        parts(),
        finish(FinishReason::Stop, Value::Null),
    );
    let start = |index: usize, block: Value| json!({ "type": "content_block_start", "index": index, "content_block": block });
    let more = |index: usize, delta: Value| json!({ "type": "content_block_delta", "index": index, "delta": delta });
    let stop = |index: usize| json!({ "type": "content_block_stop", "index": index });
    let usage = |input: usize, cached: usize, output: usize| {
        json!({ "input_tokens": input,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached, "output_tokens": output })
    };
    let expected = [
        json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant", "content": [],
            "model": "m", "stop_reason": null, "stop_sequence": null, "usage": usage(10, 0, 0) } }),
        json!({ "type": "ping" }),
        start(
            0,
            json!({ "type": "thinking", "thinking": "", "signature": "" }),
        ),
        more(0, json!({ "type": "thinking_delta", "thinking": "hm" })),
        more(0, json!({ "type": "thinking_delta", "thinking": " so" })),
        more(0, json!({ "type": "signature_delta", "signature": "" })),
        stop(0),
        start(1, json!({ "type": "text", "text": "" })),
        more(1, json!({ "type": "text_delta", "text": "Let me" })),
        more(1, json!({ "type": "text_delta", "text": " look." })),
        stop(1),
        start(
            2,
            json!({ "type": "tool_use", "id": "toolu_0", "name": "f", "input": {} }),
        ),
        more(
            2,
            json!({ "type": "input_json_delta", "partial_json": "{\"x\"" }),
        ),
        more(
            2,
            json!({ "type": "input_json_delta", "partial_json": ": 1}" }),
        ),
        stop(2),
        start(
            3,
            json!({ "type": "tool_use", "id": "toolu_1", "name": "g", "input": {} }),
        ),
        stop(3),
        json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use", "stop_sequence": null },
            "usage": usage(6, 4, 7) }),
        json!({ "type": "message_stop" }),
    ];
    assert_eq!(events, expected);
}

#[test]
fn the_whole_message_has_the_blocks_of_the_events() {
    let message = format(ThinkingShown::Text)
        .response(delta(parts(), finish(FinishReason::Stop, Value::Null)));
    let message = serde_json::to_value(message).unwrap();
    let content = json!([
        { "type": "thinking", "thinking": "hm so", "signature": "" },
        { "type": "text", "text": "Let me look." },
        { "type": "tool_use", "id": "toolu_0", "name": "f", "input": { "x": 1 } },
        { "type": "tool_use", "id": "toolu_1", "name": "g", "input": {} },
    ]);
    assert_eq!(message["content"], content);
    assert_eq!(message["stop_reason"], "tool_use");
    assert_eq!(message["usage"]["input_tokens"], 6);
}

#[test]
fn thoughts_may_be_left_out() {
    let end = || finish(FinishReason::Stop, Value::Null);
    let events = events(format(ThinkingShown::Blocks), parts(), end());
    assert_eq!(events[2]["content_block"]["type"], "thinking");
    assert_eq!(events[3]["delta"]["type"], "signature_delta");
    let message = format(ThinkingShown::Blocks).response(delta(parts(), end()));
    let message = serde_json::to_value(message).unwrap();
    let empty = json!({ "type": "thinking", "thinking": "", "signature": "" });
    assert_eq!(message["content"][0], empty);

    let events = self::events(format(ThinkingShown::Nothing), parts(), end());
    assert!(!Value::from(events.clone()).to_string().contains("thinking"));
    assert_eq!(events[2]["content_block"]["type"], "text");
    assert_eq!(events[2]["index"], 0);
    assert_eq!(events[3]["delta"]["text"], "Let me");
    let message = format(ThinkingShown::Nothing).response(delta(parts(), end()));
    let message = serde_json::to_value(message).unwrap();
    assert_eq!(
        message["content"][0],
        json!({ "type": "text", "text": "Let me look." })
    );
}

#[test]
fn an_empty_answer_has_an_empty_block() {
    let end = || finish(FinishReason::Stop, Value::Null);
    let events = events(format(ThinkingShown::Text), Vec::new(), end());
    let kinds: Vec<&str> = events
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect();
    let expected = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds, expected);
    let message = format(ThinkingShown::Text).response(delta(Vec::new(), end()));
    let block = ContentBlock::Text {
        text: String::new(),
    };
    assert_eq!(message.content, [block]);
}

#[test]
fn the_end_has_anthropics_words() {
    let text = || vec![Part::Content("x".into())];
    let stopped = |is_cut: bool, reason, stop: Value| {
        let format = MessageFormat {
            is_cut,
            ..format(ThinkingShown::Text)
        };
        let message = format.response(delta(text(), finish(reason, stop)));
        (message.stop_reason.unwrap(), message.stop_sequence)
    };
    let (stop, length) = (FinishReason::Stop, FinishReason::Length);
    assert_eq!(stopped(false, stop, Value::Null), ("end_turn", None));
    assert_eq!(stopped(false, stop, json!(5)), ("end_turn", None));
    assert_eq!(stopped(false, length, Value::Null), ("max_tokens", None));
    assert_eq!(
        stopped(true, length, Value::Null),
        ("model_context_window_exceeded", None)
    );
    assert_eq!(
        stopped(false, stop, json!("END")),
        ("stop_sequence", Some("END".to_owned()))
    );
}
