//! Answers of Ollama's endpoints.

use serde::Serialize;
use serde_json::{Map, Value};

use super::logprobs::ChatLogprob;

/// The answer of `/api/chat` or `/api/generate`, or a line of it.
#[derive(Debug, Serialize)]
pub struct Line {
    /// The name the request used.
    pub model: String,
    /// When it was made, as RFC 3339 has it.
    pub created_at: String,
    /// What is new.
    #[serde(flatten)]
    pub said: Said,
    /// Whether it is the last line.
    pub done: bool,
    /// `stop`, `length` or `load`, in the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    /// Of the new tokens, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<ChatLogprob>>,
    /// In the last line.
    #[serde(flatten)]
    pub timing: Option<Timing>,
}

/// What a [`Line`] says.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Said {
    /// Of `/api/chat`.
    Message {
        /// The message.
        message: OllamaMessage,
    },
    /// Of `/api/generate`.
    Text {
        /// More text.
        response: String,
        /// More of what the model thinks.
        #[serde(skip_serializing_if = "String::is_empty")]
        thinking: String,
    },
}

/// More of a message.
#[derive(Debug, Serialize)]
pub struct OllamaMessage {
    /// `assistant`.
    pub role: &'static str,
    /// More text.
    pub content: String,
    /// More of what the model thinks.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Whole calls of tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<OllamaCall>,
}

/// A call of a tool.
#[derive(Debug, Serialize)]
pub struct OllamaCall {
    /// `call_…`.
    pub id: String,
    /// What is called.
    pub function: OllamaFunction,
}

/// What an [`OllamaCall`] calls.
#[derive(Debug, Serialize)]
pub struct OllamaFunction {
    /// 0-based.
    pub index: usize,
    /// Name of the tool.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// Counts, and durations in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timing {
    /// From the request to its end.
    pub total_duration: u64,
    /// 0: the model stays loaded.
    pub load_duration: u64,
    /// Tokens of the prompt.
    pub prompt_eval_count: usize,
    /// From the request to the first text.
    pub prompt_eval_duration: u64,
    /// Tokens of the answer.
    pub eval_count: usize,
    /// From the first text to the end.
    pub eval_duration: u64,
}

/// Answer of `/api/embed`.
#[derive(Debug, Serialize)]
pub struct Embedded {
    /// The name the request used.
    pub model: String,
    /// In the order of the texts, of length 1.
    pub embeddings: Vec<Vec<f32>>,
    /// From the request to its end, in nanoseconds.
    pub total_duration: u64,
    /// 0: the model stays loaded.
    pub load_duration: u64,
    /// Tokens of all texts.
    pub prompt_eval_count: usize,
}

/// Answer of `/api/embeddings`.
#[derive(Debug, Serialize)]
pub struct PromptEmbedded {
    /// The vector as the model computes it, of any length.
    pub embedding: Vec<f32>,
}

/// Answer of `/api/tags`, or of `/api/ps`.
#[derive(Debug, Serialize)]
pub struct ModelList {
    /// Base names first, then adapters.
    pub models: Vec<ListedModel>,
}

/// A model in a [`ModelList`].
#[derive(Debug, Serialize)]
pub struct ListedModel {
    /// A name that requests may give.
    pub name: String,
    /// The same.
    pub model: String,
    /// When the server started.
    pub modified_at: String,
    /// Bytes of weights.
    pub size: u64,
    /// A number that only this model has on this server, in hexadecimal.
    pub digest: String,
    /// What kind of model it is.
    pub details: Details,
    /// In `/api/ps`.
    #[serde(flatten)]
    pub running: Option<Running>,
}

/// What `/api/ps` says besides.
#[derive(Debug, Serialize)]
pub struct Running {
    /// Far away: the model stays loaded.
    pub expires_at: String,
    /// Bytes of weights on a GPU.
    pub size_vram: u64,
    /// Longest prompt plus answer, in tokens.
    pub context_length: usize,
}

/// What kind of model it is.
#[derive(Clone, Debug, Serialize)]
pub struct Details {
    /// The base model of an adapter.
    pub parent_model: String,
    /// `safetensors`.
    pub format: &'static str,
    /// `qwen2` or `qwen3`.
    pub family: String,
    /// The same.
    pub families: Vec<String>,
    /// Such as `494.03M`.
    pub parameter_size: String,
    /// `F32`, `F16`, `BF16` or `NF4`.
    pub quantization_level: String,
}

/// Answer of `/api/show`.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// A file that names the model.
    pub modelfile: String,
    /// Defaults of options, one per line.
    pub parameters: String,
    /// The chat template, in Jinja.
    pub template: String,
    /// What kind of model it is.
    pub details: Details,
    /// What its configuration says, with the names of GGUF files.
    pub model_info: Map<String, Value>,
    /// What it can do.
    pub capabilities: Vec<&'static str>,
    /// When the server started.
    pub modified_at: String,
}
