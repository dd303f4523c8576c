//! Work that takes a while, beside the tasks that must not wait.

use axum::http::StatusCode;

use crate::error::ApiError;

/// Runs work that may take a while on long inputs (templates, tokenization) where it does not delay other requests.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            tracing::error!(%error, "a request handler failed");
            Err(ApiError::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The request could not be processed; see the server's log.",
            ))
        })
}
