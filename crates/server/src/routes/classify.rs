//! `/classify`: the class of a text.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::embeddings::prepare;
use super::pooling::{info, pool};
use super::prompt::prepare_request;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::classify::{Classified, ClassifyResponse};
use crate::protocol::fields::Endpoint;
use crate::state::{AppState, unix_time};

/// Classes of texts. A model with one score has one class, whose probability the score is.
pub async fn classify(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let pooling = info(&state)?;
    if pooling.score.is_none() {
        let message = "This model computes vectors and has no classes: use `/v1/embeddings` or `/pooling`, or start the server \
                       with a `…ForSequenceClassification`.";
        return Err(ApiError::bad_request("model", message));
    }
    let mut prepared = prepare_request(&state, body, |state, body| {
        prepare(state, body, Endpoint::Classify)
    })
    .await?;
    let num_tokens = prepared.num_tokens();
    let pooled = pool(&state, std::mem::take(&mut prepared.requests)).await?;
    let usage = pooled.usage(num_tokens);
    let scores = pooled.vectors.iter();
    let scores = scores.filter_map(|values| pooling.scores(values, prepared.activation));
    let data = scores.enumerate().map(|(index, probs)| Classified {
        index,
        label: pooling.labels.names[most_probable(&probs)].clone(),
        num_classes: probs.len(),
        probs,
    });
    let response = ClassifyResponse {
        data: data.collect(),
        id: format!("classify-{}", prepared.id),
        object: "list",
        created: unix_time(),
        model: prepared.model,
        usage,
    };
    Ok(Json(response).into_response())
}

/// The class with the highest number, the first of equal ones.
fn most_probable(probs: &[f32]) -> usize {
    let better = |best: usize, i: usize| if probs[i] > probs[best] { i } else { best };
    (0..probs.len()).reduce(better).unwrap_or(0)
}
