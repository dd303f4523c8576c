//! From a grammar in a request to the constraint of its answers.

use model_qwen::Constraint;

use crate::error::ApiError;
use crate::protocol::common::SamplingFields;
use crate::protocol::grammar::Asked;
use crate::protocol::sampling::TextOptions;
use crate::state::AppState;

/// The constraint of an answer, if a grammar was asked for, and how its text ends. With `after`, nothing is constrained until that
/// token has come.
///
/// # Errors
/// 400 with the grammar's field.
pub(super) fn constraint(
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
    Ok((Some(constraint), text.ending_with(ends)))
}
