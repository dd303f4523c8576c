//! Why data cannot be learnt from.

use std::path::PathBuf;

use thiserror::Error;

use super::example::Source;

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
    /// No record at all.
    #[error("{}: the file is empty: expected one JSON object per line, or a JSON array of objects", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A program's list without a record.
    #[error("{0}: expected at least one record, found an empty list")]
    NoRecords(String),
    /// Keys that belong to none of the formats.
    #[error(
        "{source_place}: no known format: expected the keys `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, or `text`; found {found}"
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
        "{files}: nothing to learn: none of the {num_records} records has a token to learn within --max-length {max_length} (--train-on {train_on}); the first one dropped is {first}"
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
        /// The first record that was dropped.
        first: String,
    },
}
