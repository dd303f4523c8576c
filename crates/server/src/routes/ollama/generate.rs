//! `/api/generate`.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;

use super::super::constraint::{PlacedGrammar, Sequence, sequence};
use super::super::conversation::{Conversation, PreparedChat};
use super::super::fim::{fim_prompt, with_fim_stop_tokens};
use super::super::prompt::{Length, encode, prepare_and_compile};
use super::format::Api;
use super::names::{model_name, renamed};
use super::work::Work;
use crate::answer::AnswerOptions;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::fields::Endpoint;
use crate::protocol::logprobs::LogprobLimit;
use crate::protocol::ollama::{GenerateFields, Request, conversation};
use crate::state::AppState;

/// Answers a prompt.
pub(super) async fn generate(
    State(state): State<AppState>,
    body: Body,
) -> Result<Response, ApiError> {
    let started = Instant::now();
    let work = prepare_and_compile(&state, body, move |state, body| {
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
    let is_fim = fields.suffix.is_some();
    let is_told = fields.system.as_ref().is_some_and(|text| !text.is_empty());
    if is_told && (is_raw || is_fim) {
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
            fim_prompt(state, &prompt, &suffix)?
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
    work.prepared = Some(plain(state, &work.request, &text, is_fim)?);
    Ok(work)
}

/// A prompt without a template.
fn plain(
    state: &AppState,
    request: &Request,
    text: &str,
    is_fim: bool,
) -> Result<PreparedChat, ApiError> {
    let sampling = request.options.sampling();
    let (model, adapter) = state.resolve_model(Some(&model_name(state, &request.fields.model)))?;
    let num_logprobs = request.num_logprobs(LogprobLimit::of(state))?;
    let params = sampling.sampling_params(state, num_logprobs);
    let params = params.map_err(renamed)?;
    let options = match (sampling.text_options(state)?, is_fim) {
        (options, true) => with_fim_stop_tokens(state, &sampling, options),
        (options, false) => options,
    };
    let grammar = request.grammar(state.json_style());
    let grammar = grammar.map(PlacedGrammar::at_start);
    let Sequence {
        request: sequence,
        text: text_options,
        grammar,
    } = sequence(state, grammar, &sampling, params, adapter, options);
    let length = Length::of(state, &sampling, "prompt", None)?;
    let prompt = encode(state, text, true, &length)?;
    let requested = request.options.max_tokens();
    let max_tokens = sampling.max_tokens(state, prompt.len(), requested, "prompt")?;
    Ok(PreparedChat {
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
