//! What a run leaves behind: an adapter folder, or a model folder that can be served.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use lora_4bit::peft::LoraConfig;
use model_qwen::QwenModel;

use crate::error::{TrainError, output_error};
use crate::lora;

/// What the result is made of.
pub(crate) enum Weights {
    /// Configuration of the adapter.
    Adapter(Box<LoraConfig>),
    /// Folder of the tokenizer, which is copied.
    Model { tokenizer: Option<PathBuf> },
}

/// Tokenizer files that a model folder needs next to its weights.
const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

impl Weights {
    /// Writes the result to `dir`, model weights in `dtype`; every file appears whole or not at all.
    pub(crate) fn save(
        &self,
        model: &QwenModel,
        dir: &Path,
        dtype: DType,
    ) -> Result<(), TrainError> {
        match self {
            Self::Adapter(lora_config) => {
                Ok(lora::read_adapter(model, lora::SLOT, lora_config).save(dir)?)
            }
            Self::Model { tokenizer } => {
                std::fs::create_dir_all(dir).map_err(output_error(dir))?;
                let sources = tokenizer
                    .iter()
                    .flat_map(|folder| TOKENIZER_FILES.map(|name| (folder.join(name), name)));
                for (source, name) in sources.filter(|(source, _)| source.exists()) {
                    std::fs::copy(&source, dir.join(name)).map_err(output_error(&source))?;
                }
                Ok(model.save(dir, dtype)?)
            }
        }
    }
}
