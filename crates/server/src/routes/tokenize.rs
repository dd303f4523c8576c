//! `/tokenize` and `/detokenize`.

use axum::Json;
use axum::extract::State;

use super::prompt::{Length, encode, prepare_request};
use crate::blocking::blocking;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::{TemplateFields, render};
use crate::protocol::tokenize::{DetokenizeFields, Detokenized, TokenizeFields, Tokenized};
use crate::protocol::tools::read_tools;
use crate::state::AppState;

/// Longest text that is tokenized for its own sake, in bytes.
const MAX_TEXT_BYTES: usize = 8 << 20;

/// Token ids of a text or of a rendered conversation.
pub async fn tokenize(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<Tokenized>, ApiError> {
    prepare_request(&state, body, |state, mut body| {
        body.normalize_both::<TokenizeFields, TemplateFields>();
        let fields: TokenizeFields = body.read()?;
        let template: TemplateFields = body.read()?;
        drop(body);
        state.resolve_model(fields.model.as_deref())?;
        let given = template.add_special_tokens;
        let (text, add_special_tokens) = match (fields.prompt, fields.messages) {
            (Some(prompt), None) => {
                template.refuse_beside("prompt")?;
                (prompt, given.unwrap_or(true))
            }
            (None, Some(messages)) => {
                read_tools(template.tools.as_deref().unwrap_or_default())?;
                let rendered = render(state, messages, template)?;
                (rendered.prompt, given.unwrap_or(false))
            }
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_request(
                    "prompt",
                    "Give either `prompt` or `messages`, not both.",
                ));
            }
            (None, None) => {
                return Err(ApiError::bad_request(
                    "prompt",
                    "Give `prompt` or `messages`.",
                ));
            }
        };
        check_size("prompt", &text)?;
        let tokenizer = &state.model().tokenizer;
        let tokens = encode(state, &text, add_special_tokens, &Length::any("prompt"))?;
        let token_strs = fields.return_token_strs.unwrap_or(false).then(|| {
            tokens
                .iter()
                .map(|&id| tokenizer.id_to_token(id).unwrap_or_default())
                .collect()
        });
        Ok(Json(Tokenized {
            count: tokens.len(),
            max_model_len: state.model().max_model_len,
            tokens,
            token_strs,
        }))
    })
    .await
}

/// Refuses a text that would take too long.
pub(super) fn check_size(param: &str, text: &str) -> Result<(), ApiError> {
    if text.len() <= MAX_TEXT_BYTES {
        return Ok(());
    }
    let message = format!(
        "`{param}` must have at most {MAX_TEXT_BYTES} bytes here, found {}.",
        text.len()
    );
    Err(ApiError::bad_request(param, message))
}

/// The text of token ids.
pub async fn detokenize(
    State(state): State<AppState>,
    mut body: Body,
) -> Result<Json<Detokenized>, ApiError> {
    body.normalize::<DetokenizeFields>();
    let fields: DetokenizeFields = body.read()?;
    state.resolve_model(fields.model.as_deref())?;
    let vocab_size = state.engine().vocab_size();
    if let Some(i) = fields
        .tokens
        .iter()
        .position(|&id| id as usize >= vocab_size)
    {
        let (param, id) = (format!("tokens[{i}]"), fields.tokens[i]);
        let message = format!("`{param}`: {id} is not a token id below {vocab_size}.");
        return Err(ApiError::bad_request(param, message));
    }
    blocking(move || {
        let decoded = state.model().tokenizer.decode(&fields.tokens, false);
        let prompt = decoded.map_err(|error| ApiError::bad_request("tokens", error.to_string()))?;
        Ok(Json(Detokenized { prompt }))
    })
    .await
}
