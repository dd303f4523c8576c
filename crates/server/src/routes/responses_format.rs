//! Answers and events of `/v1/responses`.

use std::sync::Arc;

use serde_json::Value;

use crate::answer::Part;
use crate::engine::{FinishReason, TokenLogprobs};
use crate::error::ApiError;
use crate::postprocess::Delta;
use crate::protocol::logprobs::{ChatLogprobs, TokenView};
use crate::protocol::responses::output::Output;
use crate::protocol::responses::response::{
    IncompleteDetails, ResponseError, ResponseObject, ResponseUsage, Status,
};
use crate::state::{AppState, unix_time};
use crate::stored_responses::{Input, Turn};
use crate::stream::EventFormat;

/// The shape of a response.
pub(super) struct ResponsesFormat {
    /// The response so far.
    pub(super) response: ResponseObject,
    /// Its output so far.
    pub(super) output: Output,
    /// Tokens of the prompt.
    pub(super) num_prompt_tokens: usize,
    /// How tokens are shown.
    pub(super) view: TokenView,
    /// Whether to show log-probabilities.
    pub(super) logprobs: bool,
    /// Whether to show reasoning.
    pub(super) shows_reasoning: bool,
    /// What is kept with the response.
    pub(super) kept: Option<Kept>,
}

/// What is kept with a response.
pub(super) struct Kept {
    /// Where.
    pub(super) state: AppState,
    /// The turns before.
    pub(super) previous: Option<Arc<Turn>>,
    /// Items of the input.
    pub(super) input: Input,
}

impl ResponsesFormat {
    /// Takes what is new.
    pub(super) fn add(&mut self, delta: Delta) {
        for part in delta.parts {
            let mut logprobs = match &part {
                Part::Reasoning(_) if !self.shows_reasoning => continue,
                Part::Content(text) if self.logprobs => self.logprobs(text, &delta.logprobs),
                _ => Vec::new(),
            };
            self.output.push(part, &mut logprobs);
        }
        self.response.usage = Some(ResponseUsage::new(
            self.num_prompt_tokens,
            delta.num_cached_tokens,
            delta.num_tokens,
            delta.num_reasoning_tokens,
        ));
        if let Some(finish) = delta.finish {
            match finish.reason {
                FinishReason::Stop => self.finish(Status::Completed),
                FinishReason::Length => {
                    let reason = "max_output_tokens";
                    self.response.incomplete_details = Some(IncompleteDetails { reason });
                    self.finish(Status::Incomplete);
                }
            }
        }
    }

    /// Log-probabilities of the tokens that a text is made of; others are of tags.
    fn logprobs(&self, text: &str, tokens: &[TokenLogprobs]) -> Vec<Value> {
        let ids = tokens.iter().map(|token| token.id);
        let tokenizer = &self.view.tokenizer;
        let range = tokens_of(text, ids.map(|id| tokenizer.token_bytes(id)));
        let shown = ChatLogprobs::new(&self.view, &tokens[range]).content;
        let shown = shown.iter().map(serde_json::to_value);
        shown.filter_map(Result::ok).collect()
    }

    fn finish(&mut self, status: Status) {
        let response = &mut self.response;
        response.status = status;
        response.output = self.output.finish(status == Status::Completed);
        let event = match status {
            Status::Completed => {
                response.completed_at = Some(unix_time());
                "response.completed"
            }
            Status::Failed => "response.failed",
            _ => "response.incomplete",
        };
        let response = response.to_value();
        if let Some(Kept {
            state,
            previous,
            input,
        }) = self.kept.take()
        {
            let (id, store) = (&self.response.id, state.stored_responses());
            store.insert(id, previous, input, response.to_string());
        }
        self.output.tell(event, &response);
    }
}

impl EventFormat for ResponsesFormat {
    const END: Option<&'static str> = None;

    fn first(&mut self) -> Vec<Value> {
        let response = self.response.to_value();
        self.output.tell("response.created", &response);
        self.output.tell("response.in_progress", &response);
        self.output.take_events()
    }

    fn delta(&mut self, _: usize, delta: Delta) -> Vec<Value> {
        self.add(delta);
        self.output.take_events()
    }

    fn last(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn error(&mut self, error: &ApiError) -> Vec<Value> {
        self.response.error = Some(ResponseError {
            code: "server_error",
            message: error.message.clone(),
        });
        self.finish(Status::Failed);
        self.output.take_events()
    }

    fn name<'a>(&self, event: &'a Value) -> Option<&'a str> {
        event.get("type")?.as_str()
    }
}

/// The tokens among those of a longer text that a text is made of; all if they don't have it.
fn tokens_of(text: &str, tokens: impl Iterator<Item = Vec<u8>>) -> std::ops::Range<usize> {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for token in tokens {
        bytes.extend(token);
        ends.push(bytes.len());
    }
    let text = text.as_bytes();
    let mut windows = bytes.windows(text.len().max(1));
    match windows.position(|window| window == text) {
        Some(start) => {
            let end = start + text.len();
            ends.partition_point(|&of_token| of_token <= start)
                ..ends.partition_point(|&of_token| of_token < end) + 1
        }
        None => 0..ends.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::tokens_of;

    #[test]
    fn tokens_are_those_of_the_text() {
        let of = |text: &str, tokens: &[&str]| {
            tokens_of(text, tokens.iter().map(|token| token.as_bytes().to_vec()))
        };
        assert_eq!(of("ab", &["a", "b"]), 0..2);
        assert_eq!(of("ab", &["</think>", "a", "b", "<end>"]), 1..3);
        assert_eq!(of("bc", &["ab", "cd", "e"]), 0..2);
        assert_eq!(of("c", &["ab", "cd", "e"]), 1..2);
        assert_eq!(of("x", &["ab", "cd"]), 0..2);
        assert_eq!(of("x", &[]), 0..0);
    }
}
