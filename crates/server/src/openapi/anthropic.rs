//! Schemas of what a request to `/v1/messages` has inside.

use serde_json::{Value, json};

use super::chat::{any_of, arguments, efforts, name, of_type, or_null, template_kwargs, text};

/// The form of a field that has fields of its own.
pub(super) fn form(field: &str) -> Option<Value> {
    Some(match field {
        "messages" => json!({ "type": "array", "minItems": 1, "items": message() }),
        "system" => or_null(texts()),
        "tools" => json!({ "type": ["array", "null"], "items": tool() }),
        "tool_choice" => or_null(tool_choice()),
        "thinking" => or_null(thinking()),
        "output_config" => json!({ "type": ["object", "null"], "properties": {
            "effort": efforts(),
            "format": or_null(format()),
        } }),
        "output_format" => or_null(format()),
        "chat_template_kwargs" => template_kwargs(),
        "stop_sequences" => json!({ "type": ["array", "null"], "items": name() }),
        "max_tokens" => json!({ "type": "integer", "minimum": 1 }),
        _ => return None,
    })
}

fn text_block() -> Value {
    of_type("text", &["text"], json!({ "text": text() }))
}

/// A text, or blocks of text.
fn texts() -> Value {
    any_of(&[text(), json!({ "type": "array", "items": text_block() })])
}

fn message() -> Value {
    let of = |roles: Value, blocks: &[Value]| {
        let blocks = json!({ "type": "array", "items": any_of(blocks) });
        json!({ "type": "object", "required": ["role", "content"], "properties": {
            "role": roles,
            "content": any_of(&[text(), blocks]),
        } })
    };
    let result = json!({
        "tool_use_id": text(),
        "content": or_null(texts()),
        "is_error": { "type": ["boolean", "null"] },
    });
    let call = json!({ "id": text(), "name": text(), "input": { "type": ["object", "null"] } });
    any_of(&[
        of(
            json!({ "const": "user" }),
            &[
                text_block(),
                of_type("tool_result", &["tool_use_id"], result),
            ],
        ),
        of(
            json!({ "const": "assistant" }),
            &[
                text_block(),
                of_type("thinking", &["thinking"], json!({ "thinking": text() })),
                of_type("redacted_thinking", &[], json!({})),
                of_type("tool_use", &["id", "name"], call),
            ],
        ),
        of(json!({ "const": "system" }), &[text_block()]),
    ])
}

fn tool() -> Value {
    json!({ "type": "object", "required": ["name", "input_schema"], "properties": {
        "type": { "enum": ["custom", null] },
        "name": name(),
        "description": { "type": ["string", "null"] },
        "input_schema": arguments(json!("object")),
        "strict": { "type": ["boolean", "null"] },
    } })
}

fn tool_choice() -> Value {
    let switch = json!({ "disable_parallel_tool_use": { "type": ["boolean", "null"] } });
    let mut named = switch.clone();
    named["name"] = name();
    any_of(&[
        of_type("auto", &[], switch.clone()),
        of_type("any", &[], switch),
        of_type("tool", &["name"], named),
        of_type("none", &[], json!({})),
    ])
}

fn thinking() -> Value {
    let display = json!({ "enum": ["summarized", "updates", "omitted", null] });
    let enabled = json!({
        "budget_tokens": { "description": "Less than `max_tokens`", "type": "integer", "minimum": 1024 },
        "display": display,
    });
    any_of(&[
        of_type("enabled", &["budget_tokens"], enabled),
        of_type("adaptive", &[], json!({ "display": display })),
        of_type("disabled", &[], json!({})),
    ])
}

fn format() -> Value {
    let mut format = of_type(
        "json_schema",
        &["schema"],
        json!({ "schema": { "type": "object" } }),
    );
    format["additionalProperties"] = Value::Bool(false);
    format
}
