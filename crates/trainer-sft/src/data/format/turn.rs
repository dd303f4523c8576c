//! One turn of a list, checked and in the form that chat templates expect.

use serde_json::{Map, Value, json};

use super::super::error::DataError;
use super::TurnKind;
use super::field_names::REASONING;
use super::parts::Parts;
use super::reader::{Reader, describe, is_filled, named};
use super::speaker::Speaker;
use super::values::are_alike;

/// One turn.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// What the template gets.
    pub(super) message: Value,
    /// What it is for learning.
    pub(super) kind: TurnKind,
}

/// The names of a turn's role and content.
struct Keys {
    role: &'static str,
    content: &'static str,
    /// For messages.
    roles: &'static str,
}

impl Keys {
    /// Those of a turn with these fields.
    fn of(fields: &Map<String, Value>) -> Self {
        let has = |key: &str| fields.contains_key(key);
        match has("role") || !has("from") {
            true => Self {
                role: "role",
                content: if has("content") || !has("value") {
                    "content"
                } else {
                    "value"
                },
                roles: "one of system, user, assistant, tool",
            },
            false => Self {
                role: "from",
                content: if has("value") || !has("content") {
                    "value"
                } else {
                    "content"
                },
                roles: "one of system, human, gpt, tool, function_call",
            },
        }
    }
}

impl Turn {
    /// A turn that is only text.
    pub(super) fn plain(role: &str, text: &str) -> Self {
        let kind = match (role == "assistant", text.trim().is_empty()) {
            (false, _) => TurnKind::Prompt,
            (true, true) => TurnKind::Earlier,
            (true, false) => TurnKind::Answer,
        };
        Self {
            message: plain(role, text),
            kind,
        }
    }
}

