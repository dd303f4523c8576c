//! Why data cannot be learnt from.

use std::path::PathBuf;

use thiserror::Error;

use super::example::Source;
use super::names::shown_keys;
use crate::config::{Columns, ConfigError};

/// What is found where a record has no such field.
pub(super) const NOTHING: &str = "nothing";

/// Malformed records that are named.
pub(super) const MAX_ERRORS: usize = 10;

/// A file, record or field that cannot be used. Every message names the place.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// No such file.
    #[error("{}: no such file in {}{near}", path.display(), folder.display())]
    NoFile {
        /// What was given.
        path: PathBuf,
        /// Where it was looked up.
        folder: PathBuf,
        /// Files that may be meant.
        near: String,
    },
    /// A folder or a pattern without files.
    #[error("--data: {what}")]
    NoFiles {
        /// Which, and what is there.
        what: String,
    },
    /// A file of a kind that is not read.
    #[error("{}: expected JSONL, a JSON array or CSV, also packed by gzip or Zstandard; found {found}: {instead}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// The file for tokens that do not fit in memory.
    #[error("{}: the tokens of the data cannot be kept there: {error}", folder.display())]
    Tokens {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Too few records for `--eval-split`.
    #[error(
        "--eval-split: expected a part that leaves records to learn and to evaluate on, found {part} of {records}"
    )]
    Split {
        /// The part.
        part: f64,
        /// Records in all.
        records: usize,
    },
    /// Whoever asked for it wants it no longer.
    #[error("stopped while the data was read")]
    Stopped,
    /// Records that cannot be read.
    #[error("{}", listed(errors, *all))]
    Malformed {
        /// The first of them.
        errors: Vec<DataError>,
        /// Whether these are all.
        all: bool,
    },
    /// A well-formed record from which nothing can be learnt.
    #[error("{source_place}: {reason}")]
    TeachesNothing {
        /// The record.
        source_place: Source,
        /// Why.
        reason: String,
    },
    /// Data of another training method.
    #[error("{source_place}: {kind}: {instead}")]
    Method {
        /// The record.
        source_place: Source,
        /// Which method, and how it was recognised.
        kind: String,
        /// What to do.
        instead: String,
    },
    /// A record that `--method` cannot learn from.
    #[error("{source_place}: --method {method}: expected {expected}, found {found}")]
    Preference {
        /// The record.
        source_place: Source,
        /// The method.
        method: &'static str,
        /// Keys that would be accepted.
        expected: &'static str,
        /// Its keys, and what reads them.
        found: String,
    },
    /// An answer of which no single example can be made.
    #[error(
        "{source_place}: the chat template rewrites earlier turns, so that an answer of {count} turns of the assistant is no single text: put all but the last turn into the prompt"
    )]
    ManyTurns {
        /// The record.
        source_place: Source,
        /// Turns.
        count: usize,
    },
    /// Something that the chat template leaves out.
    #[error(
        "{source_place}: field `{field}`: the model's chat template does not write {what}, so the model would never see them: {instead}"
    )]
    NotWritten {
        /// The record.
        source_place: Source,
        /// For example `messages[1].tool_calls`.
        field: String,
        /// What is left out.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// Bytes that are not UTF-8 text.
    #[error("{place}: expected UTF-8 text, found {found}")]
    Encoding {
        /// File, and line where known.
        place: String,
        /// What is there.
        found: String,
    },
    /// Text that is not JSON.
    #[error("{place}: invalid JSON: {reason}")]
    Json {
        /// File and line.
        place: String,
        /// What the parser says, and what the file should look like.
        reason: String,
    },
    /// `--columns`.
    #[error(transparent)]
    Columns(ConfigError),
    /// No record at all.
    #[error("{}: the file is empty: expected one JSON object per line, a JSON array of objects, or a table with rows below its header", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file that has lost records since the run that goes on read it.
    #[error("{}: expected at least {expected} records, as the run that goes on has read, found {found}", path.display())]
    Shorter {
        /// The file.
        path: PathBuf,
        /// Records that were read.
        expected: usize,
        /// Records that are there.
        found: usize,
    },
    /// A table, or a row of one.
    #[error("{place}: {reason}")]
    Table {
        /// File and line.
        place: String,
        /// What was expected, and what was found.
        reason: String,
    },
    /// A program's list without a record.
    #[error("{0}: expected at least one record, found an empty list")]
    NoRecords(String),
    /// Keys that belong to none of the formats.
    #[error(
        "{source_place}: no known format: expected the keys `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `query` and `response`, `segments`, or `text`; found {found}"
    )]
    Format {
        /// The record.
        source_place: Source,
        /// Its keys, and the nearest known one.
        found: String,
    },
    /// A field that is missing or has the wrong content.
    #[error("{source_place}: field `{field}`: expected {expected}, found {found}")]
    Field {
        /// The record.
        source_place: Source,
        /// For example `messages[1].role`.
        field: String,
        /// What would be accepted.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A chat for a model that has no chat template.
    #[error(
        "{source_place}: the model has no chat template, so {format} records cannot be rendered: use a model with one, or records with `prompt` and `completion`, or with `text`"
    )]
    NoTemplate {
        /// The record.
        source_place: Source,
        /// What was recognised.
        format: &'static str,
    },
    /// The chat template or the tokenizer refuses a record.
    #[error("{source_place}: {reason}")]
    Render {
        /// The record.
        source_place: Source,
        /// Their message.
        reason: String,
    },
    /// The template's output for a turn does not continue its prompt for that turn.
    #[error(
        "{source_place}: message {message}: the chat template renders this assistant turn as {rendered:?}, which does not continue its own generation prompt {prompt:?}; which tokens to learn would be a guess, so the record is refused"
    )]
    Prefix {
        /// The record.
        source_place: Source,
        /// Index of the message, from 0.
        message: usize,
        /// End of the rendered conversation.
        rendered: String,
        /// End of the prompt.
        prompt: String,
    },
    /// An answer without reasoning, under a template that opens a think block.
    #[error(
        "{source_place}: message {message}: the chat template opens a think block and this answer has no reasoning: add `reasoning_content` to the message (or `<think>…</think>` before its content), or pass `--thinking empty` to teach an empty think block"
    )]
    NoReasoning {
        /// The record.
        source_place: Source,
        /// Index of the message, from 0.
        message: usize,
    },
    /// Nothing is left after truncation and masking.
    #[error(
        "{files}: nothing to learn: none of the {num_records} records has a token to learn within --max-length {max_length} (--train-on {train_on}); the commonest reason is that of {commonest}"
    )]
    NothingToLearn {
        /// The files.
        files: String,
        /// Records read.
        num_records: usize,
        /// The limit.
        max_length: usize,
        /// The mask asked for.
        train_on: &'static str,
        /// The first record that was left out for the commonest reason, with that reason.
        commonest: String,
    },
}

