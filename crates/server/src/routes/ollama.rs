//! Ollama's `/api/…`.

mod chat;
mod embed;
mod format;
mod generate;
mod models;
mod time;

use axum::http::{StatusCode, Uri};
use axum::routing::{delete, get, head, post};

use crate::error::ApiError;
use crate::route::Route;
use crate::state::AppState;

/// The endpoints.
pub(crate) fn routes() -> [Route; 14] {
    [
        Route::work("/api/chat", post(chat::chat)),
        Route::work("/api/generate", post(generate::generate)),
        Route::work("/api/embed", post(embed::embed)),
        Route::work("/api/embeddings", post(embed::embeddings)),
        Route::other("/api/tags", get(models::tags)),
        Route::other("/api/show", post(models::show)),
        Route::other("/api/ps", get(models::running)),
        Route::other("/api/version", get(models::version)),
        Route::other("/api/pull", post(refuse)),
        Route::other("/api/push", post(refuse)),
        Route::other("/api/create", post(refuse)),
        Route::other("/api/copy", post(refuse)),
        Route::other("/api/delete", delete(refuse)),
        Route::other("/api/blobs/{digest}", head(refuse).post(refuse)),
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
