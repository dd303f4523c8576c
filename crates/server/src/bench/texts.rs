//! Text to tokens and back, for prompts of a wanted length.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use model_qwen::{ChatTemplate, RenderOptions, Tokenizer};
use serde_json::{Value, json};

use super::client::{Client, HttpError};

/// A tokenizer: of a folder, or of the server.
pub(super) enum Texts {
    /// In this process.
    Local {
        tokenizer: Tokenizer,
        chat_template: Option<ChatTemplate>,
    },
    /// At `/tokenize` and `/detokenize`, which this server and vLLM have.
    Server { client: Arc<Client>, model: String },
}

/// Ids of ordinary tokens of any vocabulary: behind the bytes and special tokens with which many begin.
const ANY_VOCABULARY: std::ops::Range<u32> = 300..5000;

impl Texts {
    /// The tokenizer and the chat template of a model folder.
    pub(super) fn of_folder(dir: &Path) -> Result<Self> {
        Ok(Self::Local {
            tokenizer: Tokenizer::from_dir(dir)?,
            chat_template: ChatTemplate::from_dir(dir)?,
        })
    }

    /// Tokens of a text without special tokens around it.
    pub(super) async fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Local { tokenizer, .. } => Ok(tokenizer.encode(text, false)?),
            Self::Server { client, model } => {
                let body = json!({"model": model, "prompt": text, "add_special_tokens": false});
                tokens(client, &body).await
            }
        }
    }

    /// The text of tokens.
    pub(super) async fn decode(&self, ids: &[u32]) -> Result<String> {
        match self {
            Self::Local { tokenizer, .. } => Ok(tokenizer.decode(ids, false)?),
            Self::Server { client, model } => {
                let body = json!({"model": model, "tokens": ids});
                let answer = answer(client, "/detokenize", &body).await?;
                let text = answer["prompt"].as_str().context(NO_TOKENIZER)?;
                Ok(text.to_owned())
            }
        }
    }

    /// The prompt of a chat in which the user says this.
    pub(super) async fn chat(&self, text: &str) -> Result<String> {
        let messages = json!([{"role": "user", "content": text}]);
        match self {
            Self::Local { chat_template, .. } => {
                let template = chat_template.as_ref();
                let template = template.context("the model has no chat template")?;
                let options = RenderOptions {
                    add_generation_prompt: true,
                    ..RenderOptions::default()
                };
                let messages = messages.as_array().map_or(&[][..], Vec::as_slice);
                Ok(template.render(messages, &options)?)
            }
            Self::Server { client, model } => {
                let body =
                    json!({"model": model, "messages": messages, "add_generation_prompt": true});
                self.decode(&tokens(client, &body).await?).await
            }
        }
    }

    /// Ids of tokens that are not special.
    pub(super) fn ordinary_tokens(&self) -> Vec<u32> {
        match self {
            Self::Local { tokenizer, .. } => {
                let all = 0..tokenizer.vocab_size() as u32;
                // A part of a character would become other tokens as text.
                let is_text = |id: &u32| {
                    let bytes = tokenizer.token_bytes(*id);
                    !bytes.is_empty() && std::str::from_utf8(&bytes).is_ok()
                };
                all.filter(|id| !tokenizer.is_special(*id) && is_text(id))
                    .collect()
            }
            Self::Server { .. } => ANY_VOCABULARY.collect(),
        }
    }
}

const NO_TOKENIZER: &str = "the lengths of texts are needed, and the server has no /tokenize and /detokenize as this server \
                            and vLLM have: give a folder with --tokenizer";

/// What the server's tokenizer says.
async fn answer(client: &Client, path: &str, body: &Value) -> Result<Value> {
    client.post(path, body).await.map_err(|error| {
        let http = error.downcast_ref::<HttpError>();
        match http.is_some_and(HttpError::is_of_route) {
            true => error.context(NO_TOKENIZER),
            false => error,
        }
    })
}

async fn tokens(client: &Client, body: &Value) -> Result<Vec<u32>> {
    let answer = answer(client, "/tokenize", body).await?;
    let ids = answer["tokens"].as_array().context(NO_TOKENIZER)?;
    let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = ids.iter().map(id).collect();
    ids.context(NO_TOKENIZER)
}
