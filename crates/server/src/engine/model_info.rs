//! What the loaded model brings besides its weights: text to tokens and back.

use std::path::PathBuf;

use model_qwen::{ChatTemplate, GenerationConfig, Tokenizer};

use super::runner::PoolingInfo;

/// What the loaded model brings for those who make requests.
#[derive(Clone)]
pub struct ModelInfo {
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// The chat template in force: the configuration's, or else the model's own, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Sampling defaults and end-of-sequence ids.
    pub generation_config: GenerationConfig,
    /// Its folder.
    pub dir: PathBuf,
    /// The model as the user named it; the default for `--served-model-name`.
    pub model_id: String,
    /// How texts become vectors or scores; `None` for a model that generates text.
    pub pooling: Option<PoolingInfo>,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: usize,
    /// The memory report, several lines, for printing at start.
    pub memory_table: String,
}
