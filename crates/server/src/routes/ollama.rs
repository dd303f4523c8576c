//! Ollama's `/api/…`.

mod answer;
mod chat;
mod embed;
mod format;
mod generate;
mod models;
mod names;
mod time;
mod work;

use axum::http::{StatusCode, Uri};
use axum::routing::{delete, get, head, post};

use crate::error::ApiError;
use crate::route::Route;

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
