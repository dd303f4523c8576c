//! Answers and events of `/v1/completions`.

use serde_json::Value;

use crate::postprocess::Delta;
use crate::protocol::common::StreamOptions;
use crate::protocol::completions::{CompletionChoice, CompletionResponse};
use crate::protocol::logprobs::{CompletionLogprobs, TokenView};
use crate::protocol::usage::Usage;
use crate::stream::{EventFormat, TokenCounts};

/// The shape of completion answers.
pub(super) struct CompletionFormat {
    /// `cmpl-…`.
    pub(super) id: String,
    /// Unix seconds.
    pub(super) created: u64,
    /// The name the request used.
    pub(super) model: String,
    /// Tokens so far.
    pub(super) counts: TokenCounts,
    /// What a stream shows of them.
    pub(super) options: StreamOptions,
    /// Choices per prompt.
    pub(super) n: usize,
    /// Per choice, how many characters were sent.
    pub(super) offsets: Vec<usize>,
    /// What `echo` repeats, per prompt.
    pub(super) echoes: Option<Vec<String>>,
    /// Token ids, per prompt.
    pub(super) prompts: Vec<Vec<u32>>,
    /// How to show log-probabilities, if they were asked for.
    pub(super) logprobs: Option<TokenView>,
}

impl CompletionFormat {
    /// The delta as a choice. The prompt's log-probabilities come first, so a choice that has them begins with the prompt.
    fn choice(&mut self, index: usize, delta: Delta) -> CompletionChoice {
        self.counts.update(index, &delta);
        let offset = &mut self.offsets[index];
        let prompt = index / self.n;
        let mut text = String::new();
        if let (Some(echoes), true) = (&self.echoes, delta.prompt_logprobs.is_some()) {
            text.push_str(&echoes[prompt]);
        }
        text.push_str(&delta.text);
        let logprobs = self.logprobs.as_ref().map(|view| {
            let mut logprobs = CompletionLogprobs::default();
            for (i, entry) in delta.prompt_logprobs.iter().flatten().enumerate() {
                let id = self.prompts[prompt].get(i).copied().unwrap_or_default();
                logprobs.push(view, id, entry.as_ref(), offset);
            }
            for entry in &delta.logprobs {
                logprobs.push(view, entry.id, Some(entry), offset);
            }
            logprobs
        });
        let (finish_reason, stop_reason) = delta.finish.map_or((None, Value::Null), |f| {
            (Some(f.reason.as_str()), f.stop_reason)
        });
        CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason,
            stop_reason,
        }
    }

    /// Whether the prompt's text is sent at once, as nothing has to be computed for it.
    fn echoes_at_once(&self) -> bool {
        self.echoes.is_some() && self.logprobs.is_none()
    }

    /// The answer without streaming.
    pub(super) fn response(mut self, deltas: Vec<Delta>) -> Value {
        let at_once = self.echoes_at_once();
        let deltas = deltas.into_iter().enumerate();
        let choices = deltas.map(|(index, delta)| {
            // An empty list of log-probabilities marks the place of the echo.
            let prompt_logprobs = if at_once {
                Some(Vec::new())
            } else {
                delta.prompt_logprobs
            };
            self.choice(
                index,
                Delta {
                    prompt_logprobs,
                    ..delta
                },
            )
        });
        let choices = choices.collect();
        let usage = self.counts.usage();
        self.body(choices, CompletionResponse::usage(usage))
    }

    fn body(&self, choices: Vec<CompletionChoice>, usage: Option<Value>) -> Value {
        let (id, model) = (self.id.as_str(), self.model.as_str());
        let body = CompletionResponse {
            id,
            object: "text_completion",
            created: self.created,
            model,
            choices,
            usage,
        };
        // Strings, numbers and lists of them always serialize.
        serde_json::to_value(body).unwrap_or_default()
    }

    fn event(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Value {
        let continuous = self
            .options
            .continuous_usage_stats
            .unwrap_or(false)
            .then(|| self.counts.usage());
        let usage = match usage.or(continuous) {
            Some(usage) => CompletionResponse::usage(usage),
            None => self
                .options
                .include_usage
                .unwrap_or(false)
                .then_some(Value::Null),
        };
        self.body(choices, usage)
    }
}

impl EventFormat for CompletionFormat {
    fn first(&mut self) -> Vec<Value> {
        if !self.echoes_at_once() {
            return Vec::new();
        }
        let num_choices = self.offsets.len();
        let echo = |index| {
            let delta = Delta {
                prompt_logprobs: Some(Vec::new()),
                ..Delta::default()
            };
            let choice = self.choice(index, delta);
            self.event(vec![choice], None)
        };
        (0..num_choices).map(echo).collect()
    }

    fn delta(&mut self, index: usize, delta: Delta) -> Vec<Value> {
        let choice = self.choice(index, delta);
        vec![self.event(vec![choice], None)]
    }

    fn last(&mut self) -> Vec<Value> {
        let wanted = self.options.include_usage.unwrap_or(false);
        let usage = || self.event(Vec::new(), Some(self.counts.usage()));
        wanted.then(usage).into_iter().collect()
    }
}
