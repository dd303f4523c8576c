//! How a sequence comes to the scheduler, and how it is forgotten.

use kv_paging::{CacheKey, NewSequence};
use model_qwen::Sampler;

use super::active::ActiveSequence;
use super::adapters::AdapterUse;
use super::error::SequenceError;
use super::parked::Parked;
use super::pooler::Pooler;
use super::receiver::{RequestId, Submission};
use super::request::EngineOutput;
use super::request_metrics::{Ended, SequenceTimes};
use super::worker::Worker;

impl Worker {
    /// Takes a sequence in as soon as its adapter is in a slot.
    pub(super) fn submit(&mut self, submission: Submission) {
        let Some(name) = &submission.request.adapter else {
            self.add_sequence(submission, None);
            return;
        };
        match self.adapters.find(name) {
            Some(adapter) => {
                self.parked.push_back(Parked::new(submission, adapter));
                self.place_parked();
            }
            // It was unloaded between the check of the request and now.
            None => {
                self.receiver.request_metrics().count(Ended::Error);
                let sink = &submission.sink;
                sink.send(EngineOutput::Failed(SequenceError::Aborted));
            }
        }
    }

    /// Hands a sequence to the scheduler, or says why not.
    pub(super) fn add_sequence(
        &mut self,
        Submission {
            id,
            mut request,
            pooling,
            sink,
            trace,
            submitted,
            permit,
        }: Submission,
        adapter: Option<AdapterUse>,
    ) {
        let added = self.scheduler.add(NewSequence {
            id,
            prompt: request.prompt.clone(),
            cache_key: CacheKey {
                adapter: adapter.and_then(|adapter| self.adapters.cache_key(adapter.id)),
                salt: request.cache_salt.clone(),
            },
            max_tokens: request.max_tokens,
            skip_reading_prefix_cache: request.prompt_logprobs.is_some()
                || pooling.is_some_and(Pooler::needs_all),
        });
        if let Err(error) = added {
            self.receiver.request_metrics().count(Ended::Error);
            let error = SequenceError::Failed(error.to_string());
            sink.send(EngineOutput::Failed(error));
            return;
        }
        self.prompt_tokens += request.prompt.len() as u64;
        let default_seed = self.seed.map(|seed| seed.wrapping_add(id));
        request.sampling.seed = request.sampling.seed.or(default_seed);
        let vocab_size = self.model.config.vocab_size;
        let sampler = Sampler::new(&request.sampling, &request.prompt, vocab_size);
        let sequence = ActiveSequence {
            sampler: sampler.constrained(request.constraint.take()),
            failure: None,
            prompt_logprobs: request.prompt_logprobs.map(|_| vec![None]),
            pooler: pooling.map(Pooler::new),
            request,
            trace,
            sink,
            permit: Some(permit),
            adapter,
            times: SequenceTimes::new(submitted),
            num_generated: 0,
            drafter: None,
            samplers: Vec::new(),
            holds_back: false,
        };
        self.sequences.insert(id, sequence);
    }

    /// Forgets a sequence, wherever it is.
    pub(super) fn abort(&mut self, id: RequestId, how: Ended) {
        self.scheduler.abort(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            sequence.record(how, self.receiver.request_metrics());
        }
        let num = self.parked.len();
        self.parked.retain(|parked| parked.submission.id != id);
        if self.parked.len() < num {
            self.receiver.request_metrics().count(how);
        }
        self.release_idle_adapters();
    }
}
