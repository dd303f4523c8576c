//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use serde_json::Value;

use super::blocking;
use super::tokenize::encode;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::postprocess::Delta;
use crate::protocol::body::Body;
use crate::protocol::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatFields, ChatResponse,
    TemplateFields, render,
};
use crate::protocol::common::{MAX_LOGPROBS, SamplingFields, StreamOptions};
use crate::protocol::logprobs::{ChatLogprobs, TokenView};
use crate::protocol::sampling::TextOptions;
use crate::protocol::usage::Usage;
use crate::state::{AppState, unix_time};
use crate::stream::{Choice, EventFormat, TokenCounts, sse};

/// A checked request, ready to be submitted.
struct Prepared {
    model: String,
    request: GenerateRequest,
    text: TextOptions,
    sampling: SamplingFields,
    logprobs: bool,
}

/// Answers a conversation.
pub async fn chat_completions(
    State(state): State<AppState>,
    body: Body,
) -> Result<Response, ApiError> {
    let shared = state.clone();
    let Prepared {
        model,
        request,
        text,
        sampling,
        logprobs,
    } = blocking(move || prepare(&shared, &body)).await?;

    let prompt_lens: Arc<[usize]> = Arc::new([request.prompt.len()]);
    let choices = (0..sampling.n())
        .map(|i| {
            let mut request = request.clone();
            request.sampling.seed = request
                .sampling
                .seed
                .map(|seed| seed.wrapping_add(i as u64));
            Choice::submit(&state, i, request, &text, false)
        })
        .collect::<Result<Vec<_>, _>>()?;

    let format = ChatFormat {
        id: state.new_id("chatcmpl"),
        created: unix_time(),
        model,
        counts: TokenCounts::new(&prompt_lens, sampling.n()),
        options: sampling.stream_options.unwrap_or_default(),
        n: sampling.n(),
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
    let fields: ChatFields = body.read()?;
    let template: TemplateFields = body.read()?;
    let sampling = SamplingFields::from_body(body)?;
    body.log_unknown_fields::<ChatFields, SamplingFields>();

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
    let num_top = match fields.top_logprobs {
        Some(n) if n > MAX_LOGPROBS => {
            let message = format!("`top_logprobs` must be at most {MAX_LOGPROBS}, found {n}.");
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
    let params = sampling.sampling_params(state, num_top)?;
    let text = sampling.text_options(state)?;

    let rendered = render(state, &fields.messages, &template)?;
    let prompt = encode(
        state,
        &rendered,
        template.add_special_tokens.unwrap_or(false),
        "messages",
    )?;
    let requested = match fields.max_completion_tokens.or(fields.max_tokens) {
        Some(0) => {
            return Err(ApiError::bad_request(
                "max_tokens",
                "`max_tokens` must be at least 1, found 0.",
            ));
        }
        requested => requested,
    };
    let max_tokens = sampling.max_tokens(state, prompt.len(), requested, "messages")?;
    let request = GenerateRequest {
        prompt,
        sampling: params,
        max_tokens,
        min_tokens: text.min_tokens,
        stop_token_ids: text.stop_token_ids.clone(),
        adapter,
        cache_salt: sampling.cache_salt.clone(),
        prompt_logprobs: None,
    };
    Ok(Prepared {
        model,
        request,
        text,
        sampling,
        logprobs,
    })
}

/// The shape of chat answers.
struct ChatFormat {
    id: String,
    created: u64,
    model: String,
    counts: TokenCounts,
    options: StreamOptions,
    n: usize,
    logprobs: Option<TokenView>,
}

impl ChatFormat {
    fn logprobs(&self, delta: &Delta) -> Option<ChatLogprobs> {
        self.logprobs
            .as_ref()
            .map(|view| ChatLogprobs::new(view, &delta.logprobs))
    }

    fn response(mut self, deltas: Vec<Delta>) -> ChatResponse {
        let choices = deltas.into_iter().enumerate().map(|(index, delta)| {
            self.counts.update(index, &delta);
            let logprobs = self.logprobs(&delta);
            let (finish_reason, stop_reason) = delta.finish.map_or(("stop", Value::Null), |f| {
                (f.reason.as_str(), f.stop_reason)
            });
            let message = AssistantMessage {
                role: "assistant",
                content: delta.text,
            };
            ChatChoice {
                index,
                message,
                logprobs,
                finish_reason,
                stop_reason,
            }
        });
        let choices = choices.collect();
        let usage = self.counts.usage();
        ChatResponse {
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            choices,
            usage,
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>) -> Value {
        let continuous = self
            .options
            .continuous_usage_stats
            .unwrap_or(false)
            .then(|| self.counts.usage());
        let usage = match usage.or(continuous) {
            Some(usage) => serde_json::to_value(usage).ok(),
            None => self
                .options
                .include_usage
                .unwrap_or(false)
                .then_some(Value::Null),
        };
        let (id, model) = (self.id.as_str(), self.model.as_str());
        let chunk = ChatChunk {
            id,
            object: "chat.completion.chunk",
            created: self.created,
            model,
            choices,
            usage,
        };
        // Strings, numbers and lists of them always serialize.
        serde_json::to_value(chunk).unwrap_or_default()
    }
}

impl EventFormat for ChatFormat {
    fn first(&mut self) -> Vec<Value> {
        let role = |index| {
            let delta = ChatDelta {
                role: Some("assistant"),
                content: Some(String::new()),
            };
            self.chunk(
                vec![ChatChunkChoice {
                    index,
                    delta,
                    logprobs: None,
                    finish_reason: None,
                    stop_reason: None,
                }],
                None,
            )
        };
        (0..self.n).map(role).collect()
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Vec<Value> {
        self.counts.update(index, &delta);
        let logprobs = self
            .logprobs(&delta)
            .filter(|logprobs| !logprobs.content.is_empty());
        let (finish_reason, stop_reason) = delta
            .finish
            .map(|f| (f.reason.as_str(), f.stop_reason))
            .unzip();
        let content = Some(delta.text).filter(|text| !text.is_empty());
        let delta = ChatDelta {
            role: None,
            content,
        };
        vec![self.chunk(
            vec![ChatChunkChoice {
                index,
                delta,
                logprobs,
                finish_reason,
                stop_reason,
            }],
            None,
        )]
    }

    fn last(&mut self) -> Vec<Value> {
        let wanted = self.options.include_usage.unwrap_or(false);
        let usage = || self.chunk(Vec::new(), Some(self.counts.usage()));
        wanted.then(usage).into_iter().collect()
    }
}
