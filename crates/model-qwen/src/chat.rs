//! A model with its text side, for programs that want text from text and nothing else.

use std::ops::ControlFlow;
use std::path::PathBuf;

use burn::tensor::Device;
use lora_4bit::ComputeDtype;
use serde_json::Value;

use crate::chat_template::{ChatTemplate, RenderOptions, TemplateError};
use crate::detokenizer::Detokenizer;
use crate::generate::{GenerateError, GenerateRequest, generate};
use crate::generation_config::{GenerationConfig, GenerationConfigError};
use crate::hub::{ResolveError, resolve_model};
use crate::load::{LoadError, LoadOptions};
use crate::model::QwenModel;
use crate::sampling::{SamplingError, SamplingParams};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why there is no chat, or no reply.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum ChatError {
    /// The folder, or the repository on the Hub.
    Resolve(#[from] ResolveError),
    /// Tokenizer files.
    Tokenizer(#[from] TokenizerError),
    /// The chat template, or messages that it refuses.
    Template(#[from] TemplateError),
    /// The model is a base model.
    #[error(
        "{}: expected a chat template (chat_template.jinja, or in tokenizer_config.json), found none: \
         is it a base model?", .dir.display()
    )]
    NoTemplate {
        /// The folder.
        dir: PathBuf,
    },
    /// `generation_config.json`.
    GenerationConfig(#[from] GenerationConfigError),
    /// Config or weights.
    Load(#[from] LoadError),
    /// A sampling parameter.
    Sampling(#[from] SamplingError),
    /// A step that the device could not compute.
    Generate(#[from] GenerateError),
    /// The messages give no token.
    #[error("messages: expected at least one token, found an empty text")]
    Empty,
    /// The tokenizer has a token that the model has no embedding for.
    #[error(
        "token id {id} is out of range: the model has {vocab_size} embeddings; is the tokenizer that of another model?"
    )]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// The messages leave no room for a reply.
    #[error("messages: expected fewer than {max_len} tokens, the model's context, found {len}")]
    TooLong {
        /// Tokens of the messages.
        len: usize,
        /// Tokens of the context.
        max_len: usize,
    },
}

/// How to reply.
#[derive(Clone, Debug)]
pub struct ReplyOptions {
    /// How to choose tokens; `None` is what the model's `generation_config.json` says.
    pub sampling: Option<SamplingParams>,
    /// Most tokens of the reply; the model's context may end it earlier.
    pub max_tokens: usize,
    /// Slot of the LoRA adapter to use, see [`QwenModel::add_adapter`].
    pub adapter: Option<usize>,
    /// Tools and further variables of the template.
    pub render: RenderOptions,
}

impl Default for ReplyOptions {
    /// At most 1024 tokens of the base model, sampled as the model wants it.
    fn default() -> Self {
        Self {
            sampling: None,
            max_tokens: 1024,
            adapter: None,
            render: RenderOptions {
                add_generation_prompt: true,
                ..RenderOptions::default()
            },
        }
    }
}

/// A model, its tokenizer and its chat template.
#[derive(Clone, Debug)]
pub struct ChatModel {
    /// The model.
    pub model: QwenModel,
    /// Text to token ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to text.
    pub template: ChatTemplate,
    /// Sampling defaults and the tokens that end a reply.
    pub generation_config: GenerationConfig,
}

impl ChatModel {
    /// Loads the model that `id_or_path` names: a folder, or `org/name` on the Hub (cargo feature `hub`). Weights are
    /// multiplied as suits `device`, see [`ComputeDtype::Auto`].
    ///
    /// # Errors
    /// When a file is missing or broken, the files do not fit each other, or the model has no chat template.
    pub fn load(
        id_or_path: &str,
        options: &LoadOptions,
        device: &Device,
    ) -> Result<Self, ChatError> {
        let dir = resolve_model(id_or_path)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let template = ChatTemplate::from_dir(&dir)?;
        let template = template.ok_or_else(|| ChatError::NoTemplate { dir: dir.clone() })?;
        let generation_config = GenerationConfig::from_dir(&dir, &tokenizer, Some(&template))?;
        let options = LoadOptions {
            int8_lm_head: true,
            ..*options
        };
        let mut model = QwenModel::load(&dir, &options, device)?;
        model.set_compute_dtype(ComputeDtype::Auto);
        Ok(Self {
            model,
            tokenizer,
            template,
            generation_config,
        })
    }

    /// The assistant's reply to `messages` (objects with `role` and `content`, as in OpenAI's API). `on_text` gets the text as
    /// it comes, in whole characters, and may end it.
    ///
    /// # Errors
    /// When the template refuses the messages, they are longer than the context, or a sampling parameter is out of range.
    pub fn reply(
        &self,
        messages: &[Value],
        options: &ReplyOptions,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String, ChatError> {
        let text = self.template.render(messages, &options.render)?;
        let prompt = self.tokenizer.encode(&text, false)?;
        let config = &self.model.config;
        let (len, max_len) = (prompt.len(), config.context_length());
        if prompt.is_empty() {
            return Err(ChatError::Empty);
        }
        if len >= max_len {
            return Err(ChatError::TooLong { len, max_len });
        }
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= config.vocab_size) {
            let vocab_size = config.vocab_size;
            return Err(ChatError::UnknownToken { id, vocab_size });
        }
        let defaults = || self.generation_config.sampling_defaults();
        let sampling = options.sampling.clone().unwrap_or_else(defaults);
        sampling.validate_for_vocab(config.vocab_size)?;
        let request = GenerateRequest {
            prompt,
            sampling,
            max_tokens: options.max_tokens.min(max_len - len),
            stop_token_ids: self.generation_config.eos_token_ids.clone(),
            adapter: options.adapter,
        };

        let mut words = Detokenizer::new(self.tokenizer.clone(), true);
        let mut reply = String::new();
        generate(&self.model, &request, |token| {
            let text = words.push(token);
            reply.push_str(&text);
            match text.is_empty() {
                true => ControlFlow::Continue(()),
                false => on_text(&text),
            }
        })?;
        let rest = words.finish();
        if !rest.is_empty() {
            reply.push_str(&rest);
            // There is nothing left to end.
            let _ = on_text(&rest);
        }
        Ok(reply)
    }
}
