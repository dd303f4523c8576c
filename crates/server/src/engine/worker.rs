//! The engine thread: schedule, forward, sample, commit, and answer. It sleeps when there is nothing to do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::TryRecvError;

use burn::tensor::{Device, Tensor};
#[cfg(feature = "gpu")]
use kv_paging::DecodeStep;
use kv_paging::{
    AttentionBatch, CacheKey, NewSequence, PagedAttention, PagedKvCache, Sampled, Scheduler,
    SequenceChunk, SequenceId, Step,
};
use lora_4bit::AdapterSelection;
use model_qwen::sys::{return_freed_memory, wait_on_device};
use model_qwen::{QwenModel, Sampler};

use super::active::ActiveSequence;
use super::adapters::AdapterSlots;
#[cfg(feature = "gpu")]
use super::ahead::StepAhead;
#[cfg(feature = "gpu")]
use super::decode::DecodeGraphs;
use super::error::AdapterError;
use super::receiver::{EngineCommand, EngineReceiver, Submission};
use super::recovery::{MAX_FAILURES, catch};
use super::request::{EngineOutput, FinishReason};
use super::stats::EngineStats;
use crate::config::Config;

/// After a step of so many tokens on a CPU its activations go back to the system: they would stay with the process, and
/// asking for them anew costs a hundredth of such a step.
const LONG_STEP: usize = 256;

/// Owner of the device, the model and the KV cache.
pub(super) struct Worker {
    pub(super) model: QwenModel,
    pub(super) device: Device,
    pub(super) cache: PagedKvCache,
    pub(super) scheduler: Scheduler,
    receiver: EngineReceiver,
    owns_device: bool,
    adapters: AdapterSlots,
    pub(super) sequences: HashMap<SequenceId, ActiveSequence>,
    /// `--seed`: sequences without a seed of their own get this one plus their id, so that they differ.
    seed: Option<u64>,
    /// For steps of one token each; `None` on the CPU and with `--enforce-eager`.
    #[cfg(feature = "gpu")]
    pub(super) decode_graphs: Option<DecodeGraphs>,
    /// The step after the last one, if it was begun already.
    #[cfg(feature = "gpu")]
    pub(super) ahead: Option<StepAhead>,
    /// Whether the device chooses tokens itself.
    #[cfg(feature = "gpu")]
    pub(super) chooses_on_device: bool,
    /// Steps that the device has failed to compute since the last one that it did.
    pub(super) num_failures: usize,
    shutting_down: bool,
    prompt_tokens: u64,
    pub(super) generation_tokens: u64,
}

impl Worker {
    pub(super) fn new(
        model: QwenModel,
        cache: PagedKvCache,
        scheduler: Scheduler,
        receiver: EngineReceiver,
        adapters: AdapterSlots,
        config: &Config,
    ) -> Self {
        let worker = Self {
            device: model.device(),
            #[cfg(feature = "gpu")]
            chooses_on_device: DecodeStep::is_supported(&model.device(), model.config.head_dim),
            #[cfg(feature = "gpu")]
            decode_graphs: match config.enforce_eager {
                true => None,
                false => DecodeGraphs::new(&model, scheduler.config()),
            },
            #[cfg(feature = "gpu")]
            ahead: None,
            model,
            cache,
            scheduler,
            receiver,
            owns_device: config.owns_device,
            adapters,
            sequences: HashMap::new(),
            seed: config.seed,
            num_failures: 0,
            shutting_down: false,
            prompt_tokens: 0,
            generation_tokens: 0,
        };
        worker.publish();
        worker
    }

    /// Works until a shutdown is drained or every handle is gone.
    pub(super) fn run(mut self) {
        while self.num_failures < MAX_FAILURES && self.receive() {
            self.step();
        }
    }

    /// One step of all scheduled sequences.
    pub(super) fn step(&mut self) {
        let step = self.scheduler.schedule();
        if step.chunks.is_empty() {
            return;
        }
        self.admit(&step);
        let computed = catch(|| match self.decode(&step) {
            Some(sampled) => sampled,
            None => self.compute(&step),
        });
        match computed {
            Ok(sampled) => {
                // Without a token nothing was read, and nothing is known.
                if !sampled.is_empty() {
                    self.num_failures = 0;
                }
                self.scheduler.commit(&sampled);
                self.finish(&sampled);
            }
            Err(reason) => self.recover(&reason),
        }
        self.publish();
    }

    /// Computes a step with every operation launched by itself.
    pub(super) fn compute(&mut self, step: &Step) -> Vec<Sampled> {
        let hidden = self.forward(step); // [tokens, hidden]
        let sampled = self.sample(step, hidden);
        if step.num_tokens() >= LONG_STEP && self.device == Device::flex() {
            return_freed_memory();
        }
        sampled
    }

