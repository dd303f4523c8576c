//! What the engine thread knows of a sequence besides its blocks: its request, its sampler, and where its tokens go.

use std::ops::Range;

use kv_paging::{Chunk, Sampled};
#[cfg(feature = "gpu")]
use model_qwen::Draw;
use model_qwen::{Sampler, TopLogits, logprobs_of};

use super::receiver::{OutputSink, QueuePermit};
use super::request::{EngineOutput, GenerateRequest, TokenLogprobs};

/// Tokens that the host draws after one that the device couldn't, since that step was in vain.
#[cfg(feature = "gpu")]
const UNDRAWN: usize = 64;

/// What the engine remembers of a sequence besides its blocks.
pub(super) struct ActiveSequence {
    pub(super) request: GenerateRequest,
    pub(super) sink: OutputSink,
    /// Held until the sequence is first scheduled.
    pub(super) permit: Option<QueuePermit>,
    pub(super) sampler: Sampler,
    pub(super) slot: Option<usize>,
    pub(super) num_generated: usize,
    /// Tokens after which the device draws them itself.
    #[cfg(feature = "gpu")]
    pub(super) draws_from: usize,
    /// Log-probabilities of the prompt as far as computed; `None` once sent or never asked for.
    pub(super) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

impl ActiveSequence {
    /// Chooses the sequence's next token and sends it.
    pub(super) fn sample(&mut self, chunk: &Chunk, logits: &mut [f32]) -> Sampled {
        if let Some(scores) = self.prompt_logprobs.take() {
            self.sink.send(EngineOutput::PromptLogprobs(scores));
        }
        let banned = banned(&self.request, self.num_generated);
        let token = self.sampler.sample(logits, banned);
        let id = token.id;
        let logprobs = token.logprobs.map(|logprobs| TokenLogprobs {
            id,
            logprob: logprobs.logprob,
            top: logprobs.top,
        });
        self.send(chunk, id, logprobs)
    }

    /// Chooses the sequence's next token from the largest logits, if these decide, and sends it.
    pub(super) fn sample_top(&mut self, chunk: &Chunk, top: &TopLogits) -> Option<Sampled> {
        if self.prompt_logprobs.is_some() {
            return None;
        }
        let banned = banned(&self.request, self.num_generated);
        let token = self.sampler.sample_top(top, banned)?;
        Some(self.send(chunk, token.id, None))
    }

    /// How the device itself can draw the token that comes after `ahead` others that are not known yet.
    #[cfg(feature = "gpu")]
    pub(super) fn draw(&mut self, ahead: usize) -> Option<Draw> {
        let may_stop = self.num_generated >= self.request.min_tokens;
        let is_free = self.prompt_logprobs.is_none()
            && (may_stop || self.request.stop_token_ids.is_empty())
            && self.num_generated >= self.draws_from;
        is_free.then(|| self.sampler.draw(ahead)).flatten()
    }

    /// How the device can draw the token after the next one, if one will follow unless that is a stop token.
    #[cfg(feature = "gpu")]
    pub(super) fn draw_next(&mut self) -> Option<Draw> {
        let goes_on = self.num_generated + 1 < self.request.max_tokens;
        goes_on.then(|| self.draw(1)).flatten()
    }

    /// Takes a token that the device has drawn and sends it. `None` if it couldn't draw one: then the next ones come from the
    /// logits.
    #[cfg(feature = "gpu")]
    pub(super) fn take(&mut self, chunk: &Chunk, id: Option<u32>) -> Option<Sampled> {
        let Some(id) = id else {
            self.draws_from = self.num_generated + UNDRAWN;
            return None;
        };
        self.sampler.observe(id);
        Some(self.send(chunk, id, None))
    }

    /// Sends the sequence's next token.
    fn send(&mut self, chunk: &Chunk, id: u32, logprobs: Option<TokenLogprobs>) -> Sampled {
        self.num_generated += 1;
        let delivered = self.sink.send(EngineOutput::Token {
            id,
            logprobs,
            num_cached_tokens: chunk.num_cached,
        });
        let finished = self.request.stop_token_ids.contains(&id)
            || self.num_generated >= self.request.max_tokens
            || chunk.reaches_max_len
            || !delivered;
        Sampled {
            id: chunk.id,
            token: id,
            finished,
        }
    }

    /// Positions of the prompt that `chunk` predicts and that have no log-probability yet.
    pub(super) fn unscored_prompt(&self, chunk: &Chunk) -> Range<usize> {
        let Some(scores) = &self.prompt_logprobs else {
            return 0..0;
        };
        let end = (chunk.start + chunk.tokens.len() + 1).min(self.request.prompt.len());
        // After a preemption the chunks start over; what was scored before stays.
        scores.len().max(chunk.start + 1)..end
    }

    /// Notes the log-probability of the prompt's token at `position`.
    pub(super) fn score_prompt(&mut self, position: usize, logits: &mut [f32]) {
        let (id, num_top) = (self.request.prompt[position], self.request.prompt_logprobs);
        let scored = logprobs_of(logits, id, num_top.unwrap_or(0));
        if let Some(scores) = &mut self.prompt_logprobs {
            scores.push(Some(TokenLogprobs {
                id,
                logprob: scored.logprob,
                top: scored.top,
            }));
        }
    }
}

/// Tokens that may not come yet.
fn banned(request: &GenerateRequest, num_generated: usize) -> &[u32] {
    match num_generated < request.min_tokens {
        true => &request.stop_token_ids,
        false => &[],
    }
}
