//! The end of a server before the end of its answers: `--shutdown-timeout` cuts them.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use crate::error::ApiError;
use crate::state::AppState;

/// Answers 503 to a request that has no answer yet when answers are cut. Streams have begun by then, and end themselves.
pub(crate) async fn end_requests(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let mut cut = state.cut();
    tokio::select! {
        biased;
        response = next.run(request) => response,
        () = is_cut(&mut cut) => cut_short().into_response(),
    }
}

/// Returns when answers are cut.
pub(crate) async fn is_cut(cut: &mut watch::Receiver<bool>) {
    if cut.wait_for(|&is_cut| is_cut).await.is_err() {
        // Nobody is left to cut anything.
        std::future::pending::<()>().await;
    }
}

/// What clients are told.
pub(crate) fn cut_short() -> ApiError {
    ApiError::unavailable(
        "The server ends before the answer is complete: its --shutdown-timeout is over. Send the request again.",
    )
}
