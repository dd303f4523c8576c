//! Answers and events of `/v1/completions`.

use serde_json::Value;

use crate::postprocess::Delta;
use crate::protocol::common::StreamOptions;
use crate::protocol::completions::{CompletionChoice, CompletionResponse};
use crate::protocol::logprobs::{CompletionLogprobs, TokenView, prompt_logprobs};
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
    /// `system_fingerprint`.
    pub(super) fingerprint: String,
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
    /// How tokens are shown.
    pub(super) view: TokenView,
    /// Alternatives per token, if log-probabilities were asked for.
    pub(super) num_logprobs: Option<usize>,
    /// Alternatives per token of the prompt, if its log-probabilities were asked for.
    pub(super) num_prompt_logprobs: Option<usize>,
    /// Whether to show token ids.
    pub(super) returns_token_ids: bool,
    /// Per choice, whether the ids of the prompt were sent.
    pub(super) sent_prompt: Vec<bool>,
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
        let logprobs = self.num_logprobs.map(|num_top| {
            let mut logprobs = CompletionLogprobs::default();
            let echoed = delta.prompt_logprobs.iter().flatten();
            let echoed = echoed.filter(|_| self.echoes.is_some()).enumerate();
            for (i, entry) in echoed {
                let id = self.prompts[prompt].get(i).copied().unwrap_or_default();
                logprobs.push(&self.view, id, entry.as_ref(), num_top, offset);
            }
            for entry in &delta.logprobs {
                logprobs.push(&self.view, entry.id, Some(entry), num_top, offset);
            }
            logprobs
        });
        let scores = self.num_prompt_logprobs.zip(delta.prompt_logprobs);
        let (finish_reason, stop_reason) = delta.finish.map_or((None, Value::Null), |f| {
            (Some(f.reason.as_str()), f.stop_reason)
        });
        let sends_prompt =
            self.returns_token_ids && !std::mem::replace(&mut self.sent_prompt[index], true);
        CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason,
            stop_reason,
            token_ids: self.returns_token_ids.then_some(delta.token_ids),
            prompt_token_ids: sends_prompt.then(|| self.prompts[prompt].clone()),
            prompt_logprobs: scores
                .map(|(num_top, scores)| prompt_logprobs(&self.view, &scores, num_top)),
        }
    }

    /// Whether the prompt's text is sent at once, as nothing has to be computed for it.
    fn echoes_at_once(&self) -> bool {
        self.echoes.is_some() && self.num_logprobs.is_none() && self.num_prompt_logprobs.is_none()
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
            system_fingerprint: &self.fingerprint,
            usage,
        };
        // Strings, numbers and lists of them always serialize.
        serde_json::to_value(body).unwrap_or_default()
    }

    fn event(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Value {
        let choice = choices.first().map(|choice| choice.index);
        let usage = self.options.shown(usage, &self.counts, choice);
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
