//! From the fields of a request to what the engine gets, and from its grammar to the constraint of its answers.

use model_qwen::{Constraint, SamplingParams};

use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::common::SamplingFields;
use crate::protocol::grammar::Asked;
use crate::protocol::sampling::TextOptions;
use crate::state::AppState;

/// A sequence of a request, still without a prompt and a length, and how its text ends. `asked` is its grammar, and the token before
/// which nothing is constrained.
///
/// # Errors
/// 400 with the grammar's field.
pub(super) fn sequence(
    state: &AppState,
    (asked, after): (Option<Asked>, Option<u32>),
    sampling: &SamplingFields,
    params: SamplingParams,
    adapter: Option<String>,
    text: TextOptions,
) -> Result<(GenerateRequest, TextOptions), ApiError> {
    let stop_token_ids = text.stop_token_ids.clone();
    let (constraint, text) = constraint(state, asked, after, sampling, text)?;
    let request = GenerateRequest {
        prompt: Vec::new(),
        sampling: params,
        constraint,
        max_tokens: 1,
        min_tokens: text.min_tokens,
        stop_token_ids,
        adapter,
        cache_salt: sampling.cache_salt.clone(),
        prompt_logprobs: sampling.prompt_logprobs(),
    };
    Ok((request, text))
}

/// The constraint of an answer, if a grammar was asked for, and how its text ends. With `after`, nothing is constrained until that
/// token has come.
///
/// # Errors
/// 400 with the grammar's field.
fn constraint(
    state: &AppState,
    asked: Option<Asked>,
    after: Option<u32>,
    sampling: &SamplingFields,
    text: TextOptions,
) -> Result<(Option<Constraint>, TextOptions), ApiError> {
    let Some(asked) = asked else {
        return Ok((None, text));
    };
    let compiled = state.grammars().compile(&asked.grammar);
    let constraint = compiled
        .map_err(|error| asked.refusal(&error))?
        .after(after);
    let ends = &state.model().generation_config.eos_token_ids;
    let constraint = match sampling.ignore_eos {
        Some(true) => constraint.without_early_end(),
        _ => constraint,
    };
    Ok((Some(constraint), text.constrained(asked.param, ends)))
}
