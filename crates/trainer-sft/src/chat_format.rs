//! How a model turns text into tokens: tokenizer, chat template, context length and end token, read from its folder.

use std::path::PathBuf;

use model_qwen::{
    ChatTemplate, Detokenizer, JsonFileError, QwenConfig, Tokenizer, bundled_model_dir, end_tokens,
    resolve_model,
};
use thiserror::Error;

use crate::config::{Config, ModelConfig, Thinking};
use crate::template_facts::{THINK, TemplateFacts};

/// What the model sets for the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens the model can attend to.
    pub context_length: usize,
    /// The tokens at which the server stops; the first one ends texts and completions.
    pub eos_token_ids: Vec<u32>,
}

/// A base model that cannot be found, or whose text files cannot be used.
#[derive(Debug, Error)]
pub enum ModelFilesError {
    /// No `--model`, and no bundled one.
    #[error(transparent)]
    NoModel(#[from] model_qwen::NoBundledData),
    /// `--init-config` without `--tokenizer`.
    #[error("--init-config needs --tokenizer FOLDER")]
    NoTokenizer,
    /// `--model` names no folder and no model that can be downloaded.
    #[error("--model {model}: {error}")]
    Resolve {
        /// What was given.
        model: String,
        /// Why.
        error: model_qwen::ResolveError,
    },
    /// The `--init-config` file cannot be read.
    #[error("--init-config {}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// `generation_config.json`.
    #[error(transparent)]
    Generation(#[from] model_qwen::GenerationConfigError),
    /// `config.json`.
    #[error(transparent)]
    Config(#[from] model_qwen::ConfigError),
    /// `tokenizer.json`.
    #[error(transparent)]
    Tokenizer(#[from] model_qwen::TokenizerError),
    /// A small JSON file of the folder.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// The tokenizer makes ids that the model has no embedding for.
    #[error(
        "the tokenizer has the token {token:?} with the id {id}, and the model only {vocab} embeddings: give the tokenizer of this model"
    )]
    Vocabulary {
        /// The first token without an embedding.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// The chat template.
    #[error(transparent)]
    Template(#[from] model_qwen::TemplateError),
    /// `--thinking empty` for a model without think blocks.
    #[error(
        "--thinking empty would have no effect: neither chat template nor tokenizer of this model have a think block; leave it out"
    )]
    NoThinking,
}

impl ModelFilesError {
    /// Whether a flag is wrong, and not a file.
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::NoTokenizer | Self::NoThinking)
    }
}

/// Everything about a model that the data depends on; no weights.
#[derive(Clone, Debug)]
pub struct ChatFormat {
    /// Text to token ids.
    pub tokenizer: Tokenizer,
    /// Messages to text; base models have none.
    pub template: Option<ChatTemplate>,
    /// Context length and end token.
    pub limits: Limits,
    /// What the chat template prints; nothing where there is none.
    pub facts: TemplateFacts,
    /// The tokens that end a text by the model's files, without what its chat template says.
    pub named_ends: Vec<u32>,
}

impl ModelConfig {
    /// The base model's folder: `--model` (downloaded where it is a hub id) or the bundled model; `None` with
    /// `--init-config`.
    ///
    /// # Errors
    /// When the model cannot be found or downloaded.
    pub fn folder(&self) -> Result<Option<PathBuf>, ModelFilesError> {
        match (&self.model, &self.init_config) {
            (None, Some(_)) => Ok(None),
            (Some(model), _) => {
                resolve_model(model)
                    .map(Some)
                    .map_err(|error| ModelFilesError::Resolve {
                        model: model.clone(),
                        error,
                    })
            }
            (None, None) => Ok(Some(bundled_model_dir()?)),
        }
    }

    /// The architecture: of the base model, or of `--init-config`.
    ///
    /// # Errors
    /// When the configuration cannot be found, read, or is no Qwen model's.
    pub fn architecture(&self) -> Result<QwenConfig, ModelFilesError> {
        match (self.folder()?, &self.init_config) {
            (Some(folder), _) => Ok(QwenConfig::load(&folder)?),
            (None, Some(path)) => {
                let text = crate::text_file::read(path).map_err(|error| ModelFilesError::Io {
                    path: path.clone(),
                    error,
                })?;
                Ok(QwenConfig::from_json(&text, path)?)
            }
            (None, None) => Ok(QwenConfig::load(&bundled_model_dir()?)?),
        }
    }
}

impl ChatFormat {
    /// Tokens as text, without special tokens: what the server answers.
    #[must_use]
    pub fn text_of(&self, tokens: &[u32]) -> String {
        let mut words = Detokenizer::new(self.tokenizer.clone(), true);
        let mut text: String = tokens.iter().map(|token| words.push(*token)).collect();
        text.push_str(&words.finish());
        text
    }

    /// Refuses a tokenizer with ids that a model with `vocab` embeddings has none for.
    ///
    /// # Errors
    /// The first such token.
    pub(crate) fn check_vocabulary(&self, vocab: usize) -> Result<(), ModelFilesError> {
        match self.tokenizer.first_id_from(vocab) {
            Some((token, id)) => Err(ModelFilesError::Vocabulary { token, id, vocab }),
            None => Ok(()),
        }
    }

    /// Reads tokenizer, template and limits of the run's model.
    ///
    /// # Errors
    /// When a file is missing or invalid; the message names it.
    pub fn load(config: &Config) -> Result<Self, ModelFilesError> {
        let model = config.model.folder()?;
        let folder = match (&config.model.tokenizer, &model) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) => folder.clone(),
            (None, None) => return Err(ModelFilesError::NoTokenizer),
        };
        let architecture = config.model.architecture()?;
        let tokenizer = Tokenizer::from_dir(&folder)?;
        let template = ChatTemplate::from_dir(&folder)?;
        // As the server asks; the architecture may be that of `--init-config`, whose end token is the first.
        let ends = end_tokens(&folder, &tokenizer, template.as_ref())?;
        let mut named_ends = architecture.eos_token_ids.clone();
        named_ends.extend(end_tokens(&folder, &tokenizer, None)?);
        let mut eos_token_ids = architecture.eos_token_ids.clone();
        let others = ends.into_iter();
        eos_token_ids.extend(others.filter(|id| !architecture.eos_token_ids.contains(id)));
        let facts = template
            .as_ref()
            .map(|template| TemplateFacts::of(template, &tokenizer));
        let opens_think = facts.as_ref().is_some_and(|facts| facts.opens_think);
        let can_think = opens_think || template.is_some() && tokenizer.token_to_id(THINK).is_some();
        if config.data.thinking == Thinking::Empty && !can_think {
            return Err(ModelFilesError::NoThinking);
        }
        Ok(Self {
            facts: facts.unwrap_or_default(),
            tokenizer,
            template,
            limits: Limits {
                context_length: architecture.context_length(),
                eos_token_ids,
            },
            named_ends,
        })
    }
}
