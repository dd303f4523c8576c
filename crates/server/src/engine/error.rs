//! Why the engine refuses a sequence or an adapter.

use std::path::PathBuf;

use super::why_pooling::WhyPooling;

/// Why a sequence was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    /// As many sequences wait as may wait.
    #[error(
        "the queue is full: {max_num_queued_reqs} requests are waiting (--max-num-queued-reqs)"
    )]
    QueueFull {
        /// The limit.
        max_num_queued_reqs: usize,
    },
    /// The server is draining.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// The engine thread is gone.
    #[error("the engine has stopped; see the server's log")]
    Stopped,
    /// A text is asked for.
    #[error(
        "this model computes embeddings or scores, not text: {why}; start the server with --runner generate for text"
    )]
    NoText {
        /// What says so.
        why: WhyPooling,
    },
    /// An embedding or a score is asked for.
    #[error(
        "this model generates text; start the server with --runner pooling for embeddings and scores"
    )]
    NoPooling,
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Prompt and requested output do not fit.
    #[error(
        "this model's maximum context length is {max_model_len} tokens, but the prompt has {prompt_len} tokens and {max_tokens} were requested for the output"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens requested for the output.
        max_tokens: usize,
        /// The limit for both together.
        max_model_len: usize,
    },
    /// A token id that the model does not have.
    #[error("token id {id} is out of range: the vocabulary has {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// The number of tokens.
        vocab_size: usize,
    },
    /// No adapter of this name is loaded.
    #[error("no LoRA adapter `{name}` is loaded")]
    UnknownAdapter {
        /// The name.
        name: String,
    },
}

/// Why an accepted sequence did not come to its end.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SequenceError {
    /// The engine dropped it.
    #[error("the request was aborted by the server")]
    Aborted,
    /// The device failed, as when its memory is full: the request may be sent again.
    #[error("the device failed to compute this request: {0}")]
    DeviceFailed(String),
    /// Its adapter has left its slot and cannot be put into one again: its files are gone, or the device has no room.
    #[error("{0}")]
    Adapter(String),
    /// The engine failed on it.
    #[error("{0}")]
    Failed(String),
    /// Its grammar lets no token come, or has become too complex.
    #[error("the grammar of this request cannot be followed any further: {0}")]
    Grammar(String),
    /// The engine thread is gone.
    #[error("the engine stopped while the request was running; see the server's log")]
    Stopped,
}

/// Why an adapter was not loaded or unloaded.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The server runs without `--enable-lora`.
    #[error("LoRA adapters are off; start the server with --enable-lora")]
    Disabled,
    /// There is no folder (or no adapter in it) at this path.
    #[error("no LoRA adapter at {path}: {reason}")]
    NotFound {
        /// The path as given.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The name is taken.
    #[error("a LoRA adapter `{name}` is loaded already; `load_inplace`: true replaces it")]
    AlreadyLoaded {
        /// The name.
        name: String,
    },
    /// No adapter of this name is loaded.
    #[error("no LoRA adapter `{name}` is loaded")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The device's memory is full.
    #[error("LoRA adapter at {path}: the device has no room for it: {reason}")]
    NoRoom {
        /// The path as given.
        path: PathBuf,
        /// What the device said.
        reason: String,
    },
    /// The files are there and do not fit the model or the limits.
    #[error("LoRA adapter at {path} cannot be used: {reason}")]
    Invalid {
        /// The path as given.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The engine thread is gone.
    #[error("the engine has stopped; see the server's log")]
    Stopped,
}
