//! Ollama's `/api/…`.

mod chat;
mod embed;
mod format;
mod generate;
mod models;
mod time;

use axum::http::{StatusCode, Uri};
use axum::routing::{MethodRouter, delete, get, head, post};

use crate::error::ApiError;
use crate::state::AppState;

/// The endpoints.
pub fn routes() -> [(&'static str, MethodRouter<AppState>); 14] {
    [
        ("/api/chat", post(chat::chat)),
        ("/api/generate", post(generate::generate)),
        ("/api/embed", post(embed::embed)),
        ("/api/embeddings", post(embed::embeddings)),
        ("/api/tags", get(models::tags)),
        ("/api/show", post(models::show)),
        ("/api/ps", get(models::running)),
        ("/api/version", get(models::version)),
        ("/api/pull", post(refuse)),
        ("/api/push", post(refuse)),
        ("/api/create", post(refuse)),
        ("/api/copy", post(refuse)),
        ("/api/delete", delete(refuse)),
        ("/api/blobs/{digest}", head(refuse).post(refuse)),
    ]
}

/// What changes models.
async fn refuse(uri: Uri) -> ApiError {
    let message = format!(
        "{} is not supported: the server has the model that it was started with. Adapters are loaded with \
         POST /v1/load_lora_adapter.",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_IMPLEMENTED, message)
}

/// The model's name without the tag that Ollama adds to names without one.
fn model_name(state: &AppState, requested: &str) -> String {
    let is_known = |name: &str| state.resolve_model(Some(name)).is_ok();
    match requested.strip_suffix(":latest") {
        Some(name) if !is_known(requested) && is_known(name) => name.to_owned(),
        _ => requested.to_owned(),
    }
}

/// Names fields as Ollama does.
fn renamed(error: ApiError) -> ApiError {
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
