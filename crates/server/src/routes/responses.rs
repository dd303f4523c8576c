//! `/v1/responses`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::conversation::{Conversation, PreparedChat};
use super::prompt::{prepare_and_compile, prepare_request};
use super::responses_format::{Kept, ResponsesFormat};
use super::stored_responses::stored;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::TemplateFields;
use crate::protocol::common::SamplingFields;
use crate::protocol::fields::Endpoint;
use crate::protocol::grammar::GrammarFields;
use crate::protocol::logprobs::{LogprobLimit, TokenView};
use crate::protocol::responses::choice::chat_choice;
use crate::protocol::responses::items::{Item, is_unfinished, read_input};
use crate::protocol::responses::messages::{Messages, Places};
use crate::protocol::responses::output::Output;
use crate::protocol::responses::response::{ResponseObject, Status, decimal};
use crate::protocol::responses::settings;
use crate::protocol::responses::tools::read_tools;
use crate::protocol::responses::{ResponsesFields, Truncation, new_id};
use crate::protocol::sampling::MaxTokens;
use crate::protocol::tools::read_choice;
use crate::state::{AppState, unix_time};
use crate::stored_responses::{Input, Turn};
use crate::stream::sse;

/// What the answer shows and what is kept of it.
struct Shown {
    response: ResponseObject,
    output: Output,
    logprobs: bool,
    reasoning: bool,
    previous: Option<Arc<Turn>>,
    /// `None` if nothing is kept.
    input: Option<Input>,
}

/// Answers the items of a conversation.
pub async fn create(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let (shown, prepared) = prepare_and_compile(&state, body, prepare).await?;
    let choices = prepared.submit(&state)?;
    let streams = prepared.sampling.stream();
    let mut format = format(&state, shown, prepared);
    if streams {
        return Ok(sse(choices, format));
    }
    for mut choice in choices {
        while let Some(delta) = choice.next().await {
            format.add(delta?);
        }
    }
    Ok(Json(format.response).into_response())
}

/// Counts the tokens of a prompt.
pub async fn input_tokens(
    State(state): State<AppState>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let num_tokens = prepare_request(&state, body, |state, body| {
        let (_, conversation, places) = read(state, body)?;
        conversation
            .count(state)
            .map_err(|error| places.name(error))
    })
    .await?;
    Ok(Json(
        json!({ "object": "response.input_tokens", "input_tokens": num_tokens }),
    ))
}

fn format(state: &AppState, shown: Shown, prepared: PreparedChat) -> ResponsesFormat {
    let sampling = &prepared.request.sampling;
    let mut response = shown.response;
    response.temperature = decimal(sampling.temperature);
    response.top_p = decimal(sampling.top_p);
    response.presence_penalty = decimal(sampling.presence_penalty);
    response.frequency_penalty = decimal(sampling.frequency_penalty);
    response.model = prepared.model;
    ResponsesFormat {
        kept: shown.input.map(|input| Kept {
            state: state.clone(),
            previous: shown.previous,
            input,
        }),
        response,
        output: shown.output,
        num_prompt_tokens: prepared.request.prompt.len(),
        view: TokenView {
            tokenizer: state.model().tokenizer.clone(),
            as_ids: prepared.sampling.tokens_as_ids(state),
            skip_special_tokens: prepared.text.skip_special_tokens,
        },
        logprobs: shown.logprobs,
        shows_reasoning: shown.reasoning,
    }
}

fn prepare(state: &AppState, body: Body) -> Result<(Shown, PreparedChat), ApiError> {
    let (shown, conversation, places) = read(state, body)?;
    let prepared = conversation.prepare(state);
    let mut prepared = prepared.map_err(|error| places.name(error))?;
    if let Some(param) = &mut prepared.text.grammar_param {
        *param = places.renamed(param);
    }
    Ok((shown, prepared.renamed(move |error| places.name(error))))
}

