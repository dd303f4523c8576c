//! `/api/chat`.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value};

use super::super::conversation::Conversation;
use super::super::prompt::prepare_and_compile;
use super::format::Api;
use super::work::Work;
use crate::answer::CLOSE_THINK;
use crate::error::ApiError;
use crate::protocol::body::Body;
use crate::protocol::chat::TemplateFields;
use crate::protocol::fields::Endpoint;
use crate::protocol::ollama::{Request, take_messages, take_tools};
use crate::state::AppState;

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
