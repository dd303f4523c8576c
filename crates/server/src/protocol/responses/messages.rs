//! Items as the messages of a chat.

use serde_json::{Map, Value, json};

use super::callee::{arguments_of, flat_name};
use super::items::Item;
use super::tools::Place;
use crate::error::ApiError;

/// The messages of a chat, and where each came from.
#[derive(Debug, Default)]
pub struct Messages {
    messages: Vec<Map<String, Value>>,
    /// The field of a request that each message came from.
    places: Vec<String>,
}

impl Messages {
    /// The field `instructions`, which comes first.
    pub fn instruct(&mut self, text: &str) {
        let message = json!({ "role": "system", "content": text });
        self.add(message, "instructions");
    }

    /// Adds an item that came in the field `place`. What an assistant thinks, says and calls in a row is one message.
    pub fn push(&mut self, item: &Item, place: &str) {
        let get = |field: &str| item.get(field).cloned().unwrap_or_default();
        match item.get("type").and_then(Value::as_str) {
            Some(of_type @ ("function_call" | "custom_tool_call")) => {
                let text = |field: &str| item.get(field).and_then(Value::as_str);
                let name = flat_name(text("namespace"), text("name").unwrap_or_default());
                let arguments = match of_type {
                    "function_call" => get("arguments"),
                    _ => Value::from(arguments_of(text("input").unwrap_or_default())),
                };
                let function = json!({ "name": name, "arguments": arguments });
                let call =
                    json!({ "type": "function", "id": get("call_id"), "function": function });
                match self.answer("tool_calls", true) {
                    Some(Value::Array(calls)) => calls.push(call),
                    Some(calls) => *calls = json!([call]),
                    None => self.add(json!({ "role": "assistant", "tool_calls": [call] }), place),
                }
            }
            Some("function_call_output" | "custom_tool_call_output") => {
                let content = content(&get("output"));
                let call_id = get("call_id");
                self.add(
                    json!({ "role": "tool", "tool_call_id": call_id, "content": content }),
                    place,
                );
            }
            Some("reasoning") => {
                let given = ["content", "summary"].map(|field| texts(&get(field)).join("\n"));
                let text = given.into_iter().find(|text| !text.is_empty());
                if let Some(text) = text {
                    self.add(json!({ "role": "assistant", "reasoning": text }), place);
                }
            }
            _ => {
                let (role, content) = (get("role"), content(&get("content")));
                match self.answer("content", role == "assistant") {
                    Some(missing) => *missing = content,
                    None => self.add(json!({ "role": role, "content": content }), place),
                }
            }
        }
    }

    /// A field of the last message, if that is an assistant's: a list of calls, or what it doesn't have yet.
    fn answer(&mut self, field: &str, is_answer: bool) -> Option<&mut Value> {
        let last = self.messages.last_mut().filter(|_| is_answer)?;
        let is_open = field == "tool_calls" || !last.contains_key(field);
        if !is_open || last.get("role").is_none_or(|role| role != "assistant") {
            return None;
        }
        Some(last.entry(field).or_insert(Value::Null))
    }

    fn add(&mut self, message: Value, place: &str) {
        if let Value::Object(message) = message {
            self.messages.push(message);
            self.places.push(place.to_owned());
        }
    }

    /// The messages, and what names the field of a request for an error that names one of them. `tools` is where the tools of the
    /// chat came from.
    pub fn into_parts(self, tools: Vec<Place>) -> (Vec<Map<String, Value>>, Places) {
        let places = Places {
            messages: self.places,
            tools,
        };
        (self.messages, places)
    }
}

