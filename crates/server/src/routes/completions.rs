//! `/v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;

use super::blocking;
use super::completion_format::CompletionFormat;
use super::tokenize::encode;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::common::{MAX_LOGPROBS, SamplingFields};
use crate::protocol::completions::{CompletionFields, DEFAULT_MAX_TOKENS, PromptItem};
use crate::protocol::logprobs::TokenView;
use crate::protocol::sampling::TextOptions;
use crate::state::{AppState, unix_time};
use crate::stream::{Choice, TokenCounts, sse};

/// A checked request, ready to be submitted: one sequence per prompt, to be repeated `n` times.
struct Prepared {
    model: String,
    requests: Vec<GenerateRequest>,
    /// What `echo` repeats, per prompt.
    echoes: Option<Vec<String>>,
    prompt_only: bool,
    text: TextOptions,
    sampling: SamplingFields,
    logprobs: bool,
}

/// Continues texts.
pub async fn completions(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let shared = state.clone();
    let prepared = blocking(move || prepare(&shared, &body)).await?;
    let Prepared {
        model,
        requests,
        echoes,
        prompt_only,
        text,
        sampling,
        logprobs,
    } = prepared;

    let n = sampling.n();
    let mut choices = Vec::with_capacity(requests.len() * n);
    for (prompt, request) in requests.iter().enumerate() {
        for i in 0..n {
            let mut request = request.clone();
            request.sampling.seed = request
                .sampling
                .seed
                .map(|seed| seed.wrapping_add(i as u64));
            choices.push(Choice::submit(
                &state,
                prompt * n + i,
                request,
                &text,
                prompt_only,
            )?);
        }
    }
    let prompt_lens: Arc<[usize]> = requests
        .iter()
        .map(|request| request.prompt.len())
        .collect();
    let format = CompletionFormat {
        id: state.new_id("cmpl"),
        created: unix_time(),
        model,
        counts: TokenCounts::new(&prompt_lens, n),
        options: sampling.stream_options.unwrap_or_default(),
        n,
        offsets: vec![0; choices.len()],
        echoes,
        prompts: requests.into_iter().map(|request| request.prompt).collect(),
        logprobs: logprobs.then(|| TokenView {
            tokenizer: state.model().tokenizer.clone(),
            as_ids: sampling.return_tokens_as_token_ids.unwrap_or(false),
            skip_special_tokens: text.skip_special_tokens,
        }),
    };
    if sampling.stream() {
        return Ok(sse(choices, format));
    }
    let deltas = try_join_all(choices.into_iter().map(Choice::collect)).await?;
    Ok(Json(format.response(deltas)).into_response())
}

fn prepare(state: &AppState, body: &Body) -> Result<Prepared, ApiError> {
    let fields: CompletionFields = body.read()?;
    let sampling = SamplingFields::from_body(body)?;
    body.log_unknown_fields::<CompletionFields, SamplingFields>();

    let (model, adapter) = state.resolve_model(fields.model.as_deref())?;
    if let Some(n) = fields.logprobs.filter(|&n| n > MAX_LOGPROBS) {
        let message = format!("`logprobs` must be at most {MAX_LOGPROBS}, found {n}.");
        return Err(ApiError::bad_request("logprobs", message));
    }
    let echo = fields.echo.unwrap_or(false);
    let prompt_only = match fields.max_tokens {
        Some(0) if !echo => {
            let message = "`max_tokens` must be at least 1 without `echo`, found 0.";
            return Err(ApiError::bad_request("max_tokens", message));
        }
        requested => requested == Some(0),
    };
    let params = sampling.sampling_params(state, fields.logprobs)?;
    let text = sampling.text_options(state)?;

    let items = fields.prompt.into_items()?;
    let (num_sequences, limit) = (
        items.len() * sampling.n(),
        state.engine().max_num_queued_reqs(),
    );
    if num_sequences > limit {
        let message = format!(
            "{num_sequences} sequences in one request, but at most {limit} may wait (--max-num-queued-reqs)."
        );
        return Err(ApiError::bad_request("prompt", message));
    }
    let mut requests = Vec::with_capacity(items.len());
    let mut echoes = Vec::with_capacity(items.len());
    for item in items {
        let (prompt, shown) =
            read_prompt(state, item, fields.add_special_tokens.unwrap_or(true), echo)?;
        let room = state.model().max_model_len.saturating_sub(prompt.len());
        let requested = match fields.max_tokens {
            // The engine computes a prompt by generating one token, which is dropped.
            Some(0) => 1,
            Some(requested) => requested,
            None => DEFAULT_MAX_TOKENS.min(room),
        };
        let max_tokens = sampling.max_tokens(state, prompt.len(), Some(requested), "prompt")?;
        requests.push(GenerateRequest {
            prompt,
            sampling: params.clone(),
            max_tokens,
            min_tokens: text.min_tokens,
            stop_token_ids: text.stop_token_ids.clone(),
            adapter: adapter.clone(),
            cache_salt: sampling.cache_salt.clone(),
            prompt_logprobs: fields.logprobs.filter(|_| echo),
        });
        echoes.push(shown);
    }
    let logprobs = fields.logprobs.is_some();
    Ok(Prepared {
        model,
        requests,
        echoes: echo.then_some(echoes),
        prompt_only,
        text,
        sampling,
        logprobs,
    })
}

/// The token ids of a prompt and, for `echo`, its text.
fn read_prompt(
    state: &AppState,
    item: PromptItem,
    add_special_tokens: bool,
    echo: bool,
) -> Result<(Vec<u32>, String), ApiError> {
    let vocab_size = state.engine().vocab_size();
    let (ids, text) = match item {
        PromptItem::Text(text) => (encode(state, &text, add_special_tokens, "prompt")?, text),
        PromptItem::Tokens(ids) => {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                let message = format!("`prompt`: {id} is not a token id below {vocab_size}.");
                return Err(ApiError::bad_request("prompt", message));
            }
            let text = if echo {
                state.model().tokenizer.decode(&ids, false)
            } else {
                Ok(String::new())
            };
            (
                ids,
                text.map_err(|error| ApiError::bad_request("prompt", error.to_string()))?,
            )
        }
    };
    if ids.is_empty() {
        return Err(ApiError::bad_request(
            "prompt",
            "`prompt` must not be empty.",
        ));
    }
    Ok((ids, text))
}
