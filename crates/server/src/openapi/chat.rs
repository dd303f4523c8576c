//! Schemas of what a conversation has inside: messages, tools, and what an answer keeps to.

use schemars::{JsonSchema as _, SchemaGenerator};
use serde_json::{Value, json};

use crate::config::TEMPLATE_FIELDS;
use crate::protocol::fields::Endpoint;
use crate::protocol::reasoning_effort::ReasoningEffort;

/// The form of a field that has fields of its own.
pub(super) fn form(endpoint: Endpoint, field: &str) -> Option<Value> {
    Some(match field {
        "messages" => json!({ "type": "array", "minItems": 1, "items": message() }),
        "tools" if endpoint == Endpoint::Chat => {
            or_null(json!({ "type": "array", "items": tool() }))
        }
        "tool_choice" if endpoint == Endpoint::Chat => or_null(tool_choice()),
        "documents" if endpoint == Endpoint::Chat => {
            json!({ "type": ["array", "null"], "items": { "type": "object" } })
        }
        "chat_template_kwargs" => template_kwargs(),
        "response_format" => or_null(response_format()),
        "structured_outputs" => or_null(structured_outputs()),
        "guided_json" => or_null(any_of(&[json_schema(), text()])),
        "structural_tag" => json!({ "type": ["object", "string", "null"] }),
        "guided_decoding_backend" => json!({ "enum": ["auto", "guidance", null] }),
        "guided_choice" => json!({ "type": ["array", "null"], "items": name() }),
        _ => return None,
    })
}

pub(super) fn any_of(schemas: &[Value]) -> Value {
    json!({ "anyOf": schemas })
}

/// A field that may be null, which is the same as absent.
pub(super) fn or_null(schema: Value) -> Value {
    any_of(&[schema, json!({ "type": "null" })])
}

pub(super) fn text() -> Value {
    json!({ "type": "string" })
}

pub(super) fn name() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

/// A JSON schema that something fits.
pub(super) fn json_schema() -> Value {
    any_of(&[json!({ "type": "object" }), json!({ "const": true })])
}

/// A JSON schema of arguments, which are an object.
pub(super) fn arguments(kinds: Value) -> Value {
    let others =
        json!({ "enum": ["array", "boolean", "integer", "null", "number", "string", null] });
    json!({
        "description": "A JSON schema of an object",
        "type": kinds,
        "properties": { "type": { "not": others } },
    })
}

/// The same object; a property that it does not name says nothing.
pub(super) fn nothing_else(mut schema: Value) -> Value {
    schema["additionalProperties"] = json!({ "enum": [null, false] });
    schema
}

/// How much the model is to think.
pub(super) fn efforts() -> Value {
    let schema = ReasoningEffort::json_schema(&mut SchemaGenerator::default());
    or_null(schema.to_value())
}

/// Variables of the template; those that have a field of their own are none.
pub(super) fn template_kwargs() -> Value {
    json!({ "type": ["object", "null"], "propertyNames": { "not": { "enum": TEMPLATE_FIELDS } } })
}

/// An object of this type, with these fields.
pub(super) fn of_type(of_type: &str, required: &[&str], mut properties: Value) -> Value {
    properties["type"] = json!({ "const": of_type });
    let required = [&["type"], required].concat();
    json!({ "type": "object", "required": required, "properties": properties })
}

/// A call of a function in a message.
fn call() -> Value {
    json!({ "type": "object", "required": ["function"], "properties": {
        "id": { "type": ["string", "null"] },
        "type": { "enum": ["function", null] },
        "function": called(),
    } })
}

fn called() -> Value {
    json!({ "type": "object", "required": ["name"], "properties": {
        "name": text(),
        "arguments": { "description": "JSON", "type": ["string", "object", "null"] },
    } })
}

fn content() -> Value {
    let part = |of: &str, field: &str| of_type(of, &[field], json!({ field: text() }));
    let part = any_of(&[
        text(),
        part("text", "text"),
        part("input_text", "text"),
        part("output_text", "text"),
        part("refusal", "refusal"),
        part("thinking", "thinking"),
    ]);
    any_of(&[text(), json!({ "type": "array", "items": part })])
}

