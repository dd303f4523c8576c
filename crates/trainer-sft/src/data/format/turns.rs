//! Turns of all formats, checked and in the form that chat templates expect.

use serde_json::{Map, Value, json};

use super::super::error::DataError;
use super::parts::Parts;
use super::reader::{Reader, describe, is_filled};
use super::refused::named as keys_of;
use super::{TurnKind, role_of};

/// One turn: what the template gets, and what it is for learning.
pub(super) type Turn = (Value, TurnKind);

/// Names of the assistant.
const ASSISTANT: [&str; 6] = ["assistant", "gpt", "model", "chatgpt", "bing", "bard"];
/// Names of the assistant's reasoning.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// The names of a turn's role and content.
struct Keys {
    role: &'static str,
    content: &'static str,
    /// For messages.
    roles: &'static str,
}

/// Whoever says a turn that has not been checked.
pub(crate) fn speaker_of(turn: &Value) -> Option<&str> {
    ["role", "from"]
        .iter()
        .find_map(|key| turn.get(*key)?.as_str())
}

/// The text of a turn that has not been checked.
pub(super) fn text_of(turn: &Value) -> Option<&str> {
    ["content", "value"]
        .iter()
        .find_map(|key| turn.get(*key)?.as_str())
}

/// The role that chat templates know of whoever says a turn, and whether the turn is a call.
pub(crate) fn speaker_role(name: &str) -> Option<(&'static str, bool)> {
    Some(match name {
        "system" | "developer" => ("system", false),
        "user" | "human" => ("user", false),
        name if ASSISTANT.contains(&name) => ("assistant", false),
        "tool" | "observation" | "function_response" | "tool_response" | "function" => {
            ("tool", false)
        }
        "function_call" | "tool_call" => ("assistant", true),
        _ => return None,
    })
}

