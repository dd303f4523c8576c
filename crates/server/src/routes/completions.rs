//! `/v1/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use model_qwen::TokenizerError;

use super::completion_format::CompletionFormat;
use super::constraint::{Constrained, PlacedGrammar, Sequence, Uncompiled, sequence};
use super::fim::{fim_prompt, with_fim_stop_tokens};
use super::prompt::{Length, encode, prepare_and_compile};
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::common::SamplingFields;
use crate::protocol::completions::{CompletionFields, DEFAULT_MAX_TOKENS, PromptItem};
use crate::protocol::fields::Endpoint;
use crate::protocol::grammar::GrammarFields;
use crate::protocol::logprobs::{LogprobLimit, TokenView};
use crate::protocol::sampling::{MaxTokens, TextOptions};
use crate::state::{AppState, unix_time};
use crate::stream::{RunningChoice, TokenCounts, sse, submit_choices};

/// A checked request, ready to be submitted: one sequence per prompt, to be repeated `n` times.
pub(super) struct PreparedCompletion {
    pub(super) id: String,
    pub(super) model: String,
    pub(super) requests: Vec<GenerateRequest>,
    /// What `echo` repeats, per prompt.
    echoes: Option<Vec<String>>,
    prompt_only: bool,
    pub(super) text: TextOptions,
    pub(super) sampling: SamplingFields,
    num_logprobs: Option<usize>,
    /// Still to be compiled.
    grammar: Option<Uncompiled>,
}

impl Constrained for PreparedCompletion {
    fn take_grammar(&mut self) -> Option<Uncompiled> {
        self.grammar.take()
    }

    fn sequences(&mut self) -> &mut [GenerateRequest] {
        &mut self.requests
    }
}

/// Continues texts.
pub async fn completions(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let PreparedCompletion {
        id,
        model,
        requests,
        echoes,
        prompt_only,
        text,
        sampling,
        num_logprobs,
        grammar: _,
    } = prepare_and_compile(&state, body, prepare).await?;

    let n = sampling.n();
    let choices = submit_choices(&state, &requests, n, |index, request| {
        RunningChoice::submit(&state, index, request, &text, prompt_only)
    })?;
    let prompt_lens: Arc<[usize]> = requests
        .iter()
        .map(|request| request.prompt.len())
        .collect();
    let format = CompletionFormat {
        id,
        created: unix_time(),
        model,
        fingerprint: state.fingerprint().to_owned(),
        counts: TokenCounts::new(&prompt_lens, n),
        options: sampling.shown_usage(&state),
        n,
        offsets: vec![0; choices.len()],
        echoes,
        prompts: requests.into_iter().map(|request| request.prompt).collect(),
        view: TokenView {
            tokenizer: state.model().tokenizer.clone(),
            as_ids: sampling.tokens_as_ids(&state),
            skip_special_tokens: text.skip_special_tokens,
        },
        num_logprobs,
        num_prompt_logprobs: sampling.prompt_logprobs(),
        returns_token_ids: sampling.return_token_ids.unwrap_or(false),
        sent_prompt: vec![false; choices.len()],
    };
    if sampling.stream() {
        return Ok(sse(choices, format));
    }
    let deltas = try_join_all(choices.into_iter().map(RunningChoice::collect)).await?;
    Ok(Json(format.response(deltas)).into_response())
}

