//! The engine thread: receive, schedule, launch, collect, commit. It sleeps when there is nothing to do.

use std::collections::HashMap;
use std::time::Instant;

use burn::tensor::Device;
use kv_paging::{Chunk, PagedKvCache, Sampled, Scheduler, SequenceId, Step};
use lora_4bit::device::is_cpu;
use model_qwen::sys::return_freed_memory;
use model_qwen::{GraphRunner, QwenModel};

use super::active::ActiveSequence;
use super::adapters::Adapters;
use super::device_failure::{MAX_FAILURES, catch};
use super::parked::ParkedQueue;
use super::receiver::EngineReceiver;
use super::speculation::drafts::Drafts;
use super::step_ahead::StepAhead;
use crate::config::Config;
use crate::kv_events::KvEvents;

/// After a step of so many tokens on a CPU its activations go back to the system: they would stay with the process, and
/// asking for them anew costs a hundredth of such a step.
const LONG_STEP: usize = 256;

/// Who computes on an engine's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceUse {
    /// The engine alone: the device's thread may sleep while the engine does, which would keep others waiting.
    Sole,
    /// Others in the process, too.
    Shared,
}

/// Owner of the device, the model and the KV cache.
pub(super) struct Worker {
    pub(super) model: QwenModel,
    pub(super) device: Device,
    pub(super) cache: PagedKvCache,
    pub(super) scheduler: Scheduler,
    pub(super) runner: GraphRunner,
    pub(super) receiver: EngineReceiver,
    pub(super) device_use: DeviceUse,
    pub(super) adapters: Adapters,
    /// Sequences whose adapters are in no slot.
    pub(super) parked: ParkedQueue,
    pub(super) sequences: HashMap<SequenceId, ActiveSequence>,
    /// `--seed`: sequences without a seed of their own get this one plus their id, so that they differ.
    pub(super) seed: Option<u64>,
    /// Speculative decoding; `None` without.
    pub(super) drafts: Option<Drafts>,
    /// The step after the last one, if it was launched already.
    pub(super) ahead: Option<StepAhead>,
    /// Steps that were launched ahead.
    pub(super) num_steps_ahead: u64,
    /// Steps that the device has failed to compute since the last one that it did.
    pub(super) num_failures: usize,
    /// Where changes of the prefix cache are published.
    pub(super) kv_events: Option<KvEvents>,
    pub(super) shutting_down: bool,
    pub(super) prompt_tokens: u64,
    pub(super) generation_tokens: u64,
}

impl Worker {
    pub(super) fn new(
        model: QwenModel,
        cache: PagedKvCache,
        scheduler: Scheduler,
        receiver: EngineReceiver,
        adapters: Adapters,
        config: &Config,
    ) -> Self {
        let mut worker = Self {
            device: model.device(),
            runner: match config.enforce_eager {
                true => GraphRunner::eager(),
                false => GraphRunner::new(&model, scheduler.config()),
            },
            drafts: Drafts::new(config.speculation, &model),
            model,
            cache,
            scheduler,
            receiver,
            device_use: DeviceUse::Shared,
            adapters,
            parked: ParkedQueue::new(),
            sequences: HashMap::new(),
            seed: config.seed,
            ahead: None,
            num_steps_ahead: 0,
            num_failures: 0,
            kv_events: None,
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
        let mut step = self.scheduler.schedule();
        if step.chunks.is_empty() {
            return;
        }
        let start = Instant::now();
        self.record_step(&step, start);
        self.add_drafts(&mut step);
        let sampled = catch(|| match self.runner.overlaps() {
            true => self.overlap_step(&step),
            false => self.normal_step(&step),
        });
        match sampled {
            Ok(sampled) => {
                self.measure(&step, start.elapsed());
                self.commit(&sampled);
            }
            Err(reason) => self.recover(&reason),
        }
        if step.num_tokens() >= LONG_STEP && is_cpu(&self.device) {
            return_freed_memory();
        }
        self.publish();
    }

    /// Launches a step and waits for its tokens.
    fn normal_step(&mut self, step: &Step) -> Result<Vec<Sampled>, String> {
        let launched = self.launch(step.chunks.iter().collect());
        self.collect(launched)
    }

    /// Launches the step after this one before it waits for the tokens of this one. Most often this one was launched ahead, too.
    fn overlap_step(&mut self, step: &Step) -> Result<Vec<Sampled>, String> {
        let ahead = self.ahead.take();
        let taken = ahead.and_then(|ahead| ahead.take_launched(&step.chunks));
        let (launched, rest) = match taken {
            Some(taken) => taken,
            None => (self.launch(step.chunks.iter().collect()), Vec::new()),
        };
        let launched = self.draw_masked(launched);
        if rest.is_empty() {
            self.ahead = self.launch_ahead(&launched);
        }
        let mut sampled = self.collect(launched)?;
        if !rest.is_empty() {
            sampled.extend(self.compute(rest)?);
        }
        Ok(sampled)
    }

    /// Computes chunks without a graph. A graph would overwrite the logits and tokens that the step ahead leaves on the device.
    pub(super) fn compute(&mut self, chunks: Vec<&Chunk>) -> Result<Vec<Sampled>, String> {
        let launched = self.forward(chunks);
        self.collect(launched)
    }

    /// Takes note of a step: frees the queue places of the sequences that are scheduled for the first time, and counts.
    fn record_step(&mut self, step: &Step, now: Instant) {
        for chunk in &step.chunks {
            if let Some(sequence) = self.sequences.get_mut(&chunk.id) {
                sequence.permit = None;
                sequence.times.schedule(chunk.num_cached, now);
            }
        }
        for id in &step.preempted {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.times.num_preemptions += 1;
            }
        }
        let num_tokens = step.num_tokens() as f64;
        let metrics = self.receiver.request_metrics();
        metrics.iteration_tokens.observe_value(num_tokens);
    }

    /// Takes note of the tokens of a step, and says goodbye to the sequences that ended with it: their blocks are free then.
    fn commit(&mut self, sampled: &[Sampled]) {
        // Without a token nothing was read, and nothing is known.
        if !sampled.is_empty() {
            self.num_failures = 0;
        }
        self.scheduler.commit(sampled);
        let mut ended = false;
        for sampled in sampled.iter().filter(|sampled| sampled.finished) {
            ended = true;
            if let Some(sequence) = self.sequences.remove(&sampled.id) {
                let end = sequence.end(sampled.token);
                sequence.record(end.ended, self.receiver.request_metrics());
                sequence.sink.send(end.output);
            }
        }
        if ended {
            self.release_idle_adapters();
        }
    }
}
