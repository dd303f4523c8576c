//! `/v1/embeddings` and `/pooling`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::pooling::{info, length, pool, tokens};
use super::prompt::prepare_request;
use crate::engine::{PoolRequest, PoolingInfo};
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::{TemplateFields, render};
use crate::protocol::completions::PromptItem;
use crate::protocol::fields::Endpoint;
use crate::protocol::pooling::{
    Embedding, EmbeddingFields, EmbeddingResponse, Input, PoolingData, PoolingFields,
    PoolingResponse, PoolingTask, TaskField,
};
use crate::state::{AppState, unix_time};

/// A checked request.
pub(super) struct PreparedEmbeddings {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) requests: Vec<PoolRequest>,
    fields: EmbeddingFields,
    dimensions: usize,
    pub(super) activation: Option<bool>,
}

impl PreparedEmbeddings {
    /// Of all texts together.
    pub(super) fn num_tokens(&self) -> usize {
        let requests = self.requests.iter();
        requests.map(|request| request.prompt.len()).sum()
    }
}

/// Vectors of texts.
pub async fn embeddings(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let pooling = of_vectors(&state)?;
    let mut prepared = prepare_request(&state, body, |state, body| {
        prepare(state, body, Endpoint::Embeddings)
    })
    .await?;
    let num_tokens = prepared.num_tokens();
    let mut pooled = pool(&state, std::mem::take(&mut prepared.requests)).await?;
    let usage = pooled.usage(num_tokens);
    let vectors = std::mem::take(&mut pooled.vectors).into_iter().enumerate();
    let data = vectors.map(|(index, values)| {
        let values = pooling.embedding(values, prepared.dimensions, prepared.activation);
        Embedding {
            index,
            object: "embedding",
            embedding: prepared.fields.encode(values),
        }
    });
    let response = EmbeddingResponse {
        data: data.collect(),
        id: format!("embd-{}", prepared.id),
        object: "list",
        created: unix_time(),
        model: prepared.model,
        usage,
    };
    Ok(Json(response).into_response())
}

/// How this model computes vectors.
///
/// # Errors
/// When it computes none.
pub(super) fn of_vectors(state: &AppState) -> Result<&PoolingInfo, ApiError> {
    let pooling = info(state)?;
    if pooling.score.is_some() {
        let message = "This model computes scores: use `/score`, `/rerank`, `/classify` or `/pooling`, or start the server \
                       with --convert embed.";
        return Err(ApiError::bad_request("model", message));
    }
    Ok(pooling)
}

/// What the model computes for texts: vectors, or scores.
pub async fn pooling(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let pooling = info(&state)?;
    let task = match pooling.score {
        Some(_) => PoolingTask::Classify,
        None => PoolingTask::Embed,
    };
    let mut prepared = prepare_request(&state, body, move |state, body| {
        let given: TaskField = body.read()?;
        if given.task.is_some_and(|given| given != task) {
            let expected = match task {
                PoolingTask::Embed => "embed",
                PoolingTask::Classify => "classify",
            };
            let message = format!("`task` must be `{expected}` for this model.");
            return Err(ApiError::bad_request("task", message));
        }
        prepare(state, body, Endpoint::Pooling)
    })
    .await?;
    let num_tokens = prepared.num_tokens();
    let mut pooled = pool(&state, std::mem::take(&mut prepared.requests)).await?;
    let usage = pooled.usage(num_tokens);
    let vectors = std::mem::take(&mut pooled.vectors).into_iter().enumerate();
    let data = vectors.map(|(index, values)| PoolingData {
        index,
        object: "pooling",
        data: prepared
            .fields
            .encode(match pooling.scores(&values, prepared.activation) {
                Some(scores) => scores,
                None => pooling.embedding(values, prepared.dimensions, prepared.activation),
            }),
    });
    let response = PoolingResponse {
        data: data.collect(),
        id: format!("pool-{}", prepared.id),
        object: "list",
        created: unix_time(),
        model: prepared.model,
        usage,
    };
    Ok(Json(response).into_response())
}

/// Checks a request to pool texts.
///
/// # Errors
/// 400 with the field, 404 for an unknown model.
pub(super) fn prepare(
    state: &AppState,
    mut body: Body,
    endpoint: Endpoint,
) -> Result<PreparedEmbeddings, ApiError> {
    body.check(endpoint)?;
    let pooling = info(state)?;
    let shared = PoolingFields::read(&body)?;
    let template: TemplateFields = body.read()?;
    let (fields, input) = EmbeddingFields::take(&body, endpoint)?;
    let id = body.request_id().or(shared.request_id.as_deref());
    drop(body);

    let (model, adapter) = state.resolve_model(shared.model.as_deref())?;
    let dimensions = fields.dimensions(pooling)?;
    let activation = fields.activation(&shared)?;
    let given = template.add_special_tokens;
    let (items, add_special_tokens, name) = match input {
        Input::Items(items) => (items, given.unwrap_or(true), "input"),
        Input::Messages(messages) => {
            let template = TemplateFields {
                add_generation_prompt: Some(template.add_generation_prompt.unwrap_or(false)),
                ..template
            };
            let text = render(state, messages, template)?.prompt;
            let items = vec![PromptItem::Text(text)];
            (items, given.unwrap_or(false), "messages")
        }
    };
    let length = length(state, &shared, name)?;
    let num = items.len();
    let requests = items.into_iter().enumerate().map(|(i, item)| {
        let param = match num {
            1 => name.to_owned(),
            _ => format!("{name}[{i}]"),
        };
        Ok(PoolRequest {
            prompt: tokens(state, item, add_special_tokens, &length, &param)?,
            adapter: adapter.clone(),
            cache_salt: shared.cache_salt.clone(),
        })
    });
    Ok(PreparedEmbeddings {
        requests: requests.collect::<Result<_, ApiError>>()?,
        id,
        model,
        fields,
        dimensions,
        activation,
    })
}