/// A message that is only text.
pub(super) fn plain(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

impl Reader<'_> {
    /// One turn of an OpenAI or ShareGPT list.
    pub(super) fn turn(&self, place: &str, item: &Value) -> Result<Turn, DataError> {
        let Value::Object(given) = item else {
            return Err(self.error(place, "an object with `role` and `content`", Some(item)));
        };
        let mut fields = given.clone();
        // Null says what the absence of a key says.
        fields.retain(|_, value| !value.is_null());
        let keys = Keys::of(&fields);
        let speaker = self.take_speaker(place, &keys, given, &mut fields)?;
        self.take_empty_media(place, &mut fields)?;
        let is_marked = self.take_marks(place, speaker.role(), &mut fields)?;
        let mut calls = self.take_calls(place, &mut fields)?;
        let content = self.take_content(place, (&keys, speaker), given, &mut fields)?;
        calls.extend(content.calls);
        self.unify_reasoning(place, content.reasoning, &mut fields)?;
        let mut text = content.text;
        if let Some(reasoning) = reasoning_of(&fields).filter(|_| speaker.is_assistant()) {
            let content = format!("{place}.{}", keys.content);
            text = self.without_second_reasoning(&content, reasoning, text)?;
        }
        if !calls.is_empty() && !speaker.is_assistant() {
            let expected = "calls of the assistant only";
            let field = format!("{place}.tool_calls");
            return Err(self.error(field, expected, Some(&Value::Array(calls))));
        }
        let says = !text.trim().is_empty() || !calls.is_empty() || reasoning_of(&fields).is_some();
        let mut message = Map::new();
        message.insert("role".into(), speaker.role().into());
        message.insert("content".into(), text.into());
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
        message.extend(fields);
        let kind = match (speaker.is_assistant(), is_marked) {
            (false, _) => TurnKind::Prompt,
            (true, false) => TurnKind::Unlearnt,
            (true, true) if says => TurnKind::Answer,
            (true, true) => TurnKind::Earlier,
        };
        Ok(Turn {
            message: Value::Object(message),
            kind,
        })
    }

    /// Takes out who says a turn, which was `given` so.
    fn take_speaker(
        &self,
        place: &str,
        keys: &Keys,
        given: &Map<String, Value>,
        fields: &mut Map<String, Value>,
    ) -> Result<Speaker, DataError> {
        let name = fields.shift_remove(keys.role);
        let speaker = name
            .as_ref()
            .and_then(Value::as_str)
            .and_then(Speaker::named);
        speaker.ok_or_else(|| {
            let found = match given.get(keys.role) {
                None if !given.is_empty() => format!("nothing among {}", named(given)),
                found => describe(found),
            };
            self.error_found(format!("{place}.{}", keys.role), keys.roles, found)
        })
    }

    /// Takes out fields for pictures and sounds, and refuses those that have any.
    fn take_empty_media(
        &self,
        place: &str,
        fields: &mut Map<String, Value>,
    ) -> Result<(), DataError> {
        for key in ["images", "image", "videos", "video", "audios", "audio"] {
            if is_filled(fields.get(key)) {
                let expected = "no pictures or sounds: these models read text only";
                return Err(self.error(format!("{place}.{key}"), expected, fields.get(key)));
            }
            fields.shift_remove(key);
        }
        Ok(())
    }

    /// Takes out what a turn says, which was `given` so.
    fn take_content(
        &self,
        place: &str,
        (keys, speaker): (&Keys, Speaker),
        given: &Map<String, Value>,
        fields: &mut Map<String, Value>,
    ) -> Result<Parts, DataError> {
        let refusal = fields.shift_remove("refusal");
        let field = format!("{place}.{}", keys.content);
        let is_call = speaker == Speaker::AssistantCall;
        let of_text = |text| Parts {
            text,
            ..Parts::default()
        };
        let content = match fields.shift_remove(keys.content) {
            Some(Value::String(text)) if is_call => {
                let (text, calls) = self.text_and_calls(&field, &text)?;
                Parts {
                    calls,
                    ..of_text(text)
                }
            }
            Some(Value::String(text)) => of_text(text),
            Some(Value::Array(parts)) if !is_call => self.parts(&field, &parts)?,
            Some(call @ (Value::Object(_) | Value::Array(_))) if is_call => Parts {
                calls: self.calls_in_text(&field, &call.to_string())?,
                ..Parts::default()
            },
            None if speaker == Speaker::Assistant => Parts::default(),
            _ => return Err(self.error(field, "text", given.get(keys.content))),
        };
        match refusal {
            // What the assistant says instead of a content.
            Some(Value::String(text)) if content.text.is_empty() => Ok(Parts { text, ..content }),
            Some(refusal) if is_filled(Some(&refusal)) => {
                let expected = format!("no second text beside `{}`", keys.content);
                Err(self.error(format!("{place}.refusal"), &expected, Some(&refusal)))
            }
            _ => Ok(content),
        }
    }

    /// Puts reasoning under the name that templates know. Refuses reasoning that is no text, and a second one that says something
    /// else than the first.
    fn unify_reasoning(
        &self,
        place: &str,
        of_parts: Option<String>,
        fields: &mut Map<String, Value>,
    ) -> Result<(), DataError> {
        let first = of_parts.or_else(|| reasoning_of(fields).map(str::to_owned));
        for name in REASONING {
            let value = fields.get(name);
            match value {
                Some(Value::String(text)) if text.trim().is_empty() => {}
                Some(Value::String(text)) if first.as_ref() == Some(text) => {}
                Some(Value::String(_)) => {
                    let expected = "no second reasoning beside the first one";
                    return Err(self.error(format!("{place}.{name}"), expected, value));
                }
                value if is_filled(value) => {
                    return Err(self.error(format!("{place}.{name}"), "text", value));
                }
                _ => {}
            }
        }
        // An empty text says what the absence of a key says.
        fields.retain(|key, value| {
            let is_blank = value.as_str().is_some_and(|text| text.trim().is_empty());
            !(is_blank && REASONING.contains(&key.as_str()))
        });
        if let Some(reasoning) = first {
            fields.insert("reasoning_content".into(), reasoning.into());
        }
        Ok(())
    }

    /// The text under `content` without a think block that says what the reasoning beside it says, or nothing.
    ///
    /// # Errors
    /// A block that says something else.
    pub(super) fn without_second_reasoning(
        &self,
        content: &str,
        reasoning: &str,
        text: String,
    ) -> Result<String, DataError> {
        let Some((inside, answer)) = text.split_once("</think>") else {
            return Ok(text);
        };
        let opened = inside.trim_start().strip_prefix("<think>");
        let second = opened.unwrap_or(inside);
        let is_blank = second.trim().is_empty();
        if is_blank || are_alike(second, reasoning) {
            return Ok(answer.trim_start_matches('\n').to_owned());
        }
        match opened {
            Some(second) => {
                let expected = "no second reasoning beside the one in a field of its own";
                Err(self.error(content, expected, Some(&second.trim().into())))
            }
            // A text about such blocks.
            None => Ok(text),
        }
    }
}

/// The reasoning of a message, under any of the names that data has for it.
pub(super) fn reasoning_of(message: &Map<String, Value>) -> Option<&str> {
    let texts = REASONING
        .iter()
        .filter_map(|name| message.get(*name)?.as_str());
    texts.into_iter().find(|text| !text.trim().is_empty())
}