impl Reader<'_> {
    /// The turns of an OpenAI or ShareGPT list. Those before `start` are none of the answer.
    ///
    /// Calls that stand in turns of their own belong to the turn of the assistant before them: the model says them in one.
    pub(super) fn turns(
        &self,
        place: &str,
        items: &[Value],
        start: usize,
    ) -> Result<Vec<Turn>, DataError> {
        let mut turns: Vec<Turn> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let (message, kind) = self.turn(&format!("{place}[{index}]"), item)?;
            let kind = if index < start { kind.before() } else { kind };
            match turns.last_mut() {
                Some(last) if is_call(item) && can_join(last, &message, kind) => {
                    join(last, message, kind);
                }
                _ => turns.push((message, kind)),
            }
        }
        Ok(turns)
    }

    /// One turn of an OpenAI or ShareGPT list.
    pub(super) fn turn(&self, place: &str, item: &Value) -> Result<Turn, DataError> {
        let Value::Object(fields) = item else {
            return Err(self.error(place, "an object with `role` and `content`", Some(item)));
        };
        let mut turn = fields.clone();
        // Null says what the absence of a key says.
        turn.retain(|_, value| !value.is_null());
        let keys = match turn.contains_key("role") || !turn.contains_key("from") {
            true => Keys {
                role: "role",
                content: if turn.contains_key("content") || !turn.contains_key("value") {
                    "content"
                } else {
                    "value"
                },
                roles: "one of system, user, assistant, tool",
            },
            false => Keys {
                role: "from",
                content: if turn.contains_key("value") || !turn.contains_key("content") {
                    "value"
                } else {
                    "content"
                },
                roles: "one of system, human, gpt, tool, function_call",
            },
        };
        let field = |name: &str| format!("{place}.{name}");
        let named = turn.shift_remove(keys.role);
        let Some((role, is_call)) = named
            .as_ref()
            .and_then(Value::as_str)
            .and_then(speaker_role)
        else {
            let found = match fields.get(keys.role) {
                None if !fields.is_empty() => format!("nothing among {}", keys_of(fields)),
                found => describe(found),
            };
            return Err(self.error_found(field(keys.role), keys.roles, found));
        };
        for key in ["images", "image", "videos", "video", "audios", "audio"] {
            if is_filled(turn.get(key)) {
                let expected = "no pictures or sounds: these models read text only";
                return Err(self.error(field(key), expected, turn.get(key)));
            }
            turn.shift_remove(key);
        }
        let is_marked = self.take_marks(place, role, &mut turn)?;
        let mut calls = self.take_calls(place, &mut turn)?;
        let refusal = turn.shift_remove("refusal");
        let place = field(keys.content);
        let content = match turn.shift_remove(keys.content) {
            Some(Value::String(text)) if is_call => {
                let (text, found) = self.text_and_calls(&place, &text)?;
                calls.extend(found);
                Parts {
                    text,
                    ..Parts::default()
                }
            }
            Some(Value::String(text)) => Parts {
                text,
                ..Parts::default()
            },
            Some(Value::Array(parts)) if !is_call => self.parts(&place, &parts)?,
            Some(call @ (Value::Object(_) | Value::Array(_))) if is_call => {
                calls.extend(self.calls_in_text(&place, &call.to_string())?);
                Parts::default()
            }
            None if role == "assistant" && !is_call => Parts::default(),
            _ => return Err(self.error(place, "text", fields.get(keys.content))),
        };
        let content = match refusal {
            // What the assistant says instead of a content.
            Some(Value::String(text)) if content.text.is_empty() => Parts { text, ..content },
            Some(refusal) if is_filled(Some(&refusal)) => {
                let expected = format!("no second text beside `{}`", keys.content);
                return Err(self.error(field("refusal"), &expected, Some(&refusal)));
            }
            _ => content,
        };
        calls.extend(content.calls);
        self.check_reasoning(&turn, content.reasoning.as_deref(), &field)?;
        if let Some(reasoning) = content.reasoning {
            turn.insert("reasoning_content".into(), reasoning.into());
        } else if let Some(reasoning) = reasoning_of(&turn).map(str::to_owned) {
            turn.insert("reasoning_content".into(), reasoning.into());
        }
        if !calls.is_empty() && role != "assistant" {
            let expected = "calls of the assistant only";
            return Err(self.error(field("tool_calls"), expected, Some(&Value::Array(calls))));
        }
        let says =
            !content.text.trim().is_empty() || !calls.is_empty() || reasoning_of(&turn).is_some();
        let mut message = Map::new();
        message.insert("role".into(), role.into());
        message.insert("content".into(), content.text.into());
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
        message.extend(turn);
        let kind = match (role == "assistant", is_marked) {
            (false, _) => TurnKind::Prompt,
            (true, false) => TurnKind::Unlearnt,
            (true, true) if says => TurnKind::Answer,
            (true, true) => TurnKind::Earlier,
        };
        Ok((Value::Object(message), kind))
    }

    /// Refuses reasoning that is no text, and a second one that says something else than the first.
    fn check_reasoning(
        &self,
        turn: &Map<String, Value>,
        of_parts: Option<&str>,
        field: &dyn Fn(&str) -> String,
    ) -> Result<(), DataError> {
        let first = of_parts.or_else(|| reasoning_of(turn));
        for name in REASONING {
            let value = turn.get(name);
            match value {
                Some(Value::String(text)) if text.trim().is_empty() => {}
                Some(Value::String(text)) if first == Some(text) => {}
                Some(Value::String(_)) => {
                    let expected = "no second reasoning beside the first one";
                    return Err(self.error(field(name), expected, value));
                }
                value if is_filled(value) => {
                    return Err(self.error(field(name), "text", value));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// ms-swift's pairs of `human` and `assistant`.
    pub(super) fn turns_of_pairs(&self, key: &str) -> Result<Vec<Turn>, DataError> {
        let mut turns = Vec::new();
        for (index, pair) in self
            .list(key, "pairs of `human` and `assistant`")?
            .iter()
            .enumerate()
        {
            for (name, role) in [("human", "user"), ("assistant", "assistant")] {
                let text = match pair.get(name) {
                    Some(Value::String(text)) => text,
                    Some(Value::Null) if role == "assistant" => "",
                    other => {
                        return Err(self.error(format!("{key}[{index}].{name}"), "text", other));
                    }
                };
                turns.push(plain(role, text));
            }
        }
        Ok(turns)
    }

    /// `history`: pairs of question and answer.
    pub(super) fn turns_of_history(&self) -> Result<Vec<Turn>, DataError> {
        let mut turns = Vec::new();
        let history = match self.value("history") {
            None => return Ok(turns),
            // As tables have nothing.
            Some(Value::String(text)) if ["", "[]", "null"].contains(&text.trim()) => {
                return Ok(turns);
            }
            Some(Value::Array(items)) if items.is_empty() => return Ok(turns),
            Some(_) => self.list("history", "pairs of texts")?,
        };
        for (index, pair) in history.iter().enumerate() {
            let texts = pair
                .as_array()
                .map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
            let Some([Some(question), Some(answer)]) = texts.as_deref() else {
                return Err(self.error(format!("history[{index}]"), "a pair of texts", Some(pair)));
            };
            turns.push(plain("user", question));
            turns.push(plain("assistant", answer));
        }
        Ok(turns)
    }
}

/// Whether a turn that is only calls can be said together with the turn before it: both are learnt, or none is.
fn can_join((last, of_last): &Turn, message: &Value, kind: TurnKind) -> bool {
    let fields = || message.as_object().into_iter().flatten();
    let is_only_calls = fields().all(|(key, value)| match key.as_str() {
        "role" | "tool_calls" => true,
        "content" => value == "",
        _ => false,
    });
    let is_same = *of_last == kind || (*of_last == TurnKind::Earlier && says_nothing(last));
    role_of(last) == "assistant" && is_only_calls && is_same
}

/// Whether a message has neither text nor calls nor reasoning.
fn says_nothing(message: &Value) -> bool {
    let text = message.get("content").and_then(Value::as_str);
    let reasoning = message.as_object().and_then(reasoning_of);
    text.is_none_or(|text| text.trim().is_empty())
        && reasoning.is_none()
        && message.get("tool_calls").is_none()
}

/// Adds the calls of a message to those of the one before it.
fn join((last, of_last): &mut Turn, message: Value, kind: TurnKind) {
    let Some(Value::Array(calls)) = message.get("tool_calls").cloned() else {
        return;
    };
    match last.get_mut("tool_calls") {
        Some(Value::Array(earlier)) => earlier.extend(calls),
        _ => last["tool_calls"] = calls.into(),
    }
    *of_last = kind;
}

/// Turns with earlier ones before them, but behind the system's.
pub(super) fn after_system<T>(
    mut turns: Vec<T>,
    earlier: impl IntoIterator<Item = T>,
    message: impl Fn(&T) -> &Value,
) -> Vec<T> {
    let is_of_system = |turn: &&T| {
        let role = speaker_of(message(turn)).and_then(speaker_role);
        role.is_some_and(|(role, _)| role == "system")
    };
    let at = turns.iter().take_while(is_of_system).count();
    turns.splice(at..at, earlier);
    turns
}

/// A turn that is only text.
pub(super) fn plain(role: &str, text: &str) -> Turn {
    let kind = match (role == "assistant", text.trim().is_empty()) {
        (false, _) => TurnKind::Prompt,
        (true, true) => TurnKind::Earlier,
        (true, false) => TurnKind::Answer,
    };
    (json!({"role": role, "content": text}), kind)
}

/// Whether a turn that has not been checked is the assistant's.
pub(super) fn is_of_assistant(turn: &Value) -> bool {
    let role = speaker_of(turn).and_then(speaker_role);
    role.is_some_and(|(role, _)| role == "assistant")
}

/// Whether a turn that has not been checked is a call.
pub(super) fn is_call(turn: &Value) -> bool {
    let role = speaker_of(turn).and_then(speaker_role);
    role.is_some_and(|(_, is_call)| is_call)
}

/// Where the last answer of a list begins: calls belong to the turn of the assistant before them. `None` where the list does
/// not end with an answer.
pub(super) fn start_of_answer(turns: &[Value]) -> Option<usize> {
    if !turns.last().is_some_and(is_of_assistant) {
        return None;
    }
    let calls = turns.iter().rev().take_while(|turn| is_call(turn)).count();
    let start = turns.len() - calls;
    let follows_answer = start > 0 && is_of_assistant(&turns[start - 1]);
    Some(start - usize::from(follows_answer))
}

/// The reasoning of a message, under any of the names that data has for it.
fn reasoning_of(message: &Map<String, Value>) -> Option<&str> {
    let texts = REASONING
        .iter()
        .filter_map(|name| message.get(*name)?.as_str());
    texts.into_iter().find(|text| !text.trim().is_empty())
}
