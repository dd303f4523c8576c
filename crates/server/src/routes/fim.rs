//! Fill in the middle: a prompt for what is between two texts.

use crate::error::ApiError;
use crate::protocol::common::SamplingFields;
use crate::protocol::sampling::TextOptions;
use crate::state::AppState;

/// Tokens of models that fill in the middle (FIM): before the text, between its parts, before the answer.
const FIM_TOKENS: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
/// What such a model writes behind the answer, besides these.
const FIM_STOP_TOKENS: [&str; 4] = [
    "<|fim_pad|>",
    "<|file_sep|>",
    "<|repo_name|>",
    "<|endoftext|>",
];

/// Whether the model can write what is between two texts.
pub(super) fn supports_fim(state: &AppState) -> bool {
    let tokenizer = &state.model().tokenizer;
    let is_known = |token: &&str| tokenizer.token_to_id(token).is_some();
    FIM_TOKENS.iter().all(is_known)
}

/// The prompt for what comes between `prompt` and `suffix`.
///
/// # Errors
/// 400 if the model has no tokens for it.
pub(super) fn fim_prompt(state: &AppState, prompt: &str, suffix: &str) -> Result<String, ApiError> {
    if !supports_fim(state) {
        let message = format!(
            "`suffix` is not supported: the model has no token {}.",
            FIM_TOKENS[0]
        );
        return Err(ApiError::bad_request("suffix", message));
    }
    let [before, between, behind] = FIM_TOKENS;
    Ok(format!("{before}{prompt}{between}{suffix}{behind}"))
}

/// Lets what the model writes behind the middle end the text, as its end-of-sequence tokens do: not with `ignore_eos`.
#[must_use]
pub(super) fn with_fim_stop_tokens(
    state: &AppState,
    sampling: &SamplingFields,
    mut text: TextOptions,
) -> TextOptions {
    if sampling.ignore_eos == Some(true) {
        return text;
    }
    let tokenizer = &state.model().tokenizer;
    let ends = FIM_TOKENS.iter().chain(&FIM_STOP_TOKENS);
    let ends = ends.filter_map(|token| tokenizer.token_to_id(token));
    for id in ends {
        if !text.eos_token_ids.contains(&id) {
            text.eos_token_ids.push(id);
        }
        text.stop_token_ids.push(id);
    }
    text.stop_token_ids.sort_unstable();
    text.stop_token_ids.dedup();
    text
}
