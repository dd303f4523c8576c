//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde_json::Value;

use super::chat_format::ChatFormat;
use super::prompt::{Length, encode, in_turn};
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::{ChatFields, Rendered, TemplateFields, render};
use crate::protocol::common::SamplingFields;
use crate::protocol::fields::Endpoint;
use crate::protocol::logprobs::TokenView;
use crate::protocol::sampling::TextOptions;
use crate::state::{AppState, unix_time};
use crate::stream::{Choice, TokenCounts, sse};

/// A checked request, ready to be submitted.
pub(super) struct Prepared {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) request: GenerateRequest,
    pub(super) text: TextOptions,
    pub(super) sampling: SamplingFields,
    logprobs: bool,
    role: String,
    /// What the answers begin with.
    echo: Option<String>,
}

/// Answers a conversation.
pub async fn chat_completions(
    State(state): State<AppState>,
    body: Body,
) -> Result<Response, ApiError> {
    let Prepared {
        id,
        model,
        request,
        text,
        sampling,
        logprobs,
        role,
        echo,
    } = in_turn(&state, body, prepare).await?;

    let n = sampling.n();
    state.metrics().params_n.observe_value(n as f64);
    let prompt_lens: Arc<[usize]> = Arc::new([request.prompt.len()]);
    let choices = (0..n)
        .map(|i| {
            let mut request = request.clone();
            // The prompt is the same for all.
            request.prompt_logprobs = request.prompt_logprobs.filter(|_| i == 0);
            request.sampling.seed = request
                .sampling
                .seed
                .map(|seed| seed.wrapping_add(i as u64));
            Choice::submit(&state, i, request, &text, false)
        })
        .collect::<Result<Vec<_>, _>>()?;

    let format = ChatFormat {
        id,
        created: unix_time(),
        model,
        fingerprint: state.fingerprint().to_owned(),
        counts: TokenCounts::new(&prompt_lens, n),
        options: sampling.shown_usage(&state),
        n,
        role,
        echo,
        view: TokenView {
            tokenizer: state.model().tokenizer.clone(),
            as_ids: sampling.tokens_as_ids(&state),
            skip_special_tokens: text.skip_special_tokens,
        },
        logprobs,
        returns_token_ids: sampling.return_token_ids.unwrap_or(false),
        prompt: request.prompt,
        num_prompt_logprobs: sampling.prompt_logprobs().unwrap_or(0),
    };
    if sampling.stream() {
        return Ok(sse(choices, format));
    }
    let deltas = try_join_all(choices.into_iter().map(Choice::collect)).await?;
    Ok(Json(format.response(deltas)).into_response())
}

pub(super) fn prepare(state: &AppState, mut body: Body) -> Result<Prepared, ApiError> {
    body.check(Endpoint::Chat)?;
    let template: TemplateFields = body.read()?;
    let sampling = SamplingFields::from_body(&body, state.max_logprobs())?;
    let fields = ChatFields::take(&mut body)?;
    let id = body.request_id().or(sampling.request_id.as_deref());
    drop(body);

    let (model, adapter) = state.resolve_model(fields.model.as_deref())?;
    match &fields.tool_choice {
        None | Some(Value::Null) => {}
        Some(Value::String(choice)) if choice == "auto" || choice == "none" => {}
        Some(_) => {
            let message = "`tool_choice`: only `auto` and `none` are supported.";
            return Err(ApiError::bad_request("tool_choice", message));
        }
    }
    let logprobs = fields.logprobs.unwrap_or(false);
    let max_logprobs = state.max_logprobs();
    let num_top = match fields.top_logprobs {
        Some(n) if n > max_logprobs => {
            let message = format!(
                "`top_logprobs` must be at most {max_logprobs} (--max-logprobs), found {n}."
            );
            return Err(ApiError::bad_request("top_logprobs", message));
        }
        Some(n) if n > 0 && !logprobs => {
            return Err(ApiError::bad_request(
                "top_logprobs",
                "`top_logprobs` needs `logprobs`: true.",
            ));
        }
        n => logprobs.then_some(n.unwrap_or(0)),
    };
    let requested = match fields.max_completion_tokens.or(fields.max_tokens) {
        Some(0) => {
            return Err(ApiError::bad_request(
                "max_tokens",
                "`max_tokens` must be at least 1, found 0.",
            ));
        }
        requested => requested,
    };
    let params = sampling.sampling_params(state, num_top)?;
    let text = sampling.text_options(state)?;

    let add_special_tokens = template.add_special_tokens.unwrap_or(false);
    let Rendered { prompt, role, last } = render(state, fields.messages, template)?;
    let length = Length::of(state, &sampling, "messages", requested)?;
    let prompt = encode(state, &prompt, add_special_tokens, &length)?;
    let max_tokens = sampling.max_tokens(state, prompt.len(), requested, "messages")?;
    let request = GenerateRequest {
        prompt,
        sampling: params,
        max_tokens,
        min_tokens: text.min_tokens,
        stop_token_ids: text.stop_token_ids.clone(),
        adapter,
        cache_salt: sampling.cache_salt.clone(),
        prompt_logprobs: sampling.prompt_logprobs(),
    };
    Ok(Prepared {
        id: format!("chatcmpl-{id}"),
        model,
        request,
        text,
        sampling,
        logprobs,
        role,
        echo: last.filter(|_| fields.echo.unwrap_or(false)),
    })
}