impl DataError {
    /// A pair of `--columns` whose field is in no record.
    pub(super) fn no_field((ours, theirs): (&str, &str)) -> Self {
        Self::Columns(ConfigError::Value {
            flag: "columns",
            expected: "fields that a record has".to_owned(),
            found: format!("`{ours}={theirs}`"),
        })
    }

    /// An error of a part that `columns` do not name, with what names it. `keys` are the record's own names of its fields.
    pub(super) fn with_missing_part(mut self, columns: &Columns, keys: &[String]) -> Self {
        if let Self::Field { field, found, .. } = &mut self
            && found == NOTHING
            && !columns.is_empty()
            && Columns::is_part(field)
            && !columns.has(field)
            && !columns.iter().any(|(_, theirs)| theirs == field)
        {
            *found = match keys.contains(field) {
                true => format!(
                    "nothing with --columns {}, though the record has `{field}`: add {field}={field} to --columns",
                    columns.to_text()
                ),
                false => format!(
                    "nothing with --columns {}: add {field}=FIELD to --columns, with one of {}",
                    columns.to_text(),
                    shown_keys(keys.iter())
                ),
            };
        }
        self
    }

    /// The record and the reason, where the record is well-formed and teaches nothing.
    pub(super) fn teaches_nothing(self) -> Result<(Source, String), Self> {
        match self {
            Self::TeachesNothing {
                source_place,
                reason,
            } => Ok((source_place, reason)),
            error => Err(error),
        }
    }