    /// Takes the commands that wait; sleeps for one if nothing else is to be done. `false` at the end.
    pub(super) fn receive(&mut self) -> bool {
        if !self.scheduler.has_work() {
            if self.shutting_down {
                return false;
            }
            match self.sleep() {
                Some(command) => self.obey(command),
                None => return false,
            }
        }
        loop {
            match self.receiver.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                // Nobody is left to read an answer.
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Sleeps until a command arrives; `None` once every handle is gone.
    fn sleep(&mut self) -> Option<EngineCommand> {
        let receiver = &mut self.receiver;
        if self.owns_device {
            return wait_on_device(&self.device, move || receiver.recv());
        }
        receiver.recv()
    }

    fn obey(&mut self, command: EngineCommand) {
        match command {
            EngineCommand::Submit(submission) => self.submit(submission),
            EngineCommand::Abort(id) => {
                self.scheduler.abort(id);
                self.sequences.remove(&id);
            }
            EngineCommand::LoadAdapter { name, path, reply } => {
                // The caller may have gone away; the adapter is loaded all the same.
                let _ = reply.send(self.load_adapter(&name, &path));
            }
            EngineCommand::UnloadAdapter { name, reply } => {
                let _ = reply.send(self.unload_adapter(&name));
            }
            EngineCommand::Shutdown => self.shutting_down = true,
        }
        self.publish();
    }

    fn submit(
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
                    sink.send(EngineOutput::Finished {
                        reason: FinishReason::Abort,
                    });
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
            let reason = FinishReason::Error(error.to_string());
            sink.send(EngineOutput::Finished { reason });
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
            #[cfg(feature = "gpu")]
            draws_from: 0,
        };
        self.sequences.insert(id, sequence);
    }

    fn load_adapter(&mut self, name: &str, path: &Path) -> Result<(), AdapterError> {
        self.adapters.load(&mut self.model, name, path)?;
        self.forget_graphs();
        self.receiver.set_adapters(self.adapters.infos());
        Ok(())
    }

    fn unload_adapter(&mut self, name: &str) -> Result<(), AdapterError> {
        let slot = self.adapters.unload(&mut self.model, name)?;
        self.forget_graphs();
        self.receiver.set_adapters(self.adapters.infos());
        let users = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.slot == Some(slot));
        let users: Vec<SequenceId> = users.map(|(id, _)| *id).collect();
        for id in users {
            self.scheduler.abort(id);
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence.sink.send(EngineOutput::Finished {
                    reason: FinishReason::Abort,
                });
            }
        }
        // Another adapter may come under the same name.
        self.scheduler.forget_adapter(name);
        Ok(())
    }

    /// Frees the queue places of the sequences that are scheduled for the first time.
    fn admit(&mut self, step: &Step) {
        for chunk in &step.chunks {
            if let Some(sequence) = self.sequences.get_mut(&chunk.id) {
                sequence.permit = None;
            }
        }
    }

    /// Nothing is recorded without a GPU.
    #[cfg(not(feature = "gpu"))]
    fn decode(&mut self, _step: &Step) -> Option<Vec<Sampled>> {
        None
    }

    /// The model's tensors have changed.
    pub(super) fn forget_graphs(&mut self) {
        #[cfg(feature = "gpu")]
        if let Some(graphs) = &mut self.decode_graphs {
            self.ahead = None;
            graphs.clear();
        }
    }

    /// Hidden states of the packed step, `[tokens, hidden]`.
    fn forward(&mut self, step: &Step) -> Tensor<2> {
        let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let mut chunks = Vec::with_capacity(step.chunks.len());
        for chunk in &step.chunks {
            let end = chunk.start + chunk.tokens.len();
            tokens.extend_from_slice(&chunk.tokens);
            positions.extend(chunk.start as u32..end as u32);
            let slot = self
                .sequences
                .get(&chunk.id)
                .and_then(|sequence| sequence.slot);
            slots.resize(tokens.len(), slot);
            chunks.push(SequenceChunk {
                query_len: chunk.tokens.len(),
                context_len: end,
                block_table: &chunk.block_table,
            });
        }
        let batch = AttentionBatch::new(&chunks, self.cache.shape().block_size);
        let adapters = self.selection(&slots);
        let mut kv = PagedAttention {
            cache: &mut self.cache,
            batch: &batch,
        };
        self.model.forward(&tokens, &positions, &adapters, &mut kv)
    }

    /// The adapters of a step's rows.
    fn selection(&self, slots: &[Option<usize>]) -> AdapterSelection {
        AdapterSelection::per_row(slots, &self.device)
    }

    /// Says goodbye to the sequences that ended with this step; their blocks are free already.
    fn finish(&mut self, sampled: &[Sampled]) {
        for sampled in sampled.iter().filter(|sampled| sampled.finished) {
            if let Some(sequence) = self.sequences.remove(&sampled.id) {
                let stopped = sequence.request.stop_token_ids.contains(&sampled.token);
                let reason = if stopped {
                    FinishReason::Stop
                } else {
                    FinishReason::Length
                };
                sequence.sink.send(EngineOutput::Finished { reason });
            }
        }
    }

    fn publish(&self) {
        let stats = self.scheduler.stats();
        let adapters = |waiting: bool| {
            let mut names: Vec<String> = (self.sequences.values())
                .filter(|sequence| sequence.permit.is_some() == waiting)
                .filter_map(|sequence| sequence.request.adapter.clone())
                .collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        self.receiver.publish_stats(EngineStats {
            num_running: stats.num_running,
            num_waiting: stats.num_waiting,
            num_blocks: stats.num_blocks,
            num_free_blocks: stats.num_free_blocks,
            block_size: self.scheduler.config().block_size,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            num_preemptions: stats.num_preemptions,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
            running_adapters: adapters(false),
            waiting_adapters: adapters(true),
            max_loras: self.adapters.max_loras(),
        });
    }
}
