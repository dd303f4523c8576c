//! Forms of fields of Ollama's requests.

use serde_json::{Value, json};

use super::chat::{self, any_of, name};
use crate::protocol::fields::Endpoint;

/// The form of a field of Ollama's, but for the object `options`.
pub(super) fn form(endpoint: Endpoint, field: &str) -> Option<Value> {
    Some(match (endpoint, field) {
        (Endpoint::OllamaChat, "messages") => {
            json!({ "type": ["array", "null"], "items": turn() })
        }
        (Endpoint::OllamaChat, "tools") => {
            json!({ "type": ["array", "null"], "items": chat::tool() })
        }
        (Endpoint::OllamaChat | Endpoint::OllamaGenerate, "format") => any_of(&[
            json!({ "enum": ["json", "", null] }),
            json!({ "description": "A JSON schema", "type": "object" }),
        ]),
        (Endpoint::OllamaChat | Endpoint::OllamaGenerate, "think") => {
            any_of(&[json!({ "type": ["boolean", "null"] }), chat::efforts()])
        }
        (Endpoint::OllamaGenerate | Endpoint::OllamaEmbeddings, "prompt") => {
            json!({ "type": ["string", "null"] })
        }
        (Endpoint::OllamaEmbed, "input") => json!({ "anyOf": [
            { "type": ["string", "null"] },
            { "type": "array", "items": { "type": "string", "minLength": 1 } },
        ] }),
        (Endpoint::OllamaEmbed, "dimensions") => {
            json!({ "type": ["integer", "null"], "minimum": 0 })
        }
        _ => return None,
    })
}

/// A message, whose calls have objects of arguments.
fn turn() -> Value {
    let optional = json!({ "type": ["string", "null"] });
    let function = json!({ "type": "object", "required": ["name"], "properties": {
        "name": name(),
        "arguments": { "type": ["object", "null"] },
    } });
    json!({
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": { "enum": ["system", "user", "assistant", "tool"] },
            "content": optional,
            "thinking": optional,
            "images": { "type": ["array", "null"], "maxItems": 0 },
            "tool_calls": { "type": ["array", "null"], "items": {
                "type": "object",
                "required": ["function"],
                "properties": { "function": function },
            } },
            "tool_name": optional,
            "tool_call_id": optional,
        },
    })
}
