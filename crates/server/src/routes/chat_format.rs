//! Answers and events of `/v1/chat/completions`.

use serde_json::Value;

use super::text_joiner::TextJoiner;
use crate::answer::Part;
use crate::engine::FinishReason;
use crate::postprocess::Delta;
use crate::protocol::chat_answer::{
    AssistantMessage, CalledFunction, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta,
    ChatResponse, MoreArguments, Reasoning, ToolCall, ToolCallDelta, ToolCallPart,
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
    /// Whether to show reasoning.
    pub(super) shows_reasoning: bool,
    /// Whether the request names the tool to call.
    pub(super) names_tool: bool,
    /// Per choice, whether it has called a tool.
    pub(super) called: Vec<bool>,
    /// Per choice, what joins its texts.
    pub(super) joiners: Vec<TextJoiner>,
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
            let message = self.message(delta.parts);
            let called = !message.tool_calls.is_empty();
            let (finish_reason, stop_reason) =
                delta.finish.map_or(("stop", Value::Null), |finish| {
                    (self.reason(finish.reason, called), finish.stop_reason)
                });
            ChatChoice {
                index,
                message,
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

    /// The whole message.
    fn message(&self, parts: Vec<Part>) -> AssistantMessage {
        let mut content = self.echo.clone().unwrap_or_default();
        let mut reasoning = String::new();
        let mut tool_calls = Vec::<ToolCall>::new();
        let mut has_reasoning = false;
        let mut joiner = TextJoiner::default();
        for part in parts {
            match joiner.take(part) {
                Part::Reasoning(text) => {
                    has_reasoning = true;
                    reasoning.push_str(&text);
                }
                Part::Content(text) => content.push_str(&text),
                Part::Call { id, name, .. } => tool_calls.push(call(id, name)),
                Part::Arguments { index, text } => {
                    if let Some(call) = tool_calls.get_mut(index) {
                        call.function.arguments.push_str(&text);
                    }
                }
                Part::CallEnd { .. } => {}
            }
        }
        let is_silent = content.is_empty() && (has_reasoning || !tool_calls.is_empty());
        AssistantMessage {
            role: self.role.clone(),
            content: (!is_silent).then_some(content),
            reasoning: match has_reasoning && self.shows_reasoning {
                true => reasoning.into(),
                false => Reasoning::default(),
            },
            tool_calls,
        }
    }

    /// Why an answer ended, in OpenAI's words: the call of a tool that the request names is no reason.
    fn reason(&self, reason: FinishReason, called: bool) -> &'static str {
        match reason {
            FinishReason::Stop if called && !self.names_tool => "tool_calls",
            reason => reason.as_str(),
        }
    }

    /// What an event shows of a part.
    fn shown(&self, part: Part) -> Option<ChatDelta> {
        match part {
            Part::Reasoning(text) => self.shows_reasoning.then(|| ChatDelta {
                reasoning: text.into(),
                ..ChatDelta::default()
            }),
            Part::Content(text) => Some(ChatDelta {
                content: Some(text),
                ..ChatDelta::default()
            }),
            Part::Call { index, id, name } => {
                Some(of_call(index, ToolCallPart::Begin(call(id, name))))
            }
            Part::Arguments { index, text } => Some(of_call(
                index,
                ToolCallPart::Arguments {
                    function: MoreArguments { arguments: text },
                },
            )),
            Part::CallEnd { .. } => None,
        }
    }

    fn chunk(
        &self,
        choices: Vec<ChatChunkChoice>,
        usage: Option<Usage>,
        prompt_token_ids: Option<&[u32]>,
    ) -> Value {
        let choice = choices.first().map(|choice| choice.index);
        let usage = self.options.shown(usage, &self.counts, choice);
        let chunk = ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            prompt_token_ids,
            usage,
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
                content: Some(String::new()),
                ..ChatDelta::default()
            };
            let is_first = index == 0 && self.returns_token_ids;
            let prompt = is_first.then_some(self.prompt.as_slice());
            events.push(self.part(index, role, prompt));
        }
        for (index, echo) in (0..self.n).zip(self.echo.iter().cycle()) {
            let echo = ChatDelta {
                content: Some(echo.clone()),
                ..ChatDelta::default()
            };
            events.push(self.part(index, echo, None));
        }
        events
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Vec<Value> {
        self.counts.update(index, &delta);
        let mut logprobs = self
            .logprobs(&delta)
            .filter(|logprobs| !logprobs.content.is_empty());
        let mut token_ids = self.returns_token_ids.then_some(delta.token_ids);
        let is_call = |part: &Part| matches!(part, Part::Call { .. });
        self.called[index] |= delta.parts.iter().any(is_call);
        let joiner = &mut self.joiners[index];
        let parts: Vec<Part> = (delta.parts.into_iter())
            .map(|part| joiner.take(part))
            .collect();
        let parts = parts.into_iter();
        let mut deltas: Vec<ChatDelta> = parts.filter_map(|part| self.shown(part)).collect();
        let has_tokens = logprobs.is_some() || token_ids.is_some();
        // The end of a call comes by itself, as OpenAI's does.
        let ends_alone = deltas.is_empty() || self.called[index];
        if delta.finish.is_some() && ends_alone || deltas.is_empty() && has_tokens {
            deltas.push(ChatDelta {
                content: (!self.called[index]).then(String::new),
                ..ChatDelta::default()
            });
        }
        let num = deltas.len();
        let events = deltas.into_iter().enumerate().map(|(i, shown)| {
            let finish = delta.finish.as_ref().filter(|_| i + 1 == num);
            let choice = ChatChunkChoice {
                index,
                delta: shown,
                // The tokens of all of them.
                logprobs: logprobs.take(),
                finish_reason: finish.map(|f| self.reason(f.reason, self.called[index])),
                stop_reason: finish.map(|f| f.stop_reason.clone()),
                token_ids: token_ids.take(),
            };
            self.chunk(vec![choice], None, None)
        });
        events.collect()
    }

    fn last(&mut self) -> Vec<Value> {
        let wanted = self.options.include_usage.unwrap_or(false);
        let usage = || self.chunk(Vec::new(), Some(self.counts.usage()), None);
        wanted.then(usage).into_iter().collect()
    }
}

/// A call without arguments.
fn call(id: String, name: String) -> ToolCall {
    ToolCall {
        id,
        r#type: "function",
        function: CalledFunction {
            name,
            arguments: String::new(),
        },
    }
}

fn of_call(index: usize, part: ToolCallPart) -> ChatDelta {
    ChatDelta {
        tool_calls: vec![ToolCallDelta { index, part }],
        ..ChatDelta::default()
    }
}
