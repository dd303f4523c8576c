//! Lines of `/api/chat` and `/api/generate`.

use std::time::{Instant, SystemTime};

use serde_json::{Map, Value};

use super::super::conversation::PreparedChat;
use super::super::reasoning::WithoutSpace;
use super::super::text_joiner::TextJoiner;
use super::time::{nanoseconds, rfc3339};
use super::work::Work;
use crate::answer::{Part, arguments_object};
use crate::engine::FinishReason;
use crate::error::ApiError;
use crate::error::shape::ErrorShape;
use crate::postprocess::Delta;
use crate::protocol::logprobs::{ChatLogprob, ChatLogprobs, TokenView};
use crate::protocol::ollama_answer::{
    Line, OllamaCall, OllamaFunction, OllamaMessage, Said, Timing,
};
use crate::state::AppState;
use crate::stream::EventFormat;

/// Which endpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Generate,
}

/// The shape of lines.
pub(super) struct LineFormat {
    api: Api,
    /// The name the request used.
    model: String,
    shows_thinking: bool,
    /// How tokens are shown, if log-probabilities are asked for.
    view: Option<TokenView>,
    num_prompt_tokens: usize,
    started: Instant,
    first: Option<Instant>,
    space: WithoutSpace,
    joiner: TextJoiner,
    /// The call that has no end yet.
    call: Option<OllamaCall>,
    arguments: String,
}

/// What is new of an answer.
#[derive(Default)]
struct More {
    content: String,
    thinking: String,
    calls: Vec<OllamaCall>,
}

impl LineFormat {
    pub(super) fn new(state: &AppState, api: Api, work: &Work) -> Self {
        let prepared = work.prepared.as_ref();
        let shows_logprobs = work.request.fields.logprobs.unwrap_or(false);
        let skips = |prepared: &PreparedChat| prepared.text.skip_special_tokens;
        Self {
            api,
            model: work.model.clone(),
            shows_thinking: work.request.shows_thinking(),
            view: shows_logprobs.then(|| TokenView {
                tokenizer: state.model().tokenizer.clone(),
                as_ids: state.api().return_tokens_as_token_ids,
                skip_special_tokens: prepared.is_none_or(skips),
            }),
            num_prompt_tokens: prepared.map_or(0, |prepared| prepared.request.prompt.len()),
            started: work.started,
            first: None,
            space: WithoutSpace::default(),
            joiner: TextJoiner::default(),
            call: None,
            arguments: String::new(),
        }
    }

    /// Notes when the first text came.
    pub(super) fn note_first(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    fn line(&self, more: More) -> Line {
        let said = match self.api {
            Api::Chat => Said::Message {
                message: OllamaMessage {
                    role: "assistant",
                    content: more.content,
                    thinking: more.thinking,
                    tool_calls: more.calls,
                },
            },
            Api::Generate => Said::Text {
                response: more.content,
                thinking: more.thinking,
            },
        };
        Line {
            model: self.model.clone(),
            created_at: rfc3339(SystemTime::now()),
            said,
            done: false,
            done_reason: None,
            logprobs: None,
            timing: None,
        }
    }

    /// The answer to a request without a prompt.
    pub(super) fn loaded(&self) -> Line {
        Line {
            done: true,
            done_reason: Some("load"),
            ..self.line(More::default())
        }
    }

    /// The answer without streaming.
    pub(super) fn response(mut self, delta: Delta) -> Line {
        let mut more = More::default();
        let end = self.end(&delta);
        let logprobs = self.logprobs(&delta);
        self.add(delta, &mut more);
        Line {
            logprobs,
            ..self.ended(more, end)
        }
    }

    fn logprobs(&self, delta: &Delta) -> Option<Vec<ChatLogprob>> {
        let view = self.view.as_ref()?;
        let shown = ChatLogprobs::new(view, &delta.logprobs).content;
        (!shown.is_empty()).then_some(shown)
    }

    /// Why it ended, and how long it took.
    fn end(&self, delta: &Delta) -> (&'static str, Timing) {
        let total = self.started.elapsed();
        let first = self.first.unwrap_or(self.started) - self.started;
        let is_cut = delta
            .finish
            .as_ref()
            .is_some_and(|finish| finish.reason == FinishReason::Length);
        let reason = if is_cut { "length" } else { "stop" };
        let timing = Timing {
            total_duration: nanoseconds(total),
            load_duration: 0,
            prompt_eval_count: self.num_prompt_tokens,
            prompt_eval_duration: nanoseconds(first),
            eval_count: delta.num_tokens,
            eval_duration: nanoseconds(total.saturating_sub(first)),
        };
        (reason, timing)
    }

    fn ended(&self, more: More, (reason, timing): (&'static str, Timing)) -> Line {
        Line {
            done: true,
            done_reason: Some(reason),
            timing: Some(timing),
            ..self.line(more)
        }
    }

    fn add(&mut self, delta: Delta, more: &mut More) {
        // Without a template the text has no parts.
        let text = (!delta.text.is_empty()).then_some(Part::Content(delta.text));
        for part in text.into_iter().chain(delta.parts) {
            let part = self.space.take(part);
            match part.map(|part| self.joiner.take(part)) {
                Some(Part::Reasoning(text)) if self.shows_thinking => {
                    more.thinking.push_str(&text);
                }
                None | Some(Part::Reasoning(_)) => {}
                Some(Part::Content(text)) => more.content.push_str(&text),
                Some(Part::Call { index, id, name }) => {
                    self.call = Some(OllamaCall {
                        id,
                        function: OllamaFunction {
                            index,
                            name,
                            arguments: Map::new(),
                        },
                    });
                }
                Some(Part::Arguments { text, .. }) => self.arguments.push_str(&text),
                Some(Part::CallEnd { .. }) => {
                    let arguments = arguments_object(&std::mem::take(&mut self.arguments));
                    more.calls.extend(self.call.take().map(|mut call| {
                        call.function.arguments = arguments;
                        call
                    }));
                }
            }
        }
    }
}

/// Structs of texts and numbers always serialize.
fn value(line: &Line) -> Value {
    serde_json::to_value(line).unwrap_or_default()
}

impl EventFormat for LineFormat {
    const END: Option<&'static str> = None;
    const IS_LINES: bool = true;

    fn first(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn delta(&mut self, _: usize, delta: Delta) -> Vec<Value> {
        self.note_first();
        let end = delta.finish.is_some().then(|| self.end(&delta));
        let logprobs = self.logprobs(&delta);
        let mut more = More::default();
        self.add(delta, &mut more);
        let is_empty = more.content.is_empty() && more.thinking.is_empty() && more.calls.is_empty();
        let line = (!is_empty || logprobs.is_some()).then(|| Line {
            logprobs,
            ..self.line(more)
        });
        let last = end.map(|end| self.ended(More::default(), end));
        line.iter().chain(&last).map(value).collect()
    }

    fn last(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn error(&mut self, error: &ApiError) -> Vec<Value> {
        vec![ErrorShape::Ollama.body(error)]
    }
}

#[cfg(test)]
mod tests;
