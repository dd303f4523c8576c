//! Names of models and fields as Ollama has them.

use crate::error::ApiError;
use crate::state::AppState;

/// The model's name without the tag that Ollama adds to names without one.
pub(super) fn model_name(state: &AppState, requested: &str) -> String {
    let is_known = |name: &str| state.resolve_model(Some(name)).is_ok();
    match requested.strip_suffix(":latest") {
        Some(name) if !is_known(requested) && is_known(name) => name.to_owned(),
        _ => requested.to_owned(),
    }
}

/// Names fields as Ollama does.
pub(super) fn renamed(error: ApiError) -> ApiError {
    error.renamed(&[
        ("repetition_penalty", "options.repeat_penalty"),
        ("temperature", "options.temperature"),
        ("top_k", "options.top_k"),
        ("top_p", "options.top_p"),
        ("min_p", "options.min_p"),
        ("presence_penalty", "options.presence_penalty"),
        ("frequency_penalty", "options.frequency_penalty"),
    ])
}
