//! The five record formats, recognised by their keys, and reduced to chats, completions and texts.

mod messages;
mod reader;

use std::fmt;

use serde_json::{Map, Value, json};

use self::reader::{Reader, describe};
use super::error::DataError;
use super::example::Source;

/// What a record was recognised as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// `messages` with `role` and `content`, as in the OpenAI API; `tools` next to it.
    Messages,
    /// `conversations` with `from` and `value`.
    ShareGpt,
    /// `instruction`, `input`, `output`.
    Alpaca,
    /// `prompt`, `completion`.
    PromptCompletion,
    /// `text`.
    Text,
}

impl Format {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages (OpenAI)",
            Self::ShareGpt => "conversations (ShareGPT)",
            Self::Alpaca => "instruction/input/output (Alpaca)",
            Self::PromptCompletion => "prompt/completion",
            Self::Text => "text",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// One record, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it was read.
    pub source: Source,
    /// What it was recognised as.
    pub format: Format,
    /// What it says.
    pub content: Content,
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Rendered with the chat template.
    Chat(Chat),
    /// A chat of one turn where the model has a chat template, otherwise the two texts one after the other.
    Completion {
        /// Not learnt.
        prompt: String,
        /// Learnt, with an end token.
        completion: String,
    },
    /// Learnt whole, with an end token.
    Text(String),
}

/// A conversation that ends with the assistant.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// Messages as chat templates expect them: `content` is a string, tool-call arguments are objects.
    pub messages: Vec<Value>,
    /// Whether message `i` is from the assistant and is to be learnt.
    pub learnt: Vec<bool>,
    /// Function schemas for the template.
    pub tools: Option<Value>,
}

impl Chat {
    /// One question, one answer.
    pub fn single_turn(prompt: &str, completion: &str) -> Self {
        Self {
            messages: vec![
                json!({"role": "user", "content": prompt}),
                json!({"role": "assistant", "content": completion}),
            ],
            learnt: vec![false, true],
            tools: None,
        }
    }
}

/// The accepted keys, for hints.
const KEYS: [&str; 8] = [
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "text",
];

impl Record {
    /// Recognises and checks one record.
    ///
    /// # Errors
    /// Keys of no known format; fields that are missing or have the wrong content.
    pub fn parse(source: Source, value: Value) -> Result<Self, DataError> {
        let Value::Object(fields) = value else {
            let found = describe(Some(&value));
            return Err(DataError::Format {
                source_place: source,
                found,
            });
        };
        let reader = Reader {
            source: &source,
            fields: &fields,
        };
        let has = |key: &str| fields.contains_key(key);
        let (format, content) = if has("messages") {
            (
                Format::Messages,
                Content::Chat(reader.messages("messages")?),
            )
        } else if has("conversations") {
            (Format::ShareGpt, Content::Chat(reader.conversations()?))
        } else if has("instruction") {
            (Format::Alpaca, Content::Chat(reader.alpaca()?))
        } else if has("prompt") {
            (Format::PromptCompletion, reader.prompt_completion()?)
        } else if has("text") {
            (Format::Text, Content::Text(reader.non_empty("text")?))
        } else {
            return Err(DataError::Format {
                found: unknown_keys(&fields),
                source_place: source,
            });
        };
        Ok(Self {
            source,
            format,
            content,
        })
    }
}

/// The role of a checked message.
pub(crate) fn role_of(message: &Value) -> &str {
    message
        .get("role")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn unknown_keys(fields: &Map<String, Value>) -> String {
    if fields.is_empty() {
        return "no keys at all".into();
    }
    let names: Vec<String> = fields
        .keys()
        .take(8)
        .map(|key| format!("`{key}`"))
        .collect();
    let mut found = names.join(", ");
    for key in fields.keys() {
        if KEYS.contains(&key.as_str()) {
            continue;
        }
        if let Some(near) = KEYS
            .iter()
            .find(|known| strsim::damerau_levenshtein(known, &key.to_lowercase()) <= 2)
        {
            found.push_str(&format!(" (did you mean `{near}`?)"));
            break;
        }
    }
    found
}
