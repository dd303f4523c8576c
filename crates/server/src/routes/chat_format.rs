//! Answers and events of `/v1/chat/completions`.

use serde_json::Value;

use crate::postprocess::Delta;
use crate::protocol::chat::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatResponse,
};
use crate::protocol::common::StreamOptions;
use crate::protocol::logprobs::{ChatLogprobs, TokenView, prompt_logprobs};
use crate::protocol::usage::Usage;
use crate::stream::{EventFormat, TokenCounts};

/// The shape of chat answers.
pub(super) struct ChatFormat {
    /// `chatcmpl-…`.
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: u64,
    /// The name the request used.
    pub(super) model: String,
    /// `system_fingerprint`.
    pub(super) fingerprint: String,
    /// Tokens so far.
    pub(super) counts: TokenCounts,
    /// What a stream shows of them.
    pub(super) options: StreamOptions,
    /// Number of choices.
    pub(super) n: usize,
    /// Role of the answers.
    pub(super) role: String,
    /// What the answers begin with.
    pub(super) echo: Option<String>,
    /// How tokens are shown.
    pub(super) view: TokenView,
    /// Whether to show log-probabilities.
    pub(super) logprobs: bool,
    /// Whether to show token ids.
    pub(super) returns_token_ids: bool,
    /// The prompt's tokens.
    pub(super) prompt: Vec<u32>,
    /// Alternatives per token of the prompt.
    pub(super) num_prompt_logprobs: usize,
}

impl ChatFormat {
    fn logprobs(&self, delta: &Delta) -> Option<ChatLogprobs> {
        let new = || ChatLogprobs::new(&self.view, &delta.logprobs);
        self.logprobs.then(new)
    }

    /// The answer without streaming.
    pub(super) fn response(mut self, deltas: Vec<Delta>) -> ChatResponse {
        let scores = deltas
            .iter()
            .find_map(|delta| delta.prompt_logprobs.as_ref());
        let prompt_logprobs =
            scores.map(|scores| prompt_logprobs(&self.view, scores, self.num_prompt_logprobs));
        let choices = deltas.into_iter().enumerate().map(|(index, delta)| {
            self.counts.update(index, &delta);
            let logprobs = self.logprobs(&delta);
            let (finish_reason, stop_reason) = delta.finish.map_or(("stop", Value::Null), |f| {
                (f.reason.as_str(), f.stop_reason)
            });
            let mut content = self.echo.clone().unwrap_or_default();
            content.push_str(&delta.text);
            ChatChoice {
                index,
                message: AssistantMessage {
                    role: self.role.clone(),
                    content,
                },
                logprobs,
                finish_reason,
                stop_reason,
                token_ids: self.returns_token_ids.then_some(delta.token_ids),
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
            system_fingerprint: self.fingerprint,
            usage,
            prompt_token_ids: self.returns_token_ids.then_some(self.prompt),
            prompt_logprobs,
        }
    }

    fn chunk(
        &self,
        choices: Vec<ChatChunkChoice>,
        usage: Option<Usage>,
        prompt_token_ids: Option<&[u32]>,
    ) -> Value {
        let chunk = ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            prompt_token_ids,
            usage: self.options.shown(usage, &self.counts),
        };
        // Strings, numbers and lists of them always serialize.
        serde_json::to_value(chunk).unwrap_or_default()
    }

    /// An event of one choice that doesn't end it.
    fn part(&self, index: usize, delta: ChatDelta, prompt_token_ids: Option<&[u32]>) -> Value {
        let choice = ChatChunkChoice {
            index,
            delta,
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        self.chunk(vec![choice], None, prompt_token_ids)
    }
}

impl EventFormat for ChatFormat {
    fn first(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        for index in 0..self.n {
            let role = ChatDelta {
                role: Some(self.role.clone()),
                content: String::new(),
            };
            let is_first = index == 0 && self.returns_token_ids;
            let prompt = is_first.then_some(self.prompt.as_slice());
            events.push(self.part(index, role, prompt));
        }
        for (index, echo) in (0..self.n).zip(self.echo.iter().cycle()) {
            let echo = ChatDelta {
                role: None,
                content: echo.clone(),
            };
            events.push(self.part(index, echo, None));
        }
        events
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
        let choice = ChatChunkChoice {
            index,
            delta: ChatDelta {
                role: None,
                content: delta.text,
            },
            logprobs,
            finish_reason,
            stop_reason,
            token_ids: self.returns_token_ids.then_some(delta.token_ids),
        };
        vec![self.chunk(vec![choice], None, None)]
    }

    fn last(&mut self) -> Vec<Value> {
        let wanted = self.options.include_usage.unwrap_or(false);
        let usage = || self.chunk(Vec::new(), Some(self.counts.usage()), None);
        wanted.then(usage).into_iter().collect()
    }
}
