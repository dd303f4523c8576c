//! What the engine thread knows of a sequence besides its blocks: its request, its sampler, and where its tokens go.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use kv_paging::{Chunk, Sampled};
use model_qwen::sampling::Logprobs;
use model_qwen::{Ahead, ChoiceRow, Constraint, Draw, SampledToken, Sampler, Want};

use super::adapters::AdapterUse;
use super::error::SequenceError;
use super::launched::LaunchedChunk;
use super::pooler::Pooler;
use super::receiver::{OutputSink, QueuePermit};
use super::request::{EngineOutput, FinishReason, GenerateRequest, TokenLogprobs};
use super::request_metrics::{Ended, RequestMetrics, SequenceLengths, SequenceTimes};
use super::speculation::drafter::Drafter;
use crate::traces::{RequestTrace, SequenceSpan};

/// What the engine remembers of a sequence besides its blocks.
pub(super) struct ActiveSequence {
    pub(super) request: GenerateRequest,
    /// Before the sink, so that a span is complete before its sequence counts as done.
    pub(super) trace: Option<Arc<RequestTrace>>,
    pub(super) sink: OutputSink,
    /// Held until the sequence is first scheduled.
    pub(super) permit: Option<QueuePermit>,
    pub(super) sampler: Sampler,
    pub(super) adapter: Option<AdapterUse>,
    pub(super) times: SequenceTimes,
    pub(super) num_generated: usize,
    /// Guesses its next tokens, from its first one on; `None` without speculative decoding.
    pub(super) drafter: Option<Drafter>,
    /// Its sampler after each token of its draft.
    pub(super) samplers: Vec<Sampler>,
    /// Whether its next steps may have drafts, so that none is launched before its tokens are known.
    pub(super) holds_back: bool,
    /// Why it can't go on.
    pub(super) failure: Option<SequenceError>,
    /// Of a sequence that wants a vector.
    pub(super) pooler: Option<Pooler>,
    /// Log-probabilities of the prompt as far as computed; `None` once sent or never asked for.
    pub(super) prompt_logprobs: Option<Vec<Option<TokenLogprobs>>>,
}

/// The end of a sequence.
pub(super) struct SequenceEnd {
    /// What its client is told.
    pub(super) output: EngineOutput,
    /// How it is counted.
    pub(super) ended: Ended,
}

impl ActiveSequence {
    /// Whether it was scheduled at least once.
    pub(super) fn has_started(&self) -> bool {
        self.permit.is_none()
    }

