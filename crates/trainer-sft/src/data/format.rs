//! The record formats, recognised by their keys, and reduced to chats, completions and texts.

mod asked;
mod calls;
mod chat;
mod columns_flag;
mod extras;
mod field_names;
mod hints;
mod marks;
mod pair;
mod parts;
mod preference;
mod question;
mod reader;
mod reasoning;
mod refused;
mod speaker;
mod turn;
mod turns;
mod values;
mod whole;

use std::fmt;

use serde_json::{Map, Value, json};

pub(crate) use self::asked::{ASKED, Asked, has_other_history};
pub use self::extras::Extras;
pub(crate) use self::field_names::PROMPTS;
pub(crate) use self::hints::{columns_for, hint_to_ask};
use self::reader::{Reader, is_filled};
pub(crate) use self::reader::{describe, named};
pub(super) use self::speaker::{Speaker, speaker_name};
use super::error::DataError;
use super::example::Source;
use crate::config::Columns;

pub(crate) use self::preference::{Answer, Answers};
pub(crate) use self::refused::unused_keys;

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
    /// `query`, `response`, `history`, as in ms-swift.
    QueryResponse,
    /// `segments` with `label` and `text`, as in axolotl.
    Segments,
    /// `text`.
    Text,
    /// `prompt`, `chosen`, `rejected`, for DPO and ORPO; the prompt may be the beginning of both answers.
    Preference,
    /// `prompt`, `completion`, `label`, for KTO.
    Verdict,
}

impl Format {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages (OpenAI)",
            Self::ShareGpt => "conversations (ShareGPT)",
            Self::Alpaca => "instruction/input/output (Alpaca)",
            Self::PromptCompletion => "prompt/completion",
            Self::QueryResponse => "query/response",
            Self::Segments => "segments",
            Self::Text => "text",
            Self::Preference => "prompt/chosen/rejected",
            Self::Verdict => "prompt/completion/label",
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
        /// Function schemas and variables for the template.
        with: Extras,
    },
    /// Texts one after the other as they are, some of them learnt.
    Segments(Vec<(String, bool)>),
    /// Learnt whole, with an end token.
    Text(String),
}

/// What a turn, or a piece of text, is for learning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnKind {
    /// Not the assistant's.
    Prompt,
    /// The assistant's, and learnt.
    Answer,
    /// The assistant's, before what is learnt.
    Earlier,
    /// The assistant's, and marked as not to be learnt.
    Unlearnt,
}

impl TurnKind {
    /// The same turn where only what comes after it is learnt.
    pub(crate) fn before(self) -> Self {
        match self {
            Self::Answer => Self::Earlier,
            other => other,
        }
    }
}

/// A conversation that ends with the assistant.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// Messages as chat templates expect them: `content` is a string, tool-call arguments are objects.
    pub messages: Vec<Value>,
    /// What message `i` is for learning.
    pub kinds: Vec<TurnKind>,
    /// Function schemas and variables for the template.
    pub with: Extras,
    /// Whether turns before the first question or after the last answer were left out.
    pub is_cut: bool,
}

impl Chat {
    /// One question, one answer.
    pub fn single_turn(prompt: &str, completion: &str, with: Extras) -> Self {
        Self {
            messages: vec![
                json!({"role": "user", "content": prompt}),
                json!({"role": "assistant", "content": completion}),
            ],
            kinds: vec![TurnKind::Prompt, TurnKind::Answer],
            with,
            is_cut: false,
        }
    }
}

impl Record {
    /// Recognises and checks one record; `columns` says which of its fields are which.
    ///
    /// Null says what the absence of a key says.
    ///
    /// # Errors
    /// Keys of no known format; fields that are missing or have the wrong content; data of another training method; and
    /// records that teach nothing.
    pub fn parse(source: Source, value: Value, columns: &Columns) -> Result<Self, DataError> {
        let keys = keys_of(&value, columns);
        Self::read(source, value, columns).map_err(|error| error.with_missing_part(columns, &keys))
    }