pub(super) fn prepare(state: &AppState, mut body: Body) -> Result<PreparedCompletion, ApiError> {
    body.check(Endpoint::Completions)?;
    let fields = CompletionFields::take(&mut body)?;
    let limit = LogprobLimit::of(state);
    let sampling = SamplingFields::from_body(&body, limit)?;
    let grammar: GrammarFields = body.read()?;
    let id = body.request_id().or(sampling.request_id.as_deref());
    drop(body);

    let (model, adapter) = state.resolve_model(fields.model.as_deref())?;
    let num_logprobs = fields.logprobs.map(|given| limit.num("logprobs", given));
    let num_logprobs = num_logprobs.transpose()?;
    let echo = fields.echo.unwrap_or(false);
    let prompt_only = match fields.max_tokens {
        Some(0) if !echo => {
            let message = "`max_tokens` must be at least 1 without `echo`, found 0.";
            return Err(ApiError::bad_request("max_tokens", message));
        }
        requested => requested == Some(0),
    };
    let params = sampling.sampling_params(state, num_logprobs)?;
    let mut text = sampling.text_options(state)?;
    if fields.suffix.is_some() {
        refuse_beside_suffix(echo, &sampling)?;
        text = with_fim_stop_tokens(state, &sampling, text);
    }
    let asked = grammar.requested(state.json_style())?;
    let placed = asked.map(PlacedGrammar::at_start);

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
    let Sequence {
        request: sequence,
        text,
        grammar,
    } = sequence(state, placed, &sampling, params, adapter, text);
    let length = Length::of(state, &sampling, "prompt", fields.max_tokens)?;
    let echoed_logprobs = num_logprobs.filter(|_| echo);
    let mut requests = Vec::with_capacity(items.len());
    let mut echoes = Vec::with_capacity(items.len());
    let names: Vec<String> = match items.len() {
        1 => vec!["prompt".to_owned()],
        num => (0..num).map(|i| format!("prompt[{i}]")).collect(),
    };
    for (item, name) in items.into_iter().zip(&names) {
        let item = match &fields.suffix {
            Some(suffix) => before_suffix(state, item, suffix, name)?,
            None => item,
        };
        let add_special_tokens = fields.add_special_tokens.unwrap_or(true);
        let length = length.named(name);
        let (prompt, shown) = read_prompt(state, item, add_special_tokens, echo, &length)?;
        let requested = match fields.max_tokens {
            // The engine computes a prompt by generating one token, which is dropped.
            Some(0) => MaxTokens::Exactly(1),
            Some(requested) => MaxTokens::Exactly(requested),
            None => MaxTokens::AtMost(DEFAULT_MAX_TOKENS),
        };
        let max_tokens = sampling.max_tokens(state, prompt.len(), requested, name)?;
        requests.push(GenerateRequest {
            prompt,
            max_tokens,
            prompt_logprobs: sequence.prompt_logprobs.max(echoed_logprobs),
            ..sequence.clone()
        });
        echoes.push(shown);
    }
    Ok(PreparedCompletion {
        id: format!("cmpl-{id}"),
        model,
        requests,
        echoes: echo.then_some(echoes),
        prompt_only,
        text,
        sampling,
        num_logprobs,
        grammar,
    })
}

/// Refuses what means nothing where the model reads more than the prompt.
fn refuse_beside_suffix(echo: bool, sampling: &SamplingFields) -> Result<(), ApiError> {
    let given = [
        ("echo", echo),
        (
            "truncate_prompt_tokens",
            sampling.truncate_prompt_tokens.is_some(),
        ),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((name, _)) => {
            let message =
                format!("`{name}` cannot be used with `suffix`: the model reads both texts.");
            Err(ApiError::bad_request(name, message))
        }
    }
}

/// The prompt for what comes before `suffix`.
fn before_suffix(
    state: &AppState,
    item: PromptItem,
    suffix: &str,
    name: &str,
) -> Result<PromptItem, ApiError> {
    match item {
        PromptItem::Text(text) => fim_prompt(state, &text, suffix).map(PromptItem::Text),
        PromptItem::Tokens(_) => Err(ApiError::expected(
            name,
            "a text with `suffix`",
            "token ids",
        )),
    }
}

/// The token ids of a prompt and, for `echo`, its text.
fn read_prompt(
    state: &AppState,
    item: PromptItem,
    add_special_tokens: bool,
    echo: bool,
    length: &Length<'_>,
) -> Result<(Vec<u32>, String), ApiError> {
    let (vocab_size, name) = (state.engine().vocab_size(), length.param());
    let unreadable = |error: TokenizerError| ApiError::bad_request(name, error.to_string());
    let decode = |ids: &[u32]| match echo {
        true => state
            .model()
            .tokenizer
            .decode(ids, false)
            .map_err(unreadable),
        false => Ok(String::new()),
    };
    let (ids, text) = match item {
        PromptItem::Text(text) => {
            let ids = encode(state, &text, add_special_tokens, length)?;
            // Of a prompt that was cut, only the rest is repeated.
            let text = match echo && length.cuts() {
                true => decode(&ids)?,
                false => text,
            };
            (ids, text)
        }
        PromptItem::Tokens(ids) => {
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
                let message = format!("`{name}`: {id} is not a token id below {vocab_size}.");
                return Err(ApiError::bad_request(name, message));
            }
            let ids = length.cut(ids);
            let text = decode(&ids)?;
            (ids, text)
        }
    };
    if ids.is_empty() {
        let message = format!("`{name}` must not be empty.");
        return Err(ApiError::bad_request(name, message));
    }
    Ok((ids, text))
}
