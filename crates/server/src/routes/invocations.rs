//! `/invocations`, SageMaker's one route: the body says which endpoint is meant.

use axum::extract::State;
use axum::response::Response;

use super::{chat, classify, completions, embeddings, scores};
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::state::AppState;

/// What a body with one of these fields is for, on a server that generates text or on one that pools.
enum Target {
    Chat,
    Completions,
    Embeddings,
    Rerank,
    Score,
}

fn target(body: &Body, pools: bool) -> Option<Target> {
    let has = |field| body.has(field);
    if has("messages") && !pools {
        Some(Target::Chat)
    } else if has("prompt") {
        Some(Target::Completions)
    } else if has("input") || has("messages") {
        Some(Target::Embeddings)
    } else if has("query") && has("documents") {
        Some(Target::Rerank)
    } else if ["text_1", "queries", "data_1"].into_iter().any(has) {
        Some(Target::Score)
    } else {
        None
    }
}

/// Answers as the endpoint does that takes such a body.
pub async fn invocations(state: State<AppState>, body: Body) -> Result<Response, ApiError> {
    let pooling = state.model().pooling.as_ref();
    let scores_only = pooling.is_some_and(|pooling| pooling.score.is_some());
    match target(&body, pooling.is_some()) {
        Some(Target::Chat) => chat::chat_completions(state, body).await,
        Some(Target::Completions) => completions::completions(state, body).await,
        Some(Target::Embeddings) if scores_only => classify::classify(state, body).await,
        Some(Target::Embeddings) => embeddings::embeddings(state, body).await,
        Some(Target::Rerank) => scores::rerank(state, body).await,
        Some(Target::Score) => scores::score(state, body).await,
        None => Err(ApiError::bad_request(
            "messages",
            "No endpoint takes this body: give `messages`, `prompt`, `input`, `query` with `documents`, or `text_1` with `text_2`.",
        )),
    }
}