/// Fields that a chat has under other names.
const NAMES: [(&str, &str); 6] = [
    ("messages", "input"),
    ("max_tokens", "max_output_tokens"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
];

/// Where messages and tools came from.
#[derive(Debug)]
pub struct Places {
    messages: Vec<String>,
    tools: Vec<Place>,
}

impl Places {
    /// The error with names of this endpoint's fields.
    #[must_use]
    pub fn name(&self, mut error: ApiError) -> ApiError {
        let own = error.param.as_deref().map(|param| self.renamed(param));
        if let (Some(param), Some(own)) = (error.param.take(), own) {
            let message = error
                .message
                .replace(&format!("`{param}`"), &format!("`{own}`"));
            error.message = message;
            error.param = Some(own);
        }
        for (chat, own) in NAMES {
            for end in ["`", "."] {
                let message = error
                    .message
                    .replace(&format!("`{chat}{end}"), &format!("`{own}{end}"));
                error.message = message;
            }
        }
        error
    }

    /// The name that a field of a chat has here.
    pub fn renamed(&self, param: &str) -> String {
        if let Some(place) = self.place(param) {
            return place;
        }
        if let Some((index, rest)) = indexed(param, "tools") {
            let place = self.tools.get(index);
            return place.map_or_else(|| "tools".to_owned(), |place| place.field(rest));
        }
        let mut names = NAMES.iter();
        let own = names.find_map(|(chat, own)| {
            let rest = param.strip_prefix(chat)?;
            (rest.is_empty() || rest.starts_with('.')).then(|| format!("{own}{rest}"))
        });
        own.unwrap_or_else(|| param.to_owned())
    }

    /// Where the field of a message came from.
    fn place(&self, param: &str) -> Option<String> {
        let (index, rest) = indexed(param, "messages")?;
        let place = self.messages.get(index)?;
        Some(match place.as_str() {
            // Their fields are not the request's.
            "instructions" | "previous_response_id" => place.clone(),
            _ => format!("{place}{rest}"),
        })
    }
}

/// The index and the rest of `list[index]rest`.
fn indexed<'a>(param: &'a str, list: &str) -> Option<(usize, &'a str)> {
    let (index, rest) = param
        .strip_prefix(list)?
        .strip_prefix('[')?
        .split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// Parts as one text, or as a chat's parts if they are several.
fn content(content: &Value) -> Value {
    let Value::Array(_) = content else {
        return content.clone();
    };
    let texts = texts(content);
    match texts.as_slice() {
        [] => Value::from(""),
        [text] => Value::from(*text),
        _ => {
            let parts = texts
                .iter()
                .map(|text| json!({ "type": "text", "text": text }));
            Value::Array(parts.collect())
        }
    }
}

fn texts(parts: &Value) -> Vec<&str> {
    let parts = parts.as_array().into_iter().flatten();
    let texts = parts.filter_map(|part| part.get("text").or_else(|| part.get("refusal")));
    texts.filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::responses::items::read_input;

    fn messages(input: Value) -> Vec<Map<String, Value>> {
        let mut messages = Messages::default();
        messages.instruct("be kind");
        for (i, item) in read_input(input, |_| None).unwrap().iter().enumerate() {
            messages.push(item, &format!("input[{i}]"));
        }
        messages.into_parts(Vec::new()).0
    }

    fn check(input: Value, expected: Value) {
        let found: Vec<Value> = messages(input)
            .into_iter()
            .skip(1)
            .map(Value::Object)
            .collect();
        assert_eq!(Value::Array(found), expected);
    }

    #[test]
    fn messages_are_messages() {
        assert_eq!(
            Value::Object(messages(json!("hi")).remove(0)),
            json!({ "role": "system", "content": "be kind" })
        );
        check(json!("hi"), json!([{ "role": "user", "content": "hi" }]));
        check(
            json!([{ "role": "developer", "content": [{ "type": "input_text", "text": "a" }, { "type": "input_text", "text": "b" }] },
                { "role": "assistant", "content": [] }, { "role": "assistant", "content": [{ "type": "refusal", "refusal": "no" }] }]),
            json!([
                { "role": "developer", "content": [{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }] },
                { "role": "assistant", "content": "" }, { "role": "assistant", "content": "no" }
            ]),
        );
    }

    #[test]
    fn what_an_assistant_does_in_a_row_is_one_message() {
        let call = |id: &str| json!({ "type": "function_call", "call_id": id, "name": "f", "arguments": "{\"a\": 1}" });
        let output = |id: &str, text: &str| json!({ "type": "function_call_output", "call_id": id, "output": text });
        let thought = |text: &str| json!({ "type": "reasoning", "summary": [], "content": [{ "type": "reasoning_text", "text": text }] });
        let said = json!({ "role": "assistant", "content": "ok" });
        let chat_call = |id: &str| json!({ "type": "function", "id": id, "function": { "name": "f", "arguments": "{\"a\": 1}" } });
        check(
            json!([{ "role": "user", "content": "go" }, thought("hm"), said, call("1"), call("2"), output("1", "x"), output("2", "y"),
                thought("so"), call("3"), output("3", "z"), { "type": "reasoning", "summary": [] }, said]),
            json!([
                { "role": "user", "content": "go" },
                { "role": "assistant", "reasoning": "hm", "content": "ok", "tool_calls": [chat_call("1"), chat_call("2")] },
                { "role": "tool", "tool_call_id": "1", "content": "x" },
                { "role": "tool", "tool_call_id": "2", "content": "y" },
                { "role": "assistant", "reasoning": "so", "tool_calls": [chat_call("3")] },
                { "role": "tool", "tool_call_id": "3", "content": "z" },
                { "role": "assistant", "content": "ok" }
            ]),
        );
        let custom = json!({ "type": "custom_tool_call", "call_id": "4", "name": "p", "namespace": "n", "input": "a\nb" });
        let done = json!({ "type": "custom_tool_call_output", "call_id": "4", "output": "w" });
        let function = json!({ "name": "n__p", "arguments": "{\"input\":\"a\\nb\"}" });
        check(
            json!([custom, done]),
            json!([
                { "role": "assistant", "tool_calls": [{ "type": "function", "id": "4", "function": function }] },
                { "role": "tool", "tool_call_id": "4", "content": "w" }
            ]),
        );
        check(
            json!([{ "type": "reasoning", "summary": [{ "type": "summary_text", "text": "short" }] }, thought("more")]),
            json!([{ "role": "assistant", "reasoning": "short" }, { "role": "assistant", "reasoning": "more" }]),
        );
    }

    #[test]
    fn errors_name_the_field_of_the_request() {
        let mut messages = Messages::default();
        messages.instruct("a");
        let items = read_input(json!([{ "role": "odd", "content": "b" }]), |_| None).unwrap();
        messages.push(&items[0], "previous_response_id");
        messages.push(&items[0], "input[0]");
        let tools = [
            ("tools[0]", false),
            ("tools[2]", false),
            ("tools[3].tools[0]", true),
        ];
        let tools = tools.map(|(tool, is_custom)| Place {
            tool: tool.to_owned(),
            is_custom,
        });
        let (_, places) = messages.into_parts(tools.to_vec());
        for (param, name) in [
            ("messages[0].content", "instructions"),
            ("messages[1].role", "previous_response_id"),
            ("messages[2].role", "input[0].role"),
            ("messages", "input"),
            ("max_tokens", "max_output_tokens"),
            ("response_format.json_schema.schema", "text.format.schema"),
            ("response_format.type", "text.format.type"),
            ("temperature", "temperature"),
            ("tools[1].function.parameters", "tools[2].parameters"),
            ("tools[2].function.name", "tools[3].tools[0].name"),
            (
                "tools[2].function.parameters",
                "tools[3].tools[0].format.definition",
            ),
            (
                "tools[2].function.strict",
                "tools[3].tools[0].format.definition",
            ),
            ("tools[3].function.name", "tools"),
        ] {
            let error = ApiError::bad_request(param, format!("`{param}`: odd."));
            let error = places.name(error);
            assert_eq!(error.param.as_deref(), Some(name));
            assert_eq!(error.message, format!("`{name}`: odd."));
        }
        let general = places.name(ApiError::internal("odd"));
        assert_eq!((general.param, general.message.as_str()), (None, "odd"));
    }
}
