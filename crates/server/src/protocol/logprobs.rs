//! Log-probabilities in the two shapes of the API.
//!
//! A byte-level token may be part of a character. Chat shows such a token as `\xf0\x9f` and gives its bytes; completions show
//! `bytes:\xf0\x9f`, as OpenAI does, so that different tokens stay different keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use model_qwen::Tokenizer;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::engine::TokenLogprobs;
use crate::error::ApiError;
use crate::state::AppState;

/// JSON has no infinity; vLLM sends this instead.
const LEAST_LOGPROB: f32 = -9999.0;

/// How many alternatives per token a request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogprobLimit {
    /// `--max-logprobs`; `usize::MAX` = no limit.
    pub max: usize,
    /// As many as there are.
    pub vocab_size: usize,
}

impl LogprobLimit {
    /// The server's.
    pub fn of(state: &AppState) -> Self {
        Self {
            max: state.max_logprobs(),
            vocab_size: state.engine().vocab_size(),
        }
    }

    /// The number that the field `param` asks for; -1 is the whole vocabulary.
    ///
    /// # Errors
    /// 400 for another negative number, or more than the limit.
    pub fn num(self, param: &str, given: i64) -> Result<usize, ApiError> {
        let num = match given {
            -1 => Some(self.vocab_size),
            _ => usize::try_from(given).ok(),
        };
        match num.filter(|num| *num <= self.max) {
            Some(num) => Ok(num.min(self.vocab_size)),
            None => {
                let expected = match self.max {
                    usize::MAX => "-1 (the whole vocabulary) or more".to_owned(),
                    max => format!("between 0 and {max} (--max-logprobs)"),
                };
                let message = format!("`{param}` must be {expected}, found {given}.");
                Err(ApiError::bad_request(param, message))
            }
        }
    }
}

/// How tokens are shown.
#[derive(Clone)]
pub struct TokenView {
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// `token_id:N` instead of text.
    pub as_ids: bool,
    /// Special tokens have no part in the text.
    pub skip_special_tokens: bool,
}

impl TokenView {
    fn text(&self, id: u32, prefix_of_bytes: &str) -> String {
        if self.as_ids {
            return format!("token_id:{id}");
        }
        match String::from_utf8(self.tokenizer.token_bytes(id)) {
            Ok(text) => text,
            Err(error) => {
                error
                    .as_bytes()
                    .iter()
                    .fold(prefix_of_bytes.to_owned(), |mut text, byte| {
                        // Writing to a String cannot fail.
                        let _ = write!(text, "\\x{byte:02x}");
                        text
                    })
            }
        }
    }

    /// Characters that begin in the token, as far as it is part of the text.
    fn num_chars(&self, id: u32) -> usize {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return 0;
        }
        self.tokenizer
            .token_bytes(id)
            .iter()
            .filter(|&&byte| byte & 0b1100_0000 != 0b1000_0000)
            .count()
    }
}

/// `prompt_logprobs`: per token an object from token ids to what is known of them, as vLLM sends it.
pub type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptLogprob>>>;

/// One of the tokens that might stand at a place of the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct PromptLogprob {
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among all tokens, from 1; null for the prompt's own token where it is none of the best.
    pub rank: Option<usize>,
    /// Its text.
    pub decoded_token: String,
}

/// Shows the log-probabilities of a prompt, `num_top` tokens each and the prompt's own.
pub fn prompt_logprobs(
    view: &TokenView,
    prompt: &[Option<TokenLogprobs>],
    num_top: usize,
) -> PromptLogprobs {
    let shown = |id: u32, logprob: f32, rank| {
        let logprob = logprob.max(LEAST_LOGPROB);
        let decoded_token = view.text(id, "bytes:");
        let entry = PromptLogprob {
            logprob,
            rank,
            decoded_token,
        };
        (id, entry)
    };
    let entries = prompt.iter().map(|entry| {
        let entry = entry.as_ref()?;
        let place = entry.top.iter().position(|&(id, _)| id == entry.id);
        let top = entry.top.iter().take(num_top).enumerate();
        let top = top.map(|(i, &(id, logprob))| shown(id, logprob, Some(i + 1)));
        let own = shown(entry.id, entry.logprob, place.map(|place| place + 1));
        Some(top.chain([own]).collect())
    });
    entries.collect()
}

/// `logprobs` of a chat choice.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatLogprob>,
}

/// One token of [`ChatLogprobs`].
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatLogprob {
    /// The chosen token.
    #[serde(flatten)]
    pub chosen: ChatToken,
    /// The most probable tokens, best first.
    pub top_logprobs: Vec<ChatToken>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ChatToken {
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// Shows `tokens`.
    pub fn new(view: &TokenView, tokens: &[TokenLogprobs]) -> Self {
        let token = |id: u32, logprob: f32| ChatToken {
            token: view.text(id, ""),
            logprob: logprob.max(LEAST_LOGPROB),
            bytes: view.tokenizer.token_bytes(id),
        };
        let content = tokens.iter().map(|entry| ChatLogprob {
            chosen: token(entry.id, entry.logprob),
            top_logprobs: entry
                .top
                .iter()
                .map(|&(id, logprob)| token(id, logprob))
                .collect(),
        });
        Self {
            content: content.collect(),
        }
    }
}

/// `logprobs` of a text completion choice: four lists of the same length.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// The tokens.
    pub tokens: Vec<String>,
    /// Their log-probabilities; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most probable tokens and the chosen one, as an object from text to log-probability.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Appends one token with at most `num_top` others; `offset` is where it begins and moves behind it.
    pub fn push(
        &mut self,
        view: &TokenView,
        id: u32,
        entry: Option<&TokenLogprobs>,
        num_top: usize,
        offset: &mut usize,
    ) {
        self.tokens.push(view.text(id, "bytes:"));
        self.token_logprobs
            .push(entry.map(|entry| entry.logprob.max(LEAST_LOGPROB)));
        self.top_logprobs.push(entry.map(|entry| {
            let top = &entry.top[..num_top.min(entry.top.len())];
            let chosen = std::iter::once((entry.id, entry.logprob))
                .filter(|(id, _)| top.iter().all(|t| t.0 != *id));
            let all = top.iter().copied().chain(chosen);
            all.map(|(id, logprob)| {
                (
                    view.text(id, "bytes:"),
                    Value::from(logprob.max(LEAST_LOGPROB)),
                )
            })
            .collect()
        }));
        self.text_offset.push(*offset);
        *offset += view.num_chars(id);
    }
}
