//! `/api/embed`, and the older `/api/embeddings`.

use std::time::Instant;

use axum::Json;
use axum::extract::State;

use super::super::embeddings::of_vectors;
use super::super::pooling::{pool, tokens};
use super::super::prompt::{Length, prepare_request};
use super::names::model_name;
use super::time::nanoseconds;
use crate::engine::PoolRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::completions::PromptItem;
use crate::protocol::fields::Endpoint;
use crate::protocol::ollama::{
    EmbedFields, Options, PromptFields, take_input, take_pooling_options,
};
use crate::protocol::ollama_answer::{Embedded, PromptEmbedded};
use crate::protocol::pooling::EmbeddingFields;
use crate::state::AppState;

/// Vectors of texts, of length 1.
pub(super) async fn embed(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<Embedded>, ApiError> {
    let started = Instant::now();
    let pooling = of_vectors(&state)?;
    let (fields, dimensions, requests) = prepare_request(&state, body, |state, mut body| {
        body.check(Endpoint::OllamaEmbed)?;
        let texts = take_input(&mut body)?;
        let options = take_pooling_options(&mut body)?;
        let fields: EmbedFields = body.read()?;
        drop(body);
        let dimensions = EmbeddingFields {
            dimensions: fields.dimensions.filter(|&num| num != 0),
            ..EmbeddingFields::default()
        };
        let dimensions = dimensions.dimensions(of_vectors(state)?)?;
        let cuts = fields.truncate.unwrap_or(true);
        let requests = requests(state, &fields.model, &options, ("input", texts), cuts)?;
        Ok((fields, dimensions, requests))
    })
    .await?;
    let prompt_eval_count = requests.iter().map(|request| request.prompt.len()).sum();
    let pooled = pool(&state, requests).await?;
    let vectors = pooled.vectors.into_iter();
    let vectors = vectors.map(|values| pooling.embedding(values, dimensions, Some(true)));
    Ok(Json(Embedded {
        model: fields.model,
        embeddings: vectors.collect(),
        total_duration: nanoseconds(started.elapsed()),
        load_duration: 0,
        prompt_eval_count,
    }))
}

/// The vector of a text, as the model computes it.
pub(super) async fn embeddings(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<PromptEmbedded>, ApiError> {
    let pooling = of_vectors(&state)?;
    let requests = prepare_request(&state, body, |state, mut body| {
        body.check(Endpoint::OllamaEmbeddings)?;
        let options = take_pooling_options(&mut body)?;
        let fields: PromptFields = body.read()?;
        drop(body);
        let prompt = fields.prompt.filter(|prompt| !prompt.is_empty());
        let texts = prompt.into_iter().collect();
        requests(state, &fields.model, &options, ("prompt", texts), false)
    })
    .await?;
    let mut vectors = pool(&state, requests).await?.vectors;
    let dimensions = pooling.dimensions.unwrap_or(pooling.hidden_size);
    let vector = vectors.pop();
    let vector = vector.map(|values| pooling.embedding(values, dimensions, Some(false)));
    Ok(Json(PromptEmbedded {
        embedding: vector.unwrap_or_default(),
    }))
}

/// The same without the name of a field that Ollama's requests do not have.
fn without_hint(mut error: ApiError) -> ApiError {
    error.message = error
        .message
        .replace(", or set `truncate_prompt_tokens`", "");
    error
}

/// The texts of a field as the engine gets them. A long one is an error unless it is cut.
fn requests(
    state: &AppState,
    model: &str,
    options: &Options,
    (name, texts): (&str, Vec<String>),
    cuts: bool,
) -> Result<Vec<PoolRequest>, ApiError> {
    let (_, adapter) = state.resolve_model(Some(&model_name(state, model)))?;
    let max_model_len = state.model().max_model_len;
    options.check_length(max_model_len)?;
    let num_ctx = options.num_ctx.filter(|&num| num > 0);
    let most = num_ctx.unwrap_or(max_model_len);
    let keep = cuts.then(|| i64::try_from(most).unwrap_or(-1));
    let length = Length::of_input(state, name, keep, None)?;
    let num = texts.len();
    let requests = texts.into_iter().enumerate().map(|(i, text)| {
        let param = match num {
            1 => name.to_owned(),
            _ => format!("{name}[{i}]"),
        };
        let prompt = tokens(state, PromptItem::Text(text), true, &length, &param);
        let prompt = prompt.map_err(without_hint)?;
        if prompt.len() > most {
            let expected = format!("at most {most} tokens (`options.num_ctx`)");
            let found = format!("{} tokens", prompt.len());
            return Err(ApiError::expected(&param, &expected, &found));
        }
        Ok(PoolRequest {
            prompt,
            adapter: adapter.clone(),
            cache_salt: None,
        })
    });
    requests.collect()
}
