//! Fill in the middle: a prompt for what is between two texts.

use crate::error::ApiError;
use crate::protocol::common::SamplingFields;
use crate::protocol::sampling::TextOptions;
use crate::state::AppState;

/// Tokens of models that fill a gap: before the text, between its parts, before the answer.
const GAP_TOKENS: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
/// What such a model writes behind the answer, besides these.
const BEHIND_GAP: [&str; 4] = [
    "<|fim_pad|>",
    "<|file_sep|>",
    "<|repo_name|>",
    "<|endoftext|>",
];

/// Whether the model can write what is between two texts.
pub(super) fn fills_gaps(state: &AppState) -> bool {
    let tokenizer = &state.model().tokenizer;
    let is_known = |token: &&str| tokenizer.token_to_id(token).is_some();
    GAP_TOKENS.iter().all(is_known)
}

/// The prompt for what comes between `prompt` and `suffix`.
///
/// # Errors
/// 400 if the model has no tokens for it.
pub(super) fn with_gap(state: &AppState, prompt: &str, suffix: &str) -> Result<String, ApiError> {
    if !fills_gaps(state) {
        let message = format!(
            "`suffix` is not supported: the model has no token {}.",
            GAP_TOKENS[0]
        );
        return Err(ApiError::bad_request("suffix", message));
    }
    let [before, between, behind] = GAP_TOKENS;
    Ok(format!("{before}{prompt}{between}{suffix}{behind}"))
}

/// Lets what the model writes behind a gap end the text, as its end-of-sequence tokens do: not with `ignore_eos`.
#[must_use]
pub(super) fn ending_at_gap(
    state: &AppState,
    sampling: &SamplingFields,
    mut text: TextOptions,
) -> TextOptions {
    if sampling.ignore_eos == Some(true) {
        return text;
    }
    let tokenizer = &state.model().tokenizer;
    let ends = GAP_TOKENS.iter().chain(&BEHIND_GAP);
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
