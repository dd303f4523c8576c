//! `/api/chat`.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

use super::super::constraint::{Constrained, Uncompiled};
use super::super::conversation::{Conversation, PreparedChat};
use super::super::prompt::prepare_and_compile;
use super::super::reasoning::model_has_reasoning;
use super::format::{Api, LineFormat};
use super::{model_name, renamed};
use crate::answer::CLOSE_THINK;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::postprocess::Delta;
use crate::protocol::body::Body;
use crate::protocol::chat::TemplateFields;
use crate::protocol::fields::Endpoint;
use crate::protocol::logprobs::LogprobLimit;
use crate::protocol::ollama::{Request, Think, take_messages, take_tools};
use crate::state::AppState;
use crate::stream::sse;

/// A request, and what is generated for it, if anything is.
pub(super) struct Work {
    pub(super) request: Request,
    /// The name the request used.
    pub(super) model: String,
    pub(super) prepared: Option<PreparedChat>,
    pub(super) started: Instant,
}

impl Constrained for Work {
    fn take_grammar(&mut self) -> Option<Uncompiled> {
        self.prepared.as_mut()?.take_grammar()
    }

    fn sequences(&mut self) -> &mut [GenerateRequest] {
        let prepared = self.prepared.as_mut();
        prepared.map_or(&mut [], PreparedChat::sequences)
    }
}

/// Answers a conversation.
pub(super) async fn chat(State(state): State<AppState>, body: Body) -> Result<Response, ApiError> {
    let started = Instant::now();
    let work = prepare_and_compile(&state, body, move |state, body| {
        prepare(state, body, started)
    })
    .await?;
    work.answer(&state, Api::Chat).await
}

fn prepare(state: &AppState, mut body: Body, started: Instant) -> Result<Work, ApiError> {
    body.check(Endpoint::OllamaChat)?;
    let messages = take_messages(&mut body)?;
    let tools = take_tools(&mut body)?;
    let request = Request::take(&mut body)?;
    drop(body);

    let conversation = messages.map(|messages| Conversation {
        template: TemplateFields {
            tools,
            continue_final_message: is_continued(&messages).then_some(true),
            ..request.template()
        },
        messages,
        ..Conversation::default()
    });
    Work::new(state, request, conversation, started)
}

/// Whether the answer goes on with the last message: Ollama's templates leave the assistant's last turn open. A text with the tags
/// of thoughts may be written another way than it is, and gets an answer of its own.
fn is_continued(messages: &[Map<String, Value>]) -> bool {
    messages.last().is_some_and(|last| {
        let has_text = last["content"]
            .as_str()
            .is_some_and(|text| !text.is_empty() && !text.contains(CLOSE_THINK));
        last["role"] == "assistant" && has_text && !last.contains_key("tool_calls")
    })
}

impl Work {
    /// Checks a request, and prepares its conversation, if there is one.
    pub(super) fn new(
        state: &AppState,
        request: Request,
        conversation: Option<Conversation>,
        started: Instant,
    ) -> Result<Self, ApiError> {
        let model = request.fields.model.clone();
        let known = model_name(state, &model);
        state.resolve_model(Some(&known))?;
        request.options.check_length(state.model().max_model_len)?;
        let asks_to_think = match request.fields.think {
            None | Some(Think::Switch(false)) => false,
            Some(_) => request.shows_thinking(),
        };
        if asks_to_think && !model_has_reasoning(state) {
            let message = format!("`think`: the model `{model}` does not support thinking.");
            return Err(ApiError::bad_request("think", message));
        }
        let num_logprobs = request.num_logprobs(LogprobLimit::of(state))?;
        let sampling = request.options.sampling();
        if conversation.is_none() {
            // What is not generated yet is checked, too.
            let params = sampling.sampling_params(state, num_logprobs);
            params.map_err(renamed)?;
        }
        let prepare = |conversation| {
            let conversation = Conversation {
                model: Some(known),
                sampling,
                max_tokens: request.options.max_tokens(),
                num_logprobs,
                grammar: request.grammar(state.json_style()),
                ..conversation
            };
            let prepared = conversation.prepare(state).map_err(renamed);
            prepared.map(|prepared| prepared.renamed(renamed))
        };
        let prepared = conversation.map(prepare).transpose()?;
        Ok(Self {
            request,
            model,
            prepared,
            started,
        })
    }

    /// Generates the answer.
    pub(super) async fn answer(self, state: &AppState, api: Api) -> Result<Response, ApiError> {
        let streams = self.request.fields.stream.unwrap_or(true);
        let Some(prepared) = &self.prepared else {
            let line = LineFormat::new(state, api, &self).loaded();
            return Ok(Json(line).into_response());
        };
        let mut choices = prepared.submit(state)?;
        let mut format = LineFormat::new(state, api, &self);
        if streams {
            return Ok(sse(choices, format));
        }
        let mut all = Delta::default();
        for choice in &mut choices {
            while let Some(delta) = choice.next().await {
                format.note_first();
                all.append(delta?);
            }
        }
        Ok(Json(format.response(all)).into_response())
    }
}
