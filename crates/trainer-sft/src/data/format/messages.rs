//! OpenAI messages, checked and in the form chat templates expect.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::Chat;
use super::reader::{Reader, describe};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

impl Reader<'_> {
    /// OpenAI messages under `key`, with an optional `system` text beside them.
    pub(super) fn messages(&self, key: &str) -> Result<Chat, DataError> {
        let mut messages = Vec::new();
        let mut learnt = Vec::new();
        for (index, item) in self.list(key)?.iter().enumerate() {
            let (message, learn) = self.message(&format!("{key}[{index}]"), item)?;
            messages.push(message);
            learnt.push(learn);
        }
        self.chat(key, "role", messages, learnt)
    }

    /// One OpenAI message: what the template gets, and whether it is learnt.
    pub(super) fn message(&self, place: &str, item: &Value) -> Result<(Value, bool), DataError> {
        let Value::Object(fields) = item else {
            return Err(self.error(place, "an object with `role` and `content`", Some(item)));
        };
        let field = |name: &str| format!("{place}.{name}");
        let expected_roles = "one of system, user, assistant, tool";
        let role = match fields.get("role") {
            Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.as_str(),
            other => return Err(self.error(field("role"), expected_roles, other)),
        };
        let mut message = fields.clone();
        if role == "developer" {
            message.insert("role".into(), "system".into());
        }
        let weight = match message.shift_remove("weight") {
            None | Some(Value::Null) => true,
            Some(value) => match value.as_f64() {
                Some(1.0) => true,
                Some(0.0) => false,
                _ => return Err(self.error(field("weight"), "0 or 1", Some(&value))),
            },
        };
        let tool_calls = self.tool_calls(&field("tool_calls"), &mut message)?;
        let content = match fields.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => self.text_parts(&field("content"), parts)?,
            None | Some(Value::Null) if tool_calls => String::new(),
            other => return Err(self.error(field("content"), "text", other)),
        };
        if role == "assistant" && content.trim().is_empty() && !tool_calls {
            return Err(self.error_found(
                field("content"),
                "what the assistant says",
                "an empty string".into(),
            ));
        }
        message.insert("content".into(), content.into());
        Ok((Value::Object(message), role == "assistant" && weight))
    }

    /// `[{"type": "text", "text": …}, …]` as one text, joined with line breaks as [`model_qwen::ChatTemplate`] does.
    fn text_parts(&self, place: &str, parts: &[Value]) -> Result<String, DataError> {
        let mut pieces = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            match (part.get("type").and_then(Value::as_str), part.get("text")) {
                (Some("text"), Some(Value::String(piece))) => pieces.push(piece.as_str()),
                (kind, _) => {
                    let found = kind.map_or_else(
                        || describe(Some(part)),
                        |kind| format!("a part of type `{kind}`"),
                    );
                    return Err(self.error_found(
                        format!("{place}[{index}]"),
                        "a part of type `text`",
                        found,
                    ));
                }
            }
        }
        Ok(pieces.join("\n"))
    }

    /// Parses arguments, which the API sends as a string and templates print as an object. Says whether there are calls.
    fn tool_calls(&self, place: &str, message: &mut Map<String, Value>) -> Result<bool, DataError> {
        match message.get_mut("tool_calls") {
            None => Ok(false),
            Some(Value::Null) => {
                message.shift_remove("tool_calls");
                Ok(false)
            }
            Some(Value::Array(calls)) => {
                for (index, call) in calls.iter_mut().enumerate() {
                    let place = format!("{place}[{index}].function");
                    let Some(Value::Object(function)) = call.get_mut("function") else {
                        return Err(self.error(
                            place,
                            "an object with `name` and `arguments`",
                            None,
                        ));
                    };
                    if !function.get("name").is_some_and(Value::is_string) {
                        return Err(self.error(
                            format!("{place}.name"),
                            "text",
                            function.get("name"),
                        ));
                    }
                    if let Some(Value::String(text)) = function.get("arguments") {
                        let arguments: Value = serde_json::from_str(text).map_err(|_| {
                            self.error_found(
                                format!("{place}.arguments"),
                                "a JSON object",
                                format!("the text {text:?}"),
                            )
                        })?;
                        function.insert("arguments".into(), arguments);
                    }
                }
                Ok(!calls.is_empty())
            }
            other => {
                let other = other.cloned();
                Err(self.error(place, "a list of calls", other.as_ref()))
            }
        }
    }
}
