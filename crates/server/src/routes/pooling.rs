//! What embeddings and scores share: texts to tokens, tokens to vectors.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use model_qwen::pooling::ProblemType;

use super::prompt::{Length, encode};
use crate::engine::{EngineOutput, PoolRequest, PoolingInfo, SequenceError, SubmitError};
use crate::error::ApiError;
use crate::protocol::completions::PromptItem;
use crate::protocol::pooling::PoolingFields;
use crate::protocol::usage::Usage;
use crate::state::AppState;

/// Most sequences of one request that wait at once: others may come in between.
const MAX_WAITING: usize = 256;
/// Between two looks at a full queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);
/// Below this a vector has no direction.
const MIN_NORM: f64 = 1e-12;

/// The vectors of a request, as the engine gives them, in the order of its texts.
pub(super) struct Pooled {
    pub(super) vectors: Vec<Vec<f32>>,
    num_cached: usize,
}

impl Pooled {
    /// Usage of the texts, which have so many tokens together.
    pub(super) fn usage(&self, num_tokens: usize) -> Usage {
        Usage::new(num_tokens, 0, self.num_cached)
    }
}

/// How this model pools.
///
/// # Errors
/// 400 for a model that generates text.
pub(super) fn info(state: &AppState) -> Result<&PoolingInfo, ApiError> {
    let pooling = state.model().pooling.as_ref();
    pooling.ok_or_else(|| SubmitError::NoPooling.into())
}

/// Runs texts through the engine. Dropping the future aborts those that are not done.
///
/// # Errors
/// If one of them is refused or not finished.
pub(super) async fn pool(state: &AppState, requests: Vec<PoolRequest>) -> Result<Pooled, ApiError> {
    let limit = state.engine().max_num_queued_reqs().div_ceil(2);
    let vectors = stream::iter(requests.into_iter().enumerate())
        .map(|(i, request)| pool_one(state, request, i > 0))
        .buffered(limit.min(MAX_WAITING))
        .try_collect::<Vec<_>>()
        .await?;
    Ok(Pooled {
        num_cached: vectors.iter().map(|(_, num_cached)| num_cached).sum(),
        vectors: vectors.into_iter().map(|(values, _)| values).collect(),
    })
}

/// One of them. With `waits`, a full queue is no error: the request's first text has been taken.
async fn pool_one(
    state: &AppState,
    request: PoolRequest,
    waits: bool,
) -> Result<(Vec<f32>, usize), ApiError> {
    let submitted = Instant::now();
    let mut outputs = loop {
        match state.engine().pool(&request) {
            Err(SubmitError::QueueFull { .. }) if waits => tokio::time::sleep(QUEUE_PAUSE).await,
            submitted => break submitted?,
        }
    };
    let mut vector = None;
    loop {
        match outputs.next().await {
            Some(EngineOutput::Pooled {
                values,
                num_cached_tokens,
            }) => vector = Some((values, num_cached_tokens)),
            Some(EngineOutput::Failed(error)) => return Err(error.into()),
            Some(EngineOutput::Finished { .. }) | None => break,
            Some(EngineOutput::Token { .. } | EngineOutput::PromptLogprobs(_)) => {}
        }
    }
    let vector = vector.ok_or(SequenceError::Stopped)?;
    let latency = &state.metrics().e2e_request_latency;
    latency.observe(submitted.elapsed());
    match vector.0.iter().all(|value| value.is_finite()) {
        true => Ok(vector),
        false => Err(ApiError::internal(
            "The model computed a vector that is no number; its weights or the device are broken.",
        )),
    }
}

/// What a text's length may be.
///
/// # Errors
/// 400 if more is to be kept than there is room for.
pub(super) fn length<'a>(
    state: &AppState,
    fields: &PoolingFields,
    param: &'a str,
) -> Result<Length<'a>, ApiError> {
    Length::of_input(
        state,
        param,
        fields.truncate_prompt_tokens,
        fields.truncation_side,
    )
}

/// The tokens of an input.
///
/// # Errors
/// 400 with `param` if it has none, too many, or an unknown one.
pub(super) fn tokens(
    state: &AppState,
    item: PromptItem,
    add_special_tokens: bool,
    length: &Length<'_>,
    param: &str,
) -> Result<Vec<u32>, ApiError> {
    let ids = match item {
        PromptItem::Text(text) => {
            let lowers = state.model().pooling.as_ref();
            let text = match lowers.is_some_and(|pooling| pooling.do_lower_case) {
                true => text.to_lowercase(),
                false => text,
            };
            encode(state, &text, add_special_tokens, length)?
        }
        PromptItem::Tokens(ids) => {
            let vocab_size = state.engine().vocab_size();
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                let message = format!("`{param}`: {id} is not a token id below {vocab_size}.");
                return Err(ApiError::bad_request(param, message));
            }
            length.cut(ids)
        }
    };
    if ids.is_empty() {
        let message = format!("`{param}` must not be empty.");
        return Err(ApiError::bad_request(param, message));
    }
    let max_model_len = state.model().max_model_len;
    if ids.len() > max_model_len {
        let message = format!(
            "This model's maximum context length is {max_model_len} tokens. However, `{param}` has {} tokens. Please shorten \
             it, or set `truncate_prompt_tokens`.",
            ids.len()
        );
        return Err(ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::bad_request(param, message)
        });
    }
    Ok(ids)
}

impl PoolingInfo {
    /// The first `dimensions` values of a vector, of length 1 if so wanted.
    pub(super) fn embedding(
        &self,
        mut values: Vec<f32>,
        dimensions: usize,
        activation: Option<bool>,
    ) -> Vec<f32> {
        values.truncate(dimensions);
        if activation.unwrap_or(self.use_activation) {
            let norm = norm(&values);
            let scale = |value: &mut f32| *value = (f64::from(*value) / norm) as f32;
            values.iter_mut().for_each(scale);
        }
        values
    }

    /// The score of a vector for each label, as probabilities if so wanted; `None` for a model without scores.
    pub(super) fn scores(&self, values: &[f32], activation: Option<bool>) -> Option<Vec<f32>> {
        let weights = self.score.as_ref()?;
        let logits = weights.chunks_exact(self.hidden_size);
        let logits: Vec<f64> = logits.map(|row| dot(values, row)).collect();
        let activates = activation.unwrap_or(self.use_activation);
        let scores = match (activates, self.labels.problem_type) {
            (false, _) | (true, ProblemType::Regression) => logits,
            (true, ProblemType::SingleLabel) if logits.len() > 1 => softmax(&logits),
            (true, ProblemType::SingleLabel | ProblemType::MultiLabel) => {
                logits.iter().map(|&logit| sigmoid(logit)).collect()
            }
        };
        Some(scores.into_iter().map(|score| score as f32).collect())
    }

    /// The score of a vector, between 0 and 1 if so wanted, of a model that has one for a text; `None` for any other.
    pub(super) fn score(&self, values: &[f32], activation: Option<bool>) -> Option<f32> {
        let weights = self.score.as_ref()?;
        let score = dot(values, weights);
        Some(match activation.unwrap_or(self.use_activation) {
            true => sigmoid(score) as f32,
            false => score as f32,
        })
    }
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - max).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The cosine of the angle between two vectors.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    (dot(a, b) / (norm(a) * norm(b))) as f32
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.sum()
}

fn norm(values: &[f32]) -> f64 {
    dot(values, values).sqrt().max(MIN_NORM)
}
