//! Fields of one record, checked; errors name the field.

use serde_json::{Map, Value, json};

use super::super::error::DataError;
use super::super::example::Source;
use super::{Chat, Content, role_of};

/// Reads fields of one record; errors know the record's place.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) fields: &'a Map<String, Value>,
}

impl Reader<'_> {
    pub(super) fn error(
        &self,
        field: impl Into<String>,
        expected: &str,
        found: Option<&Value>,
    ) -> DataError {
        self.error_found(field, expected, describe(found))
    }

    pub(super) fn error_found(
        &self,
        field: impl Into<String>,
        expected: &str,
        found: String,
    ) -> DataError {
        DataError::Field {
            source_place: self.source.clone(),
            field: field.into(),
            expected: expected.into(),
            found,
        }
    }

    fn text(&self, key: &str) -> Result<String, DataError> {
        match self.fields.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(self.error(key, "text", other)),
        }
    }

    pub(super) fn non_empty(&self, key: &str) -> Result<String, DataError> {
        let text = self.text(key)?;
        if text.trim().is_empty() {
            return Err(self.error_found(key, "text that can be learnt", "an empty string".into()));
        }
        Ok(text)
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>, DataError> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            other => Err(self.error(key, "text", other)),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<&[Value], DataError> {
        match self.fields.get(key) {
            Some(Value::Array(items)) if !items.is_empty() => Ok(items),
            Some(Value::Array(_)) => {
                Err(self.error_found(key, "a list of messages", "an empty list".into()))
            }
            other => Err(self.error(key, "a list of messages", other)),
        }
    }

    /// `tools` as a list, or as a string that holds one.
    fn tools(&self) -> Result<Option<Value>, DataError> {
        match self.fields.get("tools") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(tools)) => {
                Ok(Some(Value::Array(tools.clone())).filter(|_| !tools.is_empty()))
            }
            Some(Value::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(tools)) => Ok(Some(Value::Array(tools))),
                _ => Err(self.error_found(
                    "tools",
                    "a list of functions",
                    format!("the text {text:?}"),
                )),
            },
            other => Err(self.error("tools", "a list of functions", other)),
        }
    }

    /// ShareGPT turns; turns with `role` and `content` are read as OpenAI messages.
    pub(super) fn conversations(&self) -> Result<Chat, DataError> {
        let key = "conversations";
        let items = self.list(key)?;
        if items.iter().all(|item| item.get("role").is_some()) {
            return self.messages(key);
        }
        let mut messages = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let place = format!("{key}[{index}]");
            let value = match item.get("value") {
                Some(Value::String(text)) => text,
                other => return Err(self.error(format!("{place}.value"), "text", other)),
            };
            let role = match item.get("from").and_then(Value::as_str) {
                Some("system") => "system",
                Some("human" | "user") => "user",
                Some("gpt" | "assistant" | "model" | "chatgpt" | "bing" | "bard") => "assistant",
                Some("tool" | "observation" | "function_response") => "tool",
                Some("function_call") => {
                    let call: Value = serde_json::from_str(value).map_err(|_| {
                        self.error_found(
                            format!("{place}.value"),
                            "a JSON object",
                            format!("the text {value:?}"),
                        )
                    })?;
                    let call = json!({"role": "assistant", "tool_calls": [{"type": "function", "function": call}]});
                    messages.push(self.message(&place, &call)?.0);
                    continue;
                }
                _ => {
                    let expected = "one of system, human, gpt, tool, function_call";
                    return Err(self.error(format!("{place}.from"), expected, item.get("from")));
                }
            };
            if role == "assistant" && value.trim().is_empty() {
                let found = "an empty string".into();
                return Err(self.error_found(
                    format!("{place}.value"),
                    "what the assistant says",
                    found,
                ));
            }
            messages.push(json!({"role": role, "content": value}));
        }
        let learnt = messages
            .iter()
            .map(|message| role_of(message) == "assistant")
            .collect();
        self.chat(key, "from", messages, learnt)
    }

    /// Alpaca, with LLaMA-Factory's optional `system` and `history`.
    pub(super) fn alpaca(&self) -> Result<Chat, DataError> {
        let mut prompt = self.text("instruction")?;
        if let Some(input) = self.optional_text("input")? {
            prompt = format!("{prompt}\n{input}");
        }
        let mut chat = Chat {
            messages: Vec::new(),
            learnt: Vec::new(),
            tools: None,
        };
        match self.fields.get("history") {
            None | Some(Value::Null) => {}
            Some(Value::Array(turns)) => {
                for (index, turn) in turns.iter().enumerate() {
                    let pair = turn
                        .as_array()
                        .map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
                    let Some([Some(question), Some(answer)]) = pair.as_deref() else {
                        return Err(self.error(
                            format!("history[{index}]"),
                            "a pair of texts",
                            Some(turn),
                        ));
                    };
                    let turn = Chat::single_turn(question, answer);
                    chat.messages.extend(turn.messages);
                    chat.learnt.extend(turn.learnt);
                }
            }
            other => return Err(self.error("history", "a list of pairs", other)),
        }
        let last = Chat::single_turn(&prompt, &self.non_empty("output")?);
        chat.messages.extend(last.messages);
        chat.learnt.extend(last.learnt);
        self.chat("output", "", chat.messages, chat.learnt)
    }

    /// Two texts, or two lists of messages of which only the second is learnt.
    pub(super) fn prompt_completion(&self) -> Result<Content, DataError> {
        if !matches!(self.fields.get("prompt"), Some(Value::Array(_))) {
            return Ok(Content::Completion {
                prompt: self.text("prompt")?,
                completion: self.non_empty("completion")?,
            });
        }
        let mut messages = Vec::new();
        let mut learnt = Vec::new();
        for key in ["prompt", "completion"] {
            for (index, item) in self.list(key)?.iter().enumerate() {
                let (message, learn) = self.message(&format!("{key}[{index}]"), item)?;
                messages.push(message);
                learnt.push(learn && key == "completion");
            }
        }
        Ok(Content::Chat(self.chat(
            "completion",
            "role",
            messages,
            learnt,
        )?))
    }

    /// Adds `system` and `tools`, and checks the order of roles.
    pub(super) fn chat(
        &self,
        key: &str,
        role: &str,
        messages: Vec<Value>,
        learnt: Vec<bool>,
    ) -> Result<Chat, DataError> {
        let (mut messages, mut learnt) = (messages, learnt);
        let index = messages.len() - 1;
        let last = role_of(&messages[index]);
        if last != "assistant" {
            let expected = "the last message to be the assistant's, which is what is learnt";
            let found = format!("a message from `{last}`");
            return Err(self.error_found(format!("{key}[{index}].{role}"), expected, found));
        }
        if let Some(system) = self.optional_text("system")? {
            messages.insert(0, json!({"role": "system", "content": system}));
            learnt.insert(0, false);
        }
        if role_of(&messages[0]) == "assistant" {
            let expected = "a message from the user or the system first";
            return Err(self.error_found(
                format!("{key}[0].{role}"),
                expected,
                "a message from `assistant`".into(),
            ));
        }
        if !learnt.contains(&true) {
            let expected = "an assistant message to learn";
            return Err(self.error_found(key, expected, "only messages with weight 0".into()));
        }
        Ok(Chat {
            messages,
            learnt,
            tools: self.tools()?,
        })
    }
}

/// What a value is, for "found …".
pub(super) fn describe(value: Option<&Value>) -> String {
    match value {
        None => "nothing".into(),
        Some(Value::Null) => "null".into(),
        Some(Value::Bool(value)) => format!("{value}"),
        Some(Value::Number(value)) => format!("the number {value}"),
        Some(Value::String(text)) if text.chars().count() > 40 => {
            format!("{:?}…", text.chars().take(40).collect::<String>())
        }
        Some(Value::String(text)) => format!("{text:?}"),
        Some(Value::Array(_)) => "a list".into(),
        Some(Value::Object(_)) => "an object".into(),
    }
}
