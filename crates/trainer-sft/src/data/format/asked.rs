//! Records that only ask: prompts for answers that a model gives while it trains.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::super::example::Source;
use super::extras::Extras;
use super::field_names::PROMPTS;
use super::reader::{Reader, is_filled, named};
use super::role_of;
use super::turn::{Turn, plain};
use super::turns::{after_system, is_of_assistant, says_nothing, start_of_answer};
use crate::config::Columns;

/// The fields of a record that its prompt is made of.
pub(crate) const ASKED: [&str; 8] = [
    "prompt",
    "messages",
    "conversations",
    "history",
    "system",
    "tools",
    "functions",
    "chat_template_kwargs",
];
/// What a prompt may be, for messages.
pub(crate) const EXPECTED: &str =
    "a text, or a list of messages with `role` and `content` that ends before an answer";

/// What is asked, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    /// A text, or messages as chat templates expect them.
    pub(crate) content: Value,
    /// Function schemas and variables for the template.
    pub(crate) with: Extras,
}

impl Asked {
    /// Reads the prompt of a record; an answer at the end of `messages` is left out.
    ///
    /// # Errors
    /// A record without a prompt, and fields that have the wrong content.
    pub(crate) fn parse(source: &Source, fields: &Map<String, Value>) -> Result<Self, DataError> {
        let columns = Columns::default();
        let reader = Reader {
            source,
            fields,
            columns: &columns,
        };
        reader.refuse_media()?;
        reader.check_marks()?;
        Ok(Self {
            content: reader.asked()?,
            with: reader.extras()?,
        })
    }
}

/// Whether a record has a `history` that is none of its prompt's.
pub(crate) fn has_other_history(source: &Source, fields: &Map<String, Value>) -> bool {
    let columns = Columns::default();
    let reader = Reader {
        source,
        fields,
        columns: &columns,
    };
    is_filled(fields.get("history")) && reader.earlier().is_empty()
}

impl Reader<'_> {
    fn asked(&self) -> Result<Value, DataError> {
        let is_there = |key: &&str| self.value(key).is_some();
        let filled = |key: &&str| is_filled(self.fields.get(*key));
        let found = PROMPTS.into_iter().find(filled);
        let Some(key) = found.or_else(|| PROMPTS.into_iter().find(is_there)) else {
            let found = match self.fields.is_empty() {
                true => "no field".to_owned(),
                false => named(self.fields),
            };
            // Null says nothing, where no other field asks.
            let empty = PROMPTS.iter().find(|key| self.fields.contains_key(**key));
            if let Some(key) = empty.filter(|_| self.columns_to_ask().is_none()) {
                return Err(self.teaches_nothing(format!("`{key}` is empty")));
            }
            return Err(self.wrong(format!(
                "expected a record with `prompt` or `messages`, found {found}"
            )));
        };
        let value = &self.fields[key];
        let mut items = match value {
            Value::String(text) if key == "prompt" => return self.asked_text(text),
            Value::Array(_) | Value::String(_) => self.list(key, "messages")?,
            other if key == "prompt" => return Err(self.error(key, EXPECTED, Some(other))),
            other => return Err(self.error(key, "a list", Some(other))),
        };
        if let Some(start) = start_of_answer(&items).filter(|_| key != "prompt") {
            items.truncate(start);
        }
        if items.is_empty() {
            let reason = format!("`{key}` has no question before the answer of the assistant");
            return Err(self.teaches_nothing(reason));
        }
        if items.last().is_some_and(is_of_assistant) {
            let found = "an answer of the assistant at its end".to_owned();
            return Err(self.error_found(key, EXPECTED, found));
        }
        let turns = self.with_system(key, self.turns(key, &items, items.len())?)?;
        let last = turns.last().map(|turn| &turn.message);
        if last.is_some_and(|last| role_of(last) == "user" && says_nothing(last)) {
            return Err(self.teaches_nothing(format!("`{key}` ends with a question that is empty")));
        }
        let turns = after_system(turns, self.earlier(), |turn| &turn.message);
        Ok(turns.into_iter().map(|turn| turn.message).collect())
    }

    fn asked_text(&self, text: &str) -> Result<Value, DataError> {
        if text.trim().is_empty() {
            return Err(self.teaches_nothing("`prompt` is empty"));
        }
        let system = self.optional_text("system")?;
        let system = system.map(|system| plain("system", &system));
        let earlier = self.earlier().into_iter();
        let before = system.into_iter().chain(earlier.map(|turn| turn.message));
        let mut turns: Vec<Value> = before.collect();
        Ok(match turns.is_empty() {
            true => text.into(),
            false => {
                turns.push(plain("user", text));
                turns.into()
            }
        })
    }

    /// Pairs of question and answer under `history` beside `prompt`; another `history` is none of the prompt's.
    fn earlier(&self) -> Vec<Turn> {
        match is_filled(self.fields.get("prompt")) {
            true => self.turns_of_history().unwrap_or_default(),
            false => Vec::new(),
        }
    }

    fn wrong(&self, reason: String) -> DataError {
        DataError::Render {
            source_place: self.source.clone(),
            reason,
        }
    }
}
