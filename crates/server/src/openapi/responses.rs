//! Schemas of what a request to `/v1/responses` has inside.

use serde_json::{Value, json};

use super::chat::{
    answer_schema, any_of, arguments, efforts, modes, name, nothing_else, of_type, or_null, text,
};
use crate::protocol::responses::tools::hosted_pattern;

/// The form of a field that has fields of its own.
pub(super) fn form(field: &str) -> Option<Value> {
    Some(match field {
        "input" => any_of(&[
            text(),
            json!({ "type": "array", "minItems": 1, "items": item() }),
        ]),
        "tools" => json!({ "type": ["array", "null"], "items": tool() }),
        "tool_choice" => or_null(tool_choice()),
        "text" => keys(json!({
            "format": or_null(format()),
            "verbosity": { "enum": ["medium", null] },
        })),
        "reasoning" => keys(json!({
            "effort": efforts(),
            "summary": { "enum": ["auto", "concise", "detailed", null] },
            "generate_summary": { "enum": ["auto", "concise", "detailed", null] },
            "context": { "enum": ["auto", null] },
            "mode": { "enum": ["standard", null] },
        })),
        "stream_options" => keys(json!({
            "include_usage": { "type": ["boolean", "null"] },
            "include_obfuscation": { "enum": [false, null] },
            "continuous_usage_stats": { "enum": [false, null] },
        })),
        "truncation" => json!({ "enum": ["auto", "disabled", null] }),
        "include" => {
            json!({ "type": ["array", "null"], "items": { "enum": crate::protocol::responses::settings::INCLUDABLE } })
        }
        "metadata" => json!({
            "type": ["object", "null"],
            "maxProperties": 16,
            "propertyNames": { "maxLength": 64 },
            "additionalProperties": { "type": ["string", "null"], "maxLength": 512 },
        }),
        _ => return None,
    })
}

/// An object with these keys.
fn keys(properties: Value) -> Value {
    json!({ "type": ["object", "null"], "properties": properties, "additionalProperties": { "type": "null" } })
}

/// An item of a conversation.
fn item() -> Value {
    let optional = json!({ "type": ["string", "null"] });
    let part = |of: &str, field: &str| of_type(of, &[field], json!({ field: text() }));
    let parts = json!({ "type": "array", "items": any_of(&[
        part("input_text", "text"),
        part("output_text", "text"),
        part("text", "text"),
        part("refusal", "refusal"),
    ]) });
    let content = any_of(&[text(), parts]);
    let message = |roles: Value, required: &[&str], content: &Value| {
        json!({ "type": "object", "required": required, "properties": {
            "type": { "enum": ["message", null] },
            "role": roles,
            "content": content,
            "status": status(),
        } })
    };
    let given = json!({ "enum": ["user", "system", "developer"] });
    let call = |of: &str, field: &str| {
        let fields = json!({ "call_id": text(), "name": text(), field: text(), "namespace": optional, "status": status() });
        of_type(of, &["call_id", "name", field], fields)
    };
    let output = |of: &str| {
        let fields = json!({ "call_id": text(), "output": content, "status": status() });
        of_type(of, &["call_id", "output"], fields)
    };
    let texts = |of: &str| {
        json!({ "type": ["array", "null"], "items": {
            "type": "object",
            "required": ["text"],
            "properties": { "type": { "enum": [of, null] }, "text": text() },
        } })
    };
    let thought = json!({
        "summary": texts("summary_text"),
        "content": texts("reasoning_text"),
        "encrypted_content": optional,
        "status": status(),
    });
    any_of(&[
        message(given, &["role", "content"], &content),
        message(
            json!({ "const": "assistant" }),
            &["role"],
            &or_null(content.clone()),
        ),
        call("function_call", "arguments"),
        call("custom_tool_call", "input"),
        output("function_call_output"),
        output("custom_tool_call_output"),
        of_type("reasoning", &[], thought),
        of_type("item_reference", &["id"], json!({ "id": text() })),
        json!({ "type": "object", "required": ["id"], "maxProperties": 1, "properties": { "id": text() } }),
    ])
}

fn status() -> Value {
    json!({ "enum": ["completed", "in_progress", "incomplete", null] })
}

fn tool() -> Value {
    let description = json!({ "type": ["string", "null"] });
    let of = |of: &str, required: &[&str], mut properties: Value| {
        properties["name"] = name();
        properties["description"] = description.clone();
        // The model calls functions directly.
        properties["allowed_callers"] = json!({ "enum": [null, false, ["direct"]] });
        nothing_else(of_type(of, required, properties))
    };
    let function = json!({
        "parameters": arguments(json!(["object", "null"])),
        "strict": { "type": ["boolean", "null"] },
    });
    let function = of("function", &["name"], function);
    let grammar = json!({ "definition": text(), "syntax": { "enum": ["regex", "lark"] } });
    let format = any_of(&[
        nothing_else(of_type("text", &[], json!({}))),
        nothing_else(of_type("grammar", &["definition", "syntax"], grammar)),
    ]);
    let custom = of("custom", &["name"], json!({ "format": or_null(format) }));
    let inner = any_of(&[function.clone(), custom.clone()]);
    let tools = json!({ "tools": { "type": "array", "items": inner } });
    let namespace = of("namespace", &["name", "tools"], tools);
    let hosted = json!({
        "description": "A tool of OpenAI's servers, such as `web_search`, is left out",
        "type": "object",
        "required": ["type"],
        "properties": { "type": { "type": "string", "pattern": hosted_pattern() } },
    });
    any_of(&[function, custom, namespace, hosted])
}

fn tool_choice() -> Value {
    let named = json!({
        "type": "object",
        "required": ["type", "name"],
        "properties": { "type": { "enum": ["function", "custom"] }, "name": name() },
    });
    let allowed = json!({
        "mode": { "enum": ["auto", "required"] },
        "tools": {
            "type": "array",
            "items": { "type": "object", "required": ["name"] },
        },
    });
    let allowed = of_type("allowed_tools", &["mode", "tools"], allowed);
    any_of(&[modes(), named, allowed])
}

fn format() -> Value {
    any_of(&[
        nothing_else(of_type("text", &[], json!({}))),
        nothing_else(of_type("json_object", &[], json!({}))),
        nothing_else(of_type("json_schema", &["name", "schema"], answer_schema())),
    ])
}
