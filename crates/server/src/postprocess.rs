//! From tokens to text: incremental detokenization, stop strings, log-probabilities held with their text.
//!
//! Text that could be the beginning of a stop string is held back until the next tokens decide. Only whole characters are
//! ever seen, since the detokenizer keeps incomplete ones.

use std::mem;

use model_qwen::{Detokenizer, Tokenizer};
use serde_json::Value;

use crate::answer::{self, Part};
use crate::engine::{FinishReason, TokenLogprobs};
use crate::protocol::sampling::TextOptions;

/// What is new of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// New text; empty where it is in `parts`.
    pub text: String,
    /// New parts of an answer, where these are asked for.
    pub parts: Vec<Part>,
    /// Tokens of reasoning so far.
    pub num_reasoning_tokens: usize,
    /// The tokens since the last delta.
    pub token_ids: Vec<u32>,
    /// Log-probabilities of the tokens since the last delta.
    pub logprobs: Vec<TokenLogprobs>,
    /// Log-probabilities of the prompt, once, before any text.
    pub prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
    /// Tokens generated so far.
    pub num_tokens: usize,
    /// Prompt tokens that came from the prefix cache.
    pub num_cached_tokens: usize,
    /// Present in the last delta.
    pub finish: Option<Finish>,
}

impl Delta {
    /// Adds what came next.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        for part in next.parts {
            answer::push(&mut self.parts, part);
        }
        self.token_ids.extend(next.token_ids);
        self.logprobs.extend(next.logprobs);
        if self.prompt_logprobs.is_none() {
            self.prompt_logprobs = next.prompt_logprobs;
        }
        self.num_tokens = next.num_tokens;
        self.num_cached_tokens = next.num_cached_tokens;
        self.num_reasoning_tokens = next.num_reasoning_tokens;
        self.finish = next.finish;
    }
}

/// How a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// What ended it.
    pub reason: FinishReason,
    /// The stop string or token; null for the end-of-sequence token and for `length`.
    pub stop_reason: Value,
}

/// The text of one choice as it grows.
#[derive(Debug)]
pub struct Postprocessor {
    detokenizer: Detokenizer,
    options: TextOptions,
    /// Text that was not sent yet.
    pending: String,
    /// Bytes of `pending` that belong to the first `min_tokens` tokens: a stop string must end behind them.
    protected: usize,
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    num_tokens: usize,
    last_stop_token: Option<u32>,
}

impl Postprocessor {
    /// A choice without tokens.
    pub fn new(tokenizer: Tokenizer, options: TextOptions) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, options.skip_special_tokens),
            options,
            pending: String::new(),
            protected: 0,
            token_ids: Vec::new(),
            logprobs: Vec::new(),
            num_tokens: 0,
            last_stop_token: None,
        }
    }

    /// Tokens so far.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Adds a token. The result is `None` while there is nothing to send; it has `finish` if a stop string is complete.
    pub fn push(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Option<Delta> {
        self.num_tokens += 1;
        self.token_ids.push(id);
        self.logprobs.extend(logprobs);
        let special = self.options.special_stops.iter();
        let special = special.filter(|_| self.num_tokens > self.options.min_tokens);
        if let Some((_, stop)) = special.into_iter().find(|(special, _)| *special == id) {
            let stop = stop.clone();
            let rest = self.detokenizer.finish();
            self.pending.push_str(&rest);
            if self.options.include_stop {
                self.pending.push_str(&stop);
            }
            let finish = Finish {
                reason: FinishReason::Stop,
                stop_reason: Value::String(stop),
            };
            return Some(self.take(self.pending.len(), Some(finish)));
        }
        self.last_stop_token = self.options.stop_token_ids.contains(&id).then_some(id);
        if self.last_stop_token.is_none() || self.options.include_stop {
            let mut kept = self.options.kept_special.iter();
            let text = match kept.find(|(kept, _)| *kept == id) {
                Some((_, tag)) => self.detokenizer.finish() + tag,
                None => self.detokenizer.push(id),
            };
            self.pending.push_str(&text);
        }
        if self.num_tokens <= self.options.min_tokens {
            self.protected = self.pending.len();
        }
        if let Some((range, stop)) = self.find_stop() {
            self.pending.truncate(if self.options.include_stop {
                range.end
            } else {
                range.start
            });
            let finish = Finish {
                reason: FinishReason::Stop,
                stop_reason: Value::String(stop),
            };
            return Some(self.take(self.pending.len(), Some(finish)));
        }
        let ready = self.pending.len() - self.held_back();
        (ready > 0).then(|| self.take(ready, None))
    }

    /// Ends the text for the engine's reason and gives the rest of it.
    pub fn finish(&mut self, reason: FinishReason) -> Delta {
        let is_own = |id: &u32| !self.options.eos_token_ids.contains(id);
        let stop_reason = match reason {
            FinishReason::Stop => self.last_stop_token.filter(is_own),
            FinishReason::Length => None,
        };
        let rest = self.detokenizer.finish();
        self.pending.push_str(&rest);
        let finish = Finish {
            reason,
            stop_reason: stop_reason.map_or(Value::Null, Value::from),
        };
        self.take(self.pending.len(), Some(finish))
    }

    /// Sends the first `len` bytes of the pending text.
    fn take(&mut self, len: usize, finish: Option<Finish>) -> Delta {
        let rest = self.pending.split_off(len);
        self.protected = self.protected.saturating_sub(len);
        Delta {
            text: mem::replace(&mut self.pending, rest),
            token_ids: mem::take(&mut self.token_ids),
            logprobs: mem::take(&mut self.logprobs),
            num_tokens: self.num_tokens,
            finish,
            ..Delta::default()
        }
    }

    /// The stop string that begins first in the pending text, if it ends behind the protected part.
    fn find_stop(&self) -> Option<(std::ops::Range<usize>, String)> {
        if self.pending.len() <= self.protected {
            return None;
        }
        let matches = self.options.stop.iter().filter_map(|stop| {
            let mut from = (self.protected + 1).saturating_sub(stop.len());
            while !self.pending.is_char_boundary(from) {
                from += 1;
            }
            let start = from + self.pending[from..].find(stop.as_str())?;
            Some((start..start + stop.len(), stop))
        });
        matches
            .min_by_key(|(range, _)| range.start)
            .map(|(range, stop)| (range, stop.clone()))
    }

    /// Length of the longest end of the pending text that a stop string begins with.
    fn held_back(&self) -> usize {
        let pending = &self.pending;
        let begins_stop = |tail: &str| {
            self.options
                .stop
                .iter()
                .any(|stop| stop.len() > tail.len() && stop.starts_with(tail))
        };
        let starts = pending.char_indices().map(|(start, _)| start);
        let longest = self.options.stop.iter().map(String::len).max().unwrap_or(0);
        let mut candidates = starts.filter(|start| pending.len() - start < longest);
        candidates
            .find(|&start| begins_stop(&pending[start..]))
            .map_or(0, |start| pending.len() - start)
    }
}
