//! `/api/generate`.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;

use super::super::constraint::{Sequence, sequence};
use super::super::conversation::{Conversation, Prepared};
use super::super::prompt::{Length, encode, in_two_turns};
use super::chat::Work;
use super::format::Api;
use super::{model_name, renamed};
use crate::answer::AnswerOptions;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::common::SamplingFields;
use crate::protocol::fields::Endpoint;
use crate::protocol::logprobs::LogprobLimit;
use crate::protocol::ollama::{GenerateFields, Request, conversation};
use crate::state::AppState;

/// Tokens of models that fill a gap: before the text, between its parts, before the answer.
const GAP_TOKENS: [&str; 3] = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"];
/// What such a model writes behind the answer, besides these.
const BEHIND_GAP: [&str; 4] = [
    "<|fim_pad|>",
    "<|file_sep|>",
    "<|repo_name|>",
    "<|endoftext|>",
];

/// Answers a prompt.
pub(super) async fn generate(
    State(state): State<AppState>,
    body: Body,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let work = in_two_turns(&state, body, move |state, body| {
        prepare(state, body, started)
    })
    .await?;
    work.answer(&state, Api::Generate).await
}

fn prepare(state: &AppState, mut body: Body, started: Instant) -> Result<Work, ApiError> {
    body.check(Endpoint::OllamaGenerate)?;
    let fields: GenerateFields = body.read()?;
    let request = Request::take(&mut body)?;
    drop(body);

    let is_raw = fields.raw.unwrap_or(false);
    let prompt = fields.prompt.filter(|prompt| !prompt.is_empty());
    let fills_gap = fields.suffix.is_some();
    let is_told = fields.system.as_ref().is_some_and(|text| !text.is_empty());
    if is_told && (is_raw || fills_gap) {
        let other = if is_raw { "raw" } else { "suffix" };
        let message = format!("`system` needs a template: it cannot be used with `{other}`.");
        return Err(ApiError::bad_request("system", message));
    }
    let text = match (prompt, fields.suffix, is_raw) {
        (_, Some(_), true) => {
            let message = "`suffix` needs a template: it cannot be used with `raw`.";
            return Err(ApiError::bad_request("suffix", message));
        }
        (prompt, Some(suffix), false) => {
            let prompt = prompt.unwrap_or_default();
            with_gap(state, &prompt, &suffix)?
        }
        (Some(prompt), None, true) => prompt,
        (Some(prompt), None, false) => {
            let conversation = Conversation {
                messages: conversation(fields.system, prompt),
                template: request.template(),
                ..Conversation::default()
            };
            return Work::new(state, request, Some(conversation), started);
        }
        (None, None, _) => return Work::new(state, request, None, started),
    };
    let mut work = Work::new(state, request, None, started)?;
    let mut sampling = work.request.options.sampling();
    if fills_gap {
        let tokenizer = &state.model().tokenizer;
        let stops = GAP_TOKENS.iter().chain(&BEHIND_GAP);
        let stops = stops.filter_map(|token| tokenizer.token_to_id(token));
        sampling.stop_token_ids = Some(stops.collect());
    }
    work.prepared = Some(plain(state, &work.request, sampling, &text)?);
    Ok(work)
}

/// Whether the model can write what is between two texts.
pub(super) fn fills_gaps(state: &AppState) -> bool {
    let tokenizer = &state.model().tokenizer;
    let is_known = |token: &&str| tokenizer.token_to_id(token).is_some();
    GAP_TOKENS.iter().all(is_known)
}

fn with_gap(state: &AppState, prompt: &str, suffix: &str) -> Result<String, ApiError> {
    if !fills_gaps(state) {
        let message = format!(
            "`suffix` is not supported: the model has no token {}.",
            GAP_TOKENS[0]
        );
        return Err(ApiError::bad_request("suffix", message));
    }
    let [before, between, behind] = GAP_TOKENS;
    Ok(format!("{before}{prompt}{between}{suffix}{behind}"))
}

/// A prompt without a template.
fn plain(
    state: &AppState,
    request: &Request,
    sampling: SamplingFields,
    text: &str,
) -> Result<Prepared, ApiError> {
    let (model, adapter) = state.resolve_model(Some(&model_name(state, &request.fields.model)))?;
    let num_logprobs = request.num_logprobs(LogprobLimit::of(state))?;
    let params = sampling.sampling_params(state, num_logprobs);
    let params = params.map_err(renamed)?;
    let options = sampling.text_options(state)?;
    let grammar = request.grammar(state.json_style());
    let Sequence {
        request: sequence,
        text: text_options,
        grammar,
    } = sequence(state, (grammar, None), &sampling, params, adapter, options);
    let length = Length::of(state, &sampling, "prompt", None)?;
    let prompt = encode(state, text, true, &length)?;
    let requested = request.options.max_tokens();
    let max_tokens = sampling.max_tokens(state, prompt.len(), requested, "prompt")?;
    Ok(Prepared {
        model,
        request: GenerateRequest {
            prompt,
            max_tokens,
            ..sequence
        },
        text: text_options,
        parts: AnswerOptions::default(),
        sampling,
        role: "assistant".to_owned(),
        last: None,
        grammar,
    })
}
