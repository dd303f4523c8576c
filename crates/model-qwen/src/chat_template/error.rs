//! What goes wrong with chat templates.

use std::path::PathBuf;

use crate::json_file::JsonFileError;

/// Why a chat template could not be loaded or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of the folder cannot be read or holds something unexpected.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        reason: String,
    },
    /// A folder has several named templates, and says not which one is meant.
    #[error(
        "{}: chat_template: expected a template named \"default\", found {names:?}", path.display()
    )]
    NoDefault {
        /// The file.
        path: PathBuf,
        /// The names of its templates.
        names: Vec<String>,
        /// The text of the one for requests with tools.
        tool_use: Option<String>,
    },
    /// The template is not valid Jinja.
    #[error("chat template of {origin} is not valid Jinja: {reason}")]
    Syntax {
        /// Where the template comes from.
        origin: String,
        /// The parser's message, with the line.
        reason: String,
    },
    /// The template itself refused the messages with `raise_exception`.
    #[error("the chat template refused the messages: {0}")]
    Raised(String),
    /// A message does not have the form templates expect.
    #[error("messages[{index}]{field}: expected {expected}, found {found}")]
    Message {
        /// Position in the list.
        index: usize,
        /// The field, as `.content` or `.content[1].type`.
        field: String,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// `continue_final_message` cannot be carried out.
    #[error("continue_final_message: {0}")]
    ContinueFinalMessage(String),
    /// The template needs more work, or memory, than its messages can be worth: most likely a loop without an end.
    #[error(
        "the chat template was ended: it does more work than {fuel} units, what templates get for messages of this length"
    )]
    TooMuchWork {
        /// Instructions, with those for the bytes that it made.
        fuel: u64,
    },
    /// The template took too long.
    #[error(
        "the chat template was ended: it took more than {milliseconds} ms, what templates get for messages of this length"
    )]
    TooSlow {
        /// Processor time for short messages.
        milliseconds: u128,
    },
    /// The template needs too much memory.
    #[error(
        "the chat template was ended: it needs more than {mib} MiB of memory, or nests values too deep"
    )]
    TooLarge {
        /// The memory that templates get.
        mib: u64,
    },
    /// There is no process that renders the template: the system has no room for one, or all are busy.
    #[error("no process renders the chat template: {0}")]
    NoProcess(String),
    /// The template failed while it ran.
    #[error("the chat template failed: {0}")]
    Render(String),
}

impl From<JsonFileError> for TemplateError {
    fn from(error: JsonFileError) -> Self {
        match error {
            JsonFileError::File { path, reason } => Self::File { path, reason },
            JsonFileError::Field {
                path,
                field,
                expected,
                found,
            } => Self::File {
                path,
                reason: format!("field `{field}`: expected {expected}, found {found}"),
            },
        }
    }
}