    /// Adds the rows of logits that a chunk needs: those that predict tokens of the prompt, then the one that gives the next token.
    pub(super) fn add_rows<'a>(
        &'a mut self,
        launched: LaunchedChunk<'_>,
        spare: &mut Vec<Sampler>,
        rows: &mut Vec<ChoiceRow<'a>>,
    ) {
        if self.pooler.is_some() {
            return;
        }
        let LaunchedChunk { chunk, first_row } = launched;
        let num_top = self.request.prompt_logprobs.unwrap_or(0);
        rows.extend(self.unscored_prompt(chunk).map(|position| ChoiceRow {
            row: first_row + position - 1 - chunk.start,
            want: Want::Score {
                id: self.request.prompt[position],
                num_top,
                mode: self.request.sampling.logprobs_mode,
            },
        }));
        if chunk.samples {
            self.add_token_rows(launched, spare, rows);
        }
    }

    /// The rows of a chunk whose hidden states are needed, those of [`ActiveSequence::add_rows`] among them; `None` for all rows.
    pub(super) fn rows_to_compute(&self, chunk: &Chunk) -> Option<Range<usize>> {
        if self.pooler.is_some() {
            return None;
        }
        let end = chunk.num_tokens();
        let sampled = match chunk.samples {
            true => chunk.tokens.len() - 1,
            false => end,
        };
        let scored = self.unscored_prompt(chunk);
        let first = match scored.is_empty() {
            true => sampled,
            false => sampled.min(scored.start - 1 - chunk.start),
        };
        Some(first..end)
    }

    /// How the device itself can draw the token that comes after those `ahead`.
    pub(super) fn draw(&mut self, ahead: Ahead<'_>) -> Option<Draw> {
        let banned = banned(&self.request, self.num_generated + ahead.num());
        self.sampler.draw(ahead, banned)
    }

    /// The slot of its adapter.
    pub(super) fn adapter_slot(&self) -> Option<usize> {
        self.adapter.map(|adapter| adapter.slot)
    }

    /// How the device can draw the token after the next one, if one will follow unless that is a stop token.
    pub(super) fn draw_next(&mut self) -> Option<Draw> {
        let goes_on = self.num_generated + 1 < self.request.max_tokens;
        goes_on.then(|| self.draw(Ahead::Drawn)).flatten()
    }

    /// How it ends with `token`, its last one. A vector ends with its prompt, whatever the token.
    pub(super) fn end(&self, token: u32) -> SequenceEnd {
        let (output, ended) = match &self.failure {
            Some(error) => (EngineOutput::Failed(error.clone()), Ended::Error),
            None if self.pooler.is_some() || self.stops(token) => {
                let reason = FinishReason::Stop;
                (EngineOutput::Finished { reason }, Ended::Stop)
            }
            None => {
                let reason = FinishReason::Length;
                (EngineOutput::Finished { reason }, Ended::Length)
            }
        };
        SequenceEnd { output, ended }
    }

    /// Takes note of how it has ended: in its trace and in what the engine counts.
    pub(super) fn record(&self, how: Ended, metrics: &RequestMetrics) {
        if let Some(trace) = &self.trace {
            trace.add(self.span());
        }
        let lengths = SequenceLengths {
            num_prompt: self.request.prompt.len(),
            num_generated: self.num_generated,
            max_tokens: (self.pooler.is_none()).then_some(self.request.max_tokens),
        };
        metrics.record(how, lengths, &self.times);
    }

    /// What its trace shows of it.
    fn span(&self) -> SequenceSpan {
        let (request, times) = (&self.request, &self.times);
        SequenceSpan {
            submitted: times.submitted,
            scheduled: times.scheduled,
            first_token: times.first_token,
            last_token: times.last_token,
            num_prompt_tokens: request.prompt.len(),
            num_tokens: self.num_generated,
            max_tokens: request.max_tokens,
            temperature: request.sampling.temperature,
            top_p: request.sampling.top_p,
            adapter: request.adapter.clone(),
        }
    }

    /// Whether `id`, its last token, ends it with reason `Stop`.
    fn stops(&self, id: u32) -> bool {
        let constraint = self.sampler.constraint();
        self.request.stop_token_ids.contains(&id) || constraint.is_some_and(Constraint::is_finished)
    }

    /// Sends the sequence's next token, and before the first one the log-probabilities of the prompt. `is_last` says whether there
    /// is no room for a further one.
    pub(super) fn send(
        &mut self,
        chunk: &Chunk,
        token: SampledToken,
        is_last: bool,
        now: Instant,
    ) -> Sampled {
        let constraint = self.sampler.constraint();
        if let Some(reason) = constraint.and_then(Constraint::error) {
            self.failure = Some(SequenceError::Grammar(reason.to_owned()));
            return Sampled {
                id: chunk.id,
                token: token.id,
                finished: true,
            };
        }
        if let Some(scores) = self.prompt_logprobs.take() {
            self.sink.send(EngineOutput::PromptLogprobs(scores));
        }
        let id = token.id;
        self.num_generated += 1;
        if let Some(drafter) = &mut self.drafter {
            drafter.observe(id);
        }
        self.times.token(now);
        // A client that has gone away says so by a command, which also tells why.
        self.sink.send(EngineOutput::Token {
            id,
            logprobs: token.logprobs.map(|logprobs| token_logprobs(id, logprobs)),
            num_cached_tokens: chunk.num_cached,
        });
        let finished = self.stops(id) || self.num_generated >= self.request.max_tokens || is_last;
        Sampled {
            id: chunk.id,
            token: id,
            finished,
        }
    }

    /// Positions of the prompt that `chunk` predicts and that have no log-probability yet.
    fn unscored_prompt(&self, chunk: &Chunk) -> Range<usize> {
        let Some(scores) = &self.prompt_logprobs else {
            return 0..0;
        };
        let end = (chunk.start + chunk.tokens.len() + 1).min(self.request.prompt.len());
        // After a preemption the chunks start over; what was scored before stays.
        scores.len().max(chunk.start + 1)..end
    }

    /// Takes the log-probabilities of the prompt's next token.
    pub(super) fn take_score(&mut self, score: Logprobs) {
        if let Some(scores) = &mut self.prompt_logprobs {
            let id = self.request.prompt[scores.len()];
            scores.push(Some(token_logprobs(id, score)));
        }
    }
}

fn token_logprobs(id: u32, logprobs: Logprobs) -> TokenLogprobs {
    TokenLogprobs {
        id,
        logprob: logprobs.logprob,
        top: logprobs.top,
    }
}

/// Tokens that may not come yet.
pub(super) fn banned(request: &GenerateRequest, num_generated: usize) -> &[u32] {
    match num_generated < request.min_tokens {
        true => &request.stop_token_ids,
        false => &[],
    }
}