    /// The record that it is about, as its message begins.
    fn place(&self) -> Option<String> {
        match self {
            Self::TeachesNothing { source_place, .. }
            | Self::Method { source_place, .. }
            | Self::Preference { source_place, .. }
            | Self::ManyTurns { source_place, .. }
            | Self::NotWritten { source_place, .. }
            | Self::Format { source_place, .. }
            | Self::Field { source_place, .. }
            | Self::NoTemplate { source_place, .. }
            | Self::Render { source_place, .. }
            | Self::Prefix { source_place, .. }
            | Self::NoReasoning { source_place, .. } => Some(source_place.to_string()),
            Self::Encoding { place, .. } | Self::Json { place, .. } | Self::Table { place, .. } => {
                Some(place.clone())
            }
            _ => None,
        }
    }

    /// The message without the record that it is about.
    pub(crate) fn reason(&self) -> String {
        let text = self.to_string();
        let place = self.place().unwrap_or_default();
        let reason = text
            .strip_prefix(&place)
            .and_then(|rest| rest.strip_prefix(": "));
        reason.unwrap_or(&text).to_owned()
    }

    /// Whether it is about one record, so that more may be wrong with the rest of the file.
    pub(super) fn is_of_a_record(&self) -> bool {
        !matches!(
            self,
            Self::Io { .. }
                | Self::Tokens { .. }
                | Self::Kind { .. }
                | Self::NoTemplate { .. }
                | Self::Stopped
        )
    }
}

/// A line for each reason: its first record, and the places of the others.
fn by_reason(errors: &[DataError]) -> Vec<String> {
    let mut reasons: Vec<(String, String, Vec<String>)> = Vec::new();
    for error in errors {
        let text = error.to_string();
        let place = error.place().unwrap_or_default();
        let reason = text.strip_prefix(&place).unwrap_or(&text).to_owned();
        match reasons.iter_mut().find(|(known, ..)| *known == reason) {
            Some((_, _, others)) => others.push(place),
            None => reasons.push((reason, text, Vec::new())),
        }
    }
    let line = |(_, text, others): &(String, String, Vec<String>)| match others.as_slice() {
        [] => format!("\n  {text}"),
        others => format!("\n  {text}; the same at {}", together(others)),
    };
    reasons.iter().map(line).collect()
}

/// Places one after the other. The name of a file is said once: `a.jsonl:2, 3`.
fn together(places: &[String]) -> String {
    let mut all = String::new();
    let mut file = None;
    for place in places {
        let own = place.rsplit_once(':');
        let shown = match own {
            Some((name, line)) if file == Some(name) => line,
            _ => place,
        };
        file = own.map(|(name, _)| name);
        let comma = if all.is_empty() { "" } else { ", " };
        all += &format!("{comma}{shown}");
    }
    all
}

/// One error as it is; several below each other.
fn listed(errors: &[DataError], all: bool) -> String {
    match (errors, all) {
        ([one], true) => one.to_string(),
        _ => {
            let lines = by_reason(errors);
            let count = errors.len();
            match all {
                true => format!("the data has {count} malformed records:{}", lines.concat()),
                false => format!(
                    "the data has malformed records; the first {count} are:{}",
                    lines.concat()
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_reason_is_said_once() {
        let error = |line: usize, found: &str| DataError::Table {
            place: format!("a.csv:{line}"),
            reason: format!("expected 2 cells, found {found}"),
        };
        let errors = vec![error(2, "3"), error(3, "3"), error(4, "1"), error(7, "3")];
        let said = DataError::Malformed { errors, all: true }.to_string();
        let expected = "the data has 4 malformed records:\n  a.csv:2: expected 2 cells, found 3; the same at a.csv:3, 7\n  \
                        a.csv:4: expected 2 cells, found 1";
        assert_eq!(said, expected);
    }
}