    fn read(source: Source, value: Value, columns: &Columns) -> Result<Self, DataError> {
        let fields = fields_of(&source, value, columns)?;
        let reader = Reader {
            source: &source,
            fields: &fields,
            columns,
        };
        if columns.is_empty() && reader.is_table() {
            return Err(reader.unknown_format());
        }
        reader.refuse_other_methods()?;
        let format = match reader.recognise() {
            Some(format) => format,
            None => return Err(reader.unknown_format()),
        };
        reader.refuse_unread(format)?;
        reader.check_marks()?;
        let content = match format {
            Format::Messages => Content::Chat(reader.messages("messages")?),
            Format::ShareGpt if is_filled(fields.get("conversation")) => {
                Content::Chat(reader.messages("conversation")?)
            }
            Format::ShareGpt => Content::Chat(reader.messages("conversations")?),
            Format::Alpaca => Content::Chat(reader.alpaca()?),
            Format::QueryResponse => Content::Chat(reader.query_response()?),
            Format::PromptCompletion => reader.prompt_completion()?,
            Format::Segments => Content::Segments(reader.segments()?),
            // Preference data is none of supervised learning, see `Answers`.
            Format::Text | Format::Preference | Format::Verdict => {
                Content::Text(reader.to_learn("text")?)
            }
        };
        Ok(Self {
            source,
            format,
            content,
        })
    }
}

/// The record's own names of its fields where `--columns` gives them others, for messages.
fn keys_of(value: &Value, columns: &Columns) -> Vec<String> {
    match value {
        Value::Object(fields) if !columns.is_empty() => fields.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// The fields of a record, by our names.
fn fields_of(
    source: &Source,
    value: Value,
    columns: &Columns,
) -> Result<Map<String, Value>, DataError> {
    let Value::Object(fields) = value else {
        return Err(DataError::Format {
            found: describe(Some(&value)),
            source_place: source.clone(),
        });
    };
    if columns.is_empty() {
        return Ok(fields);
    }
    let own = columns.iter().filter_map(|(part, field)| {
        let value = fields.get(field)?.clone();
        Some((part.to_owned(), value))
    });
    let own: Map<String, Value> = own.collect();
    if own.is_empty() {
        let there = match fields.is_empty() {
            true => "no keys at all".to_owned(),
            false => named(&fields),
        };
        return Err(DataError::Format {
            found: format!(
                "{there}; --columns {} names a field that is not there",
                columns.to_text()
            ),
            source_place: source.clone(),
        });
    }
    Ok(own)
}

impl Reader<'_> {
    /// The format that most of the keys with a value belong to; where none has one, of the keys that are there.
    fn recognise(&self) -> Option<Format> {
        let filled = |key: &str| is_filled(self.fields.get(key));
        let known = |key: &str| self.fields.contains_key(key);
        let format = |has: &dyn Fn(&str) -> bool| {
            if has("messages") {
                Some(Format::Messages)
            } else if has("conversations") || has("conversation") {
                Some(Format::ShareGpt)
            } else if has("instruction") {
                Some(Format::Alpaca)
            } else if has("prompt") {
                Some(Format::PromptCompletion)
            } else if has("query") {
                Some(Format::QueryResponse)
            } else if has("segments") {
                Some(Format::Segments)
            } else if has("text") {
                Some(Format::Text)
            } else if has("output") && known("instruction") {
                Some(Format::Alpaca)
            } else if has("completion") && known("prompt") {
                Some(Format::PromptCompletion)
            } else if has("response") && known("query") {
                Some(Format::QueryResponse)
            } else {
                None
            }
        };
        format(&filled).or_else(|| format(&known))
    }
}

/// The role of a checked message.
pub(crate) fn role_of(message: &Value) -> &str {
    message
        .get("role")
        .and_then(Value::as_str)
        .unwrap_or_default()
}