/// Reads a request. The last value names the fields that messages came from.
fn read(state: &AppState, mut body: Body) -> Result<(Shown, Conversation, Places), ApiError> {
    body.check(Endpoint::Responses)?;
    let mut fields = ResponsesFields::take(&mut body)?;
    let mut sampling = SamplingFields::from_body(&body, LogprobLimit::of(state))?;
    let mut grammar: GrammarFields = body.read()?;
    drop(body);
    grammar.response_format = settings::read_text(fields.text.as_ref())?;
    let truncation = fields.truncation.unwrap_or_default();
    if truncation == Truncation::Auto {
        // The longest prompt that leaves room for the output.
        sampling.truncate_prompt_tokens.get_or_insert(-1);
    }

    let previous = previous(state, fields.previous_response_id.as_deref())?;
    let find = |id: &str| state.stored_responses().item(id);
    let input = match (std::mem::take(&mut fields.input), &previous) {
        // The last answer goes on if it was cut off.
        (input, Some(_)) if input.is_null() || input == json!([]) => Vec::new(),
        (input, _) => read_input(input, find)?,
    };
    let tools = read_tools(fields.tools.take().unwrap_or_default())?;
    let choice = chat_choice(fields.tool_choice.as_ref().unwrap_or(&Value::Null), &tools)?;
    let included = settings::read_include(fields.include.as_deref().unwrap_or_default())?;
    let num_logprobs = num_logprobs(&fields, included.logprobs, LogprobLimit::of(state))?;
    let response = response(state, &fields, &sampling, tools.shown)?;

    let tool_choice = read_choice(Some(&choice), Some(&tools.chat))?;
    let continues = match input.last() {
        Some(item) => is_unfinished(item),
        None => (previous.iter().flat_map(|turn| turn.conversation()).last())
            .is_some_and(|item| is_unfinished(&item)),
    };
    let template = TemplateFields {
        tools: (!tools.chat.is_empty()).then_some(tools.chat),
        continue_final_message: continues.then_some(true),
        chat_template_kwargs: fields.chat_template_kwargs.take(),
        reasoning_effort: settings::read_reasoning(fields.reasoning.as_ref())?,
        ..TemplateFields::default()
    };
    let grammar = grammar.requested(state.json_style());
    let (messages, places) =
        messages(&fields, previous.as_deref(), &input).into_parts(tools.places);
    let output = Output::new(sampling.stream())
        .calling(tools.callees)
        .encrypting(included.encrypted);
    let conversation = Conversation {
        model: fields.model,
        messages,
        template,
        sampling,
        max_tokens: MaxTokens::of(fields.max_output_tokens),
        num_logprobs,
        grammar: grammar.map_err(|error| places.name(error))?,
        tool_choice,
        only_one_call: fields.parallel_tool_calls == Some(false),
        thinking_token_budget: fields.thinking_token_budget,
    };
    let shown = Shown {
        input: response.store.then(|| Input::new(&input)),
        response,
        output,
        logprobs: num_logprobs.is_some(),
        reasoning: fields.include_reasoning.unwrap_or(true),
        previous,
    };
    Ok((shown, conversation, places))
}

/// The response before it has any output.
fn response(
    state: &AppState,
    fields: &ResponsesFields,
    sampling: &SamplingFields,
    tools: Vec<Value>,
) -> Result<ResponseObject, ApiError> {
    settings::check_metadata(fields.metadata.as_ref())?;
    if fields.max_tool_calls == Some(0) {
        let message = "`max_tool_calls` must be at least 1, found 0.";
        return Err(ApiError::bad_request("max_tool_calls", message));
    }
    let of = |object: Option<&Value>, key: &str| {
        let value = object.and_then(|object| object.get(key));
        value.cloned().unwrap_or_default()
    };
    let (reasoning, text) = (fields.reasoning.as_ref(), fields.text.as_ref());
    let format = match of(text, "format") {
        Value::Null => json!({ "type": "text" }),
        format => format,
    };
    let is_kept = fields.store.unwrap_or(true) && state.stored_responses().is_on();
    let id = match &sampling.request_id {
        Some(id) if id.starts_with("resp_") => id.clone(),
        Some(id) => format!("resp_{id}"),
        None => new_id("resp"),
    };
    if is_kept && state.stored_responses().get(&id).is_some() {
        let message = format!("`request_id`: the response `{id}` is stored already.");
        return Err(ApiError::bad_request("request_id", message));
    }
    Ok(ResponseObject {
        id,
        object: "response",
        created_at: unix_time(),
        completed_at: None,
        status: Status::InProgress,
        background: false,
        error: None,
        incomplete_details: None,
        instructions: fields.instructions.clone(),
        max_output_tokens: fields.max_output_tokens,
        max_tool_calls: fields.max_tool_calls,
        model: String::new(),
        output: Vec::new(),
        parallel_tool_calls: fields.parallel_tool_calls.unwrap_or(true),
        previous_response_id: fields.previous_response_id.clone(),
        prompt_cache_key: fields.prompt_cache_key.clone(),
        reasoning: json!({ "effort": of(reasoning, "effort"), "summary": of(reasoning, "summary") }),
        safety_identifier: fields.safety_identifier.clone(),
        service_tier: "default",
        store: is_kept,
        temperature: 0.0,
        text: json!({ "format": format, "verbosity": "medium" }),
        tool_choice: fields.tool_choice.clone().unwrap_or_else(|| "auto".into()),
        tools,
        top_logprobs: fields.top_logprobs.unwrap_or(0),
        top_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        truncation: fields.truncation.unwrap_or_default(),
        usage: None,
        user: fields.user.clone(),
        metadata: fields.metadata.clone().unwrap_or_else(|| json!({})),
    })
}

/// Alternatives per token, if log-probabilities are asked for.
fn num_logprobs(
    fields: &ResponsesFields,
    includes: bool,
    limit: LogprobLimit,
) -> Result<Option<usize>, ApiError> {
    let num = limit.num("top_logprobs", fields.top_logprobs.unwrap_or(0))?;
    Ok((includes || num > 0).then_some(num))
}

/// The conversation so far.
fn messages(fields: &ResponsesFields, previous: Option<&Turn>, input: &[Item]) -> Messages {
    let mut messages = Messages::default();
    if let Some(instructions) = &fields.instructions {
        messages.instruct(instructions);
    }
    for item in previous.iter().flat_map(|turn| turn.conversation()) {
        messages.push(&item, "previous_response_id");
    }
    for (i, item) in input.iter().enumerate() {
        messages.push(item, &format!("input[{i}]"));
    }
    messages
}

fn previous(state: &AppState, id: Option<&str>) -> Result<Option<Arc<Turn>>, ApiError> {
    let found = id.map(|id| stored(state, id, "previous_response_id"));
    found.transpose().map_err(|error| ApiError {
        code: Some("previous_response_not_found"),
        ..error
    })
}
