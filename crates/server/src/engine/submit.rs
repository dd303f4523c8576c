//! How a sequence comes to the engine thread.

use kv_paging::{CacheKey, NewSequence};
use model_qwen::Sampler;

use super::active::ActiveSequence;
use super::error::SequenceError;
use super::receiver::Submission;
use super::request::EngineOutput;
use super::worker::Worker;

impl Worker {
    /// Takes a sequence in, or says why not.
    pub(super) fn submit(
        &mut self,
        Submission {
            id,
            mut request,
            sink,
            permit,
        }: Submission,
    ) {
        let slot = match &request.adapter {
            None => None,
            Some(name) => match self.adapters.slot(name) {
                Some(slot) => Some(slot),
                // It was unloaded between the check of the request and now.
                None => {
                    sink.send(EngineOutput::Failed(SequenceError::Aborted));
                    return;
                }
            },
        };
        let added = self.scheduler.add(NewSequence {
            id,
            prompt: request.prompt.clone(),
            cache_key: CacheKey {
                adapter: request.adapter.clone(),
                salt: request.cache_salt.clone(),
            },
            max_tokens: request.max_tokens,
            needs_prompt_logits: request.prompt_logprobs.is_some(),
        });
        if let Err(error) = added {
            let error = SequenceError::Failed(error.to_string());
            sink.send(EngineOutput::Failed(error));
            return;
        }
        self.prompt_tokens += request.prompt.len() as u64;
        let default_seed = self.seed.map(|seed| seed.wrapping_add(id));
        request.sampling.seed = request.sampling.seed.or(default_seed);
        let vocab_size = self.model.config.vocab_size;
        let sequence = ActiveSequence {
            sampler: Sampler::new(&request.sampling, &request.prompt, vocab_size),
            prompt_logprobs: request.prompt_logprobs.map(|_| vec![None]),
            request,
            sink,
            permit: Some(permit),
            slot,
            num_generated: 0,
        };
        self.sequences.insert(id, sequence);
    }
}