/// A message of OpenAI's chat.
fn message() -> Value {
    let optional = json!({ "type": ["string", "null"] });
    let given = json!({
        "type": "object",
        "required": ["role", "content"],
        "properties": {
            "role": {
                "description": "Or another role that the chat template names",
                "enum": ["system", "developer", "user", "tool", "function"],
            },
            "content": content(),
            "name": optional,
            "tool_call_id": optional,
        },
    });
    let answer = json!({
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": { "const": "assistant" },
            "content": or_null(content()),
            "name": optional,
            "refusal": optional,
            "reasoning": optional,
            "reasoning_content": optional,
            "tool_calls": { "type": ["array", "null"], "items": call() },
            "function_call": or_null(called()),
            "prefix": { "type": ["boolean", "null"] },
            "partial": { "type": ["boolean", "null"] },
        },
    });
    any_of(&[given, answer])
}

/// A function of a chat.
pub(super) fn tool() -> Value {
    json!({ "type": "object", "required": ["function"], "properties": {
        "type": { "enum": ["function", null] },
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": name(),
                "description": { "type": ["string", "null"] },
                "parameters": arguments(json!(["object", "null"])),
                "strict": { "type": ["boolean", "null"] },
            },
        },
    } })
}

/// `none`, `auto` and `required`.
pub(super) fn modes() -> Value {
    json!({ "enum": ["none", "auto", "required"] })
}

fn tool_choice() -> Value {
    let named = json!({ "type": "object", "required": ["function"], "properties": {
        "type": { "enum": ["function", null] },
        "function": { "type": "object", "required": ["name"], "properties": { "name": name() } },
    } });
    let list = json!({
        "type": "object",
        "required": ["tools"],
        "properties": {
            "mode": { "enum": ["auto", "required"] },
            "tools": { "type": "array", "items": named },
        },
    });
    let allowed = of_type(
        "allowed_tools",
        &["allowed_tools"],
        json!({ "allowed_tools": list }),
    );
    any_of(&[modes(), named, allowed])
}

/// The fields of a named schema that an answer fits.
pub(super) fn answer_schema() -> Value {
    json!({
        "name": text(),
        "description": { "type": ["string", "null"] },
        "schema": json_schema(),
        "strict": { "type": ["boolean", "null"] },
    })
}

fn response_format() -> Value {
    let schema = nothing_else(json!({
        "type": "object",
        "required": ["name", "schema"],
        "properties": answer_schema(),
    }));
    let schema = of_type(
        "json_schema",
        &["json_schema"],
        json!({ "json_schema": schema }),
    );
    let list = json!({ "type": "array", "minItems": 1 });
    any_of(&[
        nothing_else(of_type("text", &[], json!({}))),
        nothing_else(of_type("json_object", &[], json!({}))),
        nothing_else(schema),
        of_type(
            "structural_tag",
            &["format"],
            json!({ "format": { "type": "object", "required": ["type"] } }),
        ),
        of_type(
            "structural_tag",
            &["structures", "triggers"],
            json!({ "structures": list, "triggers": list }),
        ),
    ])
}

fn structured_outputs() -> Value {
    let optional_text = json!({ "type": ["string", "null"] });
    let optional_switch = json!({ "type": ["boolean", "null"] });
    json!({
        "type": "object",
        "description": "One of the first six",
        "additionalProperties": false,
        "properties": {
            "json": or_null(any_of(&[json_schema(), text()])),
            "regex": optional_text,
            "choice": { "type": ["array", "null"], "items": name() },
            "grammar": optional_text,
            "json_object": optional_switch,
            "structural_tag": { "type": ["object", "string", "null"] },
            "disable_any_whitespace": optional_switch,
            "disable_additional_properties": optional_switch,
            "whitespace_pattern": optional_text,
        },
    })
}
