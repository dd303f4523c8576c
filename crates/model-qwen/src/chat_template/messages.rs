//! Brings messages into the form a template wants.

use serde_json::{Map, Value};

use super::TemplateError;
use super::json;
use super::source::block_tags;
use crate::json_file::json_type;
use crate::wide_integers::wide_integer;

/// Names under which reasoning text travels; transformers copies it to the first two.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// How a template reads `tool_calls[].function.arguments`.
#[derive(Clone, Copy, PartialEq)]
enum Arguments {
    /// `arguments | tojson`, or it looks for itself (`arguments is string`): an object, as transformers and vLLM write it.
    Object,
    /// `'...' + arguments`: a JSON string.
    String,
}

/// Messages ready to be rendered.
#[derive(Clone)]
pub(super) struct Prepared {
    messages: Vec<Map<String, Value>>,
}

impl Prepared {
    pub(super) fn new(messages: &[Value], source: &str) -> Result<Self, TemplateError> {
        let wants_parts = iterates_over_content(source);
        let arguments = arguments_form(source);
        let prepare = |(index, message): (usize, &Value)| {
            let error = |field: &str, expected, found: &Value| TemplateError::Message {
                index,
                field: field.to_owned(),
                expected,
                found: json_type(found).to_owned(),
            };
            let Value::Object(message) = message else {
                return Err(error("", "an object with role and content", message));
            };
            let mut message = message.clone();
            match message.get("role") {
                Some(Value::String(_)) => {}
                Some(other) => return Err(error(".role", "a string", other)),
                None => {
                    return Err(TemplateError::Message {
                        index,
                        field: ".role".to_owned(),
                        expected: "a string",
                        found: "nothing".to_owned(),
                    });
                }
            }
            match message.get("content") {
                // Templates tell a tool call by `content is none`.
                None if message.contains_key("tool_calls") => {
                    message.insert("content".to_owned(), Value::Null);
                }
                Some(Value::Array(parts)) if !wants_parts => {
                    let text = join_parts(index, parts)?;
                    message.insert("content".to_owned(), Value::String(text));
                }
                None | Some(Value::Null | Value::String(_) | Value::Array(_)) => {}
                Some(other) => {
                    return Err(error(".content", "a string or a list of parts", other));
                }
            }
            if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
                for call in calls {
                    convert_arguments(call, arguments);
                }
            }
            alias_reasoning(&mut message);
            Ok(message)
        };
        Ok(Self {
            messages: messages
                .iter()
                .enumerate()
                .map(prepare)
                .collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn into_json(self) -> Value {
        self.messages.into_iter().map(Value::Object).collect()
    }

    /// The same messages with an empty text where they have no content; `None` if all have one.
    pub(super) fn with_text(&self) -> Option<Self> {
        let lacks =
            |message: &Map<String, Value>| message.get("content").is_none_or(Value::is_null);
        if !self.messages.iter().any(lacks) {
            return None;
        }
        let mut filled = self.clone();
        for message in filled.messages.iter_mut().filter(|message| lacks(message)) {
            message.insert("content".to_owned(), Value::from(""));
        }
        Some(filled)
    }

    /// Appends `tag` to the last message's text; returns that text without the tag.
    pub(super) fn tag_final_message(&mut self, tag: &str) -> Result<String, TemplateError> {
        let refuse = |reason: &str| TemplateError::ContinueFinalMessage(reason.to_owned());
        let last = self
            .messages
            .last_mut()
            .ok_or_else(|| refuse("the conversation is empty"))?;
        let text = match last.get_mut("content") {
            Some(Value::String(text)) => Some(text),
            Some(Value::Array(parts)) => {
                parts
                    .iter_mut()
                    .rev()
                    .find_map(|part| match part.get_mut("text") {
                        Some(Value::String(text)) => Some(text),
                        _ => None,
                    })
            }
            _ => None,
        };
        let text =
            text.ok_or_else(|| refuse("the final message has no text content to continue"))?;
        let before = text.clone();
        text.push_str(tag);
        Ok(before)
    }
}

/// Does the template go through the parts of a message's content (`{% for part in message.content %}`)?
fn iterates_over_content(source: &str) -> bool {
    block_tags(source).any(|(_, tag)| {
        let Some((_, list)) = tag
            .strip_prefix("for ")
            .and_then(|rest| rest.split_once(" in "))
        else {
            return false;
        };
        let list = list.split('|').next().unwrap_or(list).trim();
        list == "content"
            || list.ends_with(".content")
            || list.ends_with("['content']")
            || list.ends_with("[\"content\"]")
    })
}

fn arguments_form(source: &str) -> Arguments {
    const ENDS: [&str; 5] = [
        "arguments",
        "arguments']",
        "arguments\"]",
        "arguments')",
        "arguments\")",
    ];
    let compact: String = source.split_whitespace().collect();
    // Names that a template gives to the arguments.
    let names = block_tags(source).filter_map(|(_, tag)| {
        let (name, value) = tag.strip_prefix("set ")?.split_once('=')?;
        let is_arguments = ENDS.iter().any(|end| value.trim().ends_with(end));
        is_arguments.then(|| name.trim().to_owned())
    });
    let names: Vec<String> = names.collect();
    // Without white space, a word may stand right before a name.
    let begins = |before: &str| {
        let is_inside = before.ends_with(|c: char| c.is_alphanumeric() || "_.".contains(c));
        !is_inside
            || ["in", "if", "not", "and", "or"]
                .iter()
                .any(|word| before.ends_with(word))
    };
    let reads_name = |suffix: &str| {
        names.iter().any(|name| {
            let read = format!("{name}{suffix}");
            let mut places = compact.match_indices(&read);
            places.any(|(at, _)| begins(&compact[..at]))
        })
    };
    let reads = |suffix: &str| {
        let reads_field = ENDS
            .iter()
            .any(|end| compact.contains(&format!("{end}{suffix}")));
        reads_field || reads_name(suffix)
    };
    let of_objects = ["|items", ".items()", "isstring", "ismapping", "|tojson"];
    match of_objects.into_iter().any(reads) || !reads("") {
        true => Arguments::Object,
        false => Arguments::String,
    }
}

fn convert_arguments(call: &mut Value, wanted: Arguments) {
    let holder = match call.get("function") {
        Some(Value::Object(_)) => call.get_mut("function"),
        _ => Some(call),
    };
    let Some(arguments) = holder.and_then(|holder| holder.get_mut("arguments")) else {
        return;
    };
    match (wanted, &*arguments) {
        (Arguments::Object, Value::String(text)) if text.trim().is_empty() => {
            *arguments = Value::Object(Map::new());
        }
        (Arguments::Object, Value::String(text)) => {
            // What a model wrote need not be JSON; then the template gets the string. So it does where a whole number would
            // lose its last digits.
            if let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
                && wide_integer(text).is_none()
            {
                *arguments = parsed;
            }
        }
        (Arguments::String, Value::Object(_)) => {
            *arguments = Value::String(json::to_json(arguments));
        }
        _ => {}
    }
}

/// Text parts joined with newlines, as vLLM does for templates that want a string.
fn join_parts(index: usize, parts: &[Value]) -> Result<String, TemplateError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        if let Value::String(text) = part {
            texts.push(text.as_str());
            continue;
        }
        let error = |field: &str, expected, found: String| TemplateError::Message {
            index,
            field: format!(".content[{i}]{field}"),
            expected,
            found,
        };
        let part_type = match part.get("type") {
            Some(Value::String(part_type)) => part_type.as_str(),
            Some(other) => return Err(error(".type", "a string", json_type(other).to_owned())),
            None if part.is_object() => "text",
            None => {
                let expected = "a part such as {\"type\": \"text\", \"text\": ...}";
                return Err(error("", expected, json_type(part).to_owned()));
            }
        };
        let field = match part_type {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            other => {
                let expected = "\"text\" (this model reads text only)";
                return Err(error(".type", expected, format!("{other:?}")));
            }
        };
        match part.get(field) {
            Some(Value::String(text)) => texts.push(text),
            other => {
                let found = other.map_or("nothing", json_type).to_owned();
                return Err(error(&format!(".{field}"), "a string", found));
            }
        }
    }
    Ok(texts.join("\n"))
}

fn alias_reasoning(message: &mut Map<String, Value>) {
    let reasoning = REASONING_FIELDS
        .iter()
        .find_map(|field| message.get(*field).filter(|value| !value.is_null()))
        .cloned();
    if let Some(reasoning) = reasoning {
        message
            .entry("thinking")
            .or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}
