//! Keys inside of fields that nobody reads. What a chat template sees is read: messages and tools of OpenAI's chats.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::endpoint::Endpoint;
use crate::protocol::anthropic::output_config::OutputConfig;
use crate::protocol::field_names::field_names;
use crate::protocol::stream_options::StreamOptions;

/// A place in a request, `[]` for each element of a list, and the keys that are known there.
type Place = (&'static [&'static str], &'static [&'static str]);

const ANTHROPIC: [Place; 5] = [
    (&["thinking"], &["type", "budget_tokens", "display"]),
    (
        &["tool_choice"],
        &["type", "name", "disable_parallel_tool_use"],
    ),
    (
        &["tools", "[]"],
        &[
            "type",
            "name",
            "description",
            "input_schema",
            "strict",
            "cache_control",
        ],
    ),
    (&["messages", "[]"], &["role", "content"]),
    (
        &["messages", "[]", "content", "[]"],
        &[
            "type",
            "text",
            "thinking",
            "signature",
            "data",
            "id",
            "name",
            "input",
            "tool_use_id",
            "content",
            "is_error",
            "cache_control",
            "citations",
        ],
    ),
];
const CHAT: [Place; 5] = [
    (&["tool_choice"], &["type", "function", "allowed_tools"]),
    (&["tool_choice", "function"], &["name"]),
    (&["tool_choice", "allowed_tools"], &["mode", "tools"]),
    (
        &["tool_choice", "allowed_tools", "tools", "[]"],
        &["type", "function"],
    ),
    (
        &["tool_choice", "allowed_tools", "tools", "[]", "function"],
        &["name"],
    ),
];
const OLLAMA: [Place; 1] = [(
    &["messages", "[]"],
    &[
        "role",
        "content",
        "thinking",
        "images",
        "tool_calls",
        "tool_name",
        "tool_call_id",
        "name",
    ],
)];

/// Fields with a struct, which knows their keys.
static STREAM: LazyLock<[Place; 1]> =
    LazyLock::new(|| [(&["stream_options"], field_names::<StreamOptions>())]);
static OUTPUT: LazyLock<[Place; 1]> =
    LazyLock::new(|| [(&["output_config"], field_names::<OutputConfig>())]);

/// The keys that nobody reads, with their places, as far as `room` goes.
pub(super) fn unknown(endpoint: Endpoint, fields: &Map<String, Value>, room: usize) -> Vec<String> {
    let (structs, places): (&[Place], &[Place]) = match endpoint {
        Endpoint::Chat => (&*STREAM, &CHAT),
        Endpoint::Completions => (&*STREAM, &[]),
        Endpoint::Messages | Endpoint::CountTokens => (&*OUTPUT, &ANTHROPIC),
        Endpoint::OllamaChat => (&[], &OLLAMA),
        _ => return Vec::new(),
    };
    let mut found = Vec::new();
    for (path, known) in structs.iter().chain(places) {
        if let [field, rest @ ..] = path
            && let Some(value) = fields.get(*field)
        {
            walk(value, rest, known, (*field).to_owned(), &mut found, room);
        }
    }
    found
}

fn walk(
    value: &Value,
    path: &[&str],
    known: &[&str],
    place: String,
    found: &mut Vec<String>,
    room: usize,
) {
    match (path, value) {
        (["[]", rest @ ..], Value::Array(values)) => {
            for (i, value) in values.iter().enumerate() {
                if found.len() >= room {
                    return;
                }
                walk(value, rest, known, format!("{place}[{i}]"), found, room);
            }
        }
        ([key, rest @ ..], Value::Object(object)) if *key != "[]" => {
            if let Some(value) = object.get(*key) {
                walk(value, rest, known, format!("{place}.{key}"), found, room);
            }
        }
        ([], Value::Object(object)) => {
            let unknown = object.keys().filter(|key| !known.contains(&key.as_str()));
            let room = room.saturating_sub(found.len());
            found.extend(unknown.take(room).map(|key| format!("{place}.{key}")));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_that_nobody_reads_are_found() {
        let found = |endpoint, fields: Value, room| {
            let Value::Object(fields) = fields else {
                panic!("an object");
            };
            unknown(endpoint, &fields, room)
        };
        let chat = json!({ "stream_options": { "include_usage": true, "zzz": 1 }, "messages": [{ "zzz": 1 }] });
        assert_eq!(found(Endpoint::Chat, chat, 9), ["stream_options.zzz"]);
        let choice = json!({ "tool_choice": { "type": "function", "function": { "name": "f", "a": 1 }, "b": 1 } });
        let keys = ["tool_choice.b", "tool_choice.function.a"];
        assert_eq!(found(Endpoint::Chat, choice, 9), keys);
        let messages = json!({
            "output_config": { "effort": "low", "z": 1 },
            "thinking": { "type": "disabled", "a": 1 },
            "tools": [{ "name": "f", "input_schema": {}, "b": 1 }, 5],
            "messages": [{ "role": "user", "content": "x", "c": 1 },
                { "role": "user", "content": [{ "type": "text", "text": "x", "d": 1 }] }],
        });
        let all = [
            "output_config.z",
            "thinking.a",
            "tools[0].b",
            "messages[0].c",
            "messages[1].content[0].d",
        ];
        assert_eq!(found(Endpoint::Messages, messages.clone(), 9), all);
        assert_eq!(found(Endpoint::Messages, messages, 2), all[..2]);
        let odd = json!({ "thinking": 5, "tools": {}, "messages": [[], "x"] });
        assert!(found(Endpoint::Messages, odd, 9).is_empty());
    }
}
