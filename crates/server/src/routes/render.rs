//! `/v1/chat/completions/render` and `/v1/completions/render`: what a request becomes before it is computed, as vLLM shows it.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::prompt::prepare_and_compile;
use super::{chat, completions};
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::common::SamplingFields;
use crate::protocol::sampling::TextOptions;
use crate::state::AppState;

/// The tokens of a conversation and its sampling parameters.
pub async fn chat_completions(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let (shown, prepared) = prepare_and_compile(&state, body, chat::prepare).await?;
    Ok(Json(rendered(
        &shown.id,
        &prepared.model,
        &prepared.request,
        &prepared.text,
        &prepared.sampling,
    )))
}

/// The same for each prompt of a completion request.
pub async fn completions(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let prepared = prepare_and_compile(&state, body, completions::prepare).await?;
    let requests = prepared.requests.iter().enumerate().map(|(i, request)| {
        let id = format!("{}-{i}", prepared.id);
        rendered(
            &id,
            &prepared.model,
            request,
            &prepared.text,
            &prepared.sampling,
        )
    });
    Ok(Json(requests.collect()))
}

/// A number with as many digits as it was given with.
fn shown(number: f32) -> Value {
    let exact = number.to_string().parse::<f64>();
    exact.map_or_else(|_| Value::from(number), Value::from)
}

fn rendered(
    id: &str,
    model: &str,
    request: &GenerateRequest,
    text: &TextOptions,
    sampling: &SamplingFields,
) -> Value {
    let params = &request.sampling;
    let bias = params.logit_bias.iter();
    let bias: serde_json::Map<String, Value> = bias
        .map(|(id, bias)| (id.to_string(), shown(*bias)))
        .collect();
    json!({
        "request_id": id,
        "model": model,
        "token_ids": request.prompt,
        "features": null,
        "sampling_params": {
            "n": sampling.n(),
            "temperature": shown(params.temperature),
            "top_p": shown(params.top_p),
            "top_k": params.top_k,
            "min_p": shown(params.min_p),
            "repetition_penalty": shown(params.repetition_penalty),
            "presence_penalty": shown(params.presence_penalty),
            "frequency_penalty": shown(params.frequency_penalty),
            "logit_bias": (!bias.is_empty()).then_some(bias),
            "allowed_token_ids": params.allowed_token_ids,
            "bad_words": sampling.bad_words_given(),
            "seed": params.seed.map(u64::cast_signed),
            "max_tokens": request.max_tokens,
            "min_tokens": request.min_tokens,
            "stop": text.stop,
            "stop_token_ids": request.stop_token_ids,
            "include_stop_str_in_output": text.include_stop,
            "ignore_eos": sampling.ignore_eos.unwrap_or(false),
            "skip_special_tokens": text.skip_special_tokens,
            "logprobs": params.logprobs,
            "prompt_logprobs": request.prompt_logprobs,
        },
        "stream": sampling.stream(),
        "cache_salt": request.cache_salt,
        "priority": 0,
    })
}
