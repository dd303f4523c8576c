//! What happens when the device fails to compute a step, as when its memory is full.

use burn::tensor::DType;
use kv_paging::{KvShape, PagedKvCache, SequenceId};

use super::device_failure::{MAX_FAILURES, catch};
use super::error::SequenceError;
use super::request::EngineOutput;
use super::request_metrics::Ended;
use super::worker::Worker;

impl Worker {
    /// Ends the sequences that were running, and begins anew with an empty cache: what the step should have written to the
    /// old one is missing.
    pub(super) fn recover(&mut self, reason: &str) {
        self.num_failures += 1;
        tracing::error!(
            reason,
            failures = self.num_failures,
            "the device failed to compute a step"
        );
        let running = self.sequences.iter();
        let running = running.filter(|(_, sequence)| sequence.has_started());
        let running: Vec<SequenceId> = running.map(|(id, _)| *id).collect();
        for id in running {
            self.scheduler.abort(id);
            if let Some(sequence) = self.sequences.remove(&id) {
                sequence.record(Ended::Error, self.receiver.request_metrics());
                let error = SequenceError::DeviceFailed(reason.to_owned());
                sequence.sink.send(EngineOutput::Failed(error));
            }
        }
        self.scheduler.reset_prefix_cache();
        let replaced = catch(|| {
            self.ahead = None;
            self.runner.reset();
            let shape = *self.cache.shape();
            let smallest = KvShape {
                num_blocks: 1,
                ..shape
            };
            // There is no room for both.
            let smallest = PagedKvCache::new(&smallest, &self.device);
            drop(std::mem::replace(&mut self.cache, smallest));
            self.device.memory_cleanup();
            self.cache = PagedKvCache::new(&shape, &self.device);
            // A device allocates later than it says: only a read tells.
            for layer in 0..shape.num_layers {
                let (k, v) = self.cache.layer(layer);
                for tensor in [k, v] {
                    let first = tensor.narrow(0, 0, 1).cast(DType::F32).into_data();
                    let _ = first.iter::<f32>().next();
                }
            }
            Ok(())
        });
        self.release_idle_adapters();
        if let Err(reason) = replaced {
            tracing::error!(reason, "the device has no room for a new KV cache");
            self.num_failures = MAX_FAILURES;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::Device;
    use kv_paging::{Scheduler, SchedulerConfig};
    use model_qwen::{LoadOptions, QwenModel, SamplingParams};

    use super::*;
    use crate::config::Config;
    use crate::engine::StartProgress;
    use crate::engine::adapters::Adapters;
    use crate::engine::stats::EngineLimits;
    use crate::engine::{EngineHandle, FinishReason, GenerateRequest, OutputStream, channel};

    /// Tokens that the embedding of the broken model has.
    const KNOWN: usize = 100;

    /// A worker of the bundled model.
    fn worker(device: Device) -> (EngineHandle, Worker) {
        let dir = model_qwen::bundled_model_dir().unwrap();
        let model = QwenModel::load(&dir, &LoadOptions::default(), &device).unwrap();
        let kv = KvShape {
            num_layers: model.config.num_hidden_layers,
            num_kv_heads: model.config.num_key_value_heads,
            head_dim: model.config.head_dim,
            block_size: 16,
            num_blocks: 32,
            dtype: DType::F32,
        };
        let (handle, receiver) = channel(EngineLimits {
            max_model_len: 256,
            vocab_size: model.config.vocab_size,
            max_num_queued_reqs: 8,
            pooling: None,
        });
        let scheduler = Scheduler::new(SchedulerConfig {
            max_num_seqs: 8,
            max_num_batched_tokens: 64,
            block_size: 16,
            num_blocks: kv.num_blocks,
            max_model_len: 256,
            enable_prefix_caching: true,
        });
        let config = Config::from_command_line(["server", "--device", "cpu"]).unwrap();
        let cache = PagedKvCache::new(&kv, &device);
        let adapters = Adapters::new(None);
        let scheduler = scheduler.unwrap();
        let worker = Worker::new(model, cache, scheduler, receiver, adapters, &config);
        (handle, worker)
    }

    /// A worker whose model fails at tokens from [`KNOWN`] on.
    fn broken_worker() -> (EngineHandle, Worker) {
        let (handle, mut worker) = worker(Device::flex());
        let embed_tokens = worker.model.embed_tokens.clone();
        worker.model.embed_tokens = embed_tokens.narrow(0, 0, KNOWN);
        (handle, worker)
    }

    fn request(prompt: Vec<u32>) -> GenerateRequest {
        GenerateRequest {
            prompt,
            sampling: SamplingParams {
                temperature: 0.0,
                ..SamplingParams::default()
            },
            max_tokens: 1,
            min_tokens: 0,
            constraint: None,
            stop_token_ids: Vec::new(),
            adapter: None,
            cache_salt: None,
            prompt_logprobs: None,
        }
    }

    /// How a sequence ended.
    fn end(mut stream: OutputStream) -> Result<FinishReason, SequenceError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            loop {
                match stream.next().await.unwrap() {
                    EngineOutput::Finished { reason } => return Ok(reason),
                    EngineOutput::Failed(error) => return Err(error),
                    EngineOutput::PromptLogprobs(_)
                    | EngineOutput::Token { .. }
                    | EngineOutput::Pooled { .. } => {}
                }
            }
        })
    }

    #[test]
    fn a_warm_up_tells_how_far_it_is() {
        let (_handle, mut worker) = worker(Device::flex());
        let progress = StartProgress::default();
        worker.warm_up(&progress).unwrap();
        let said = progress.to_string();
        let steps = said.split_once("step ").unwrap().1.trim_end_matches('.');
        let (step, all) = steps.split_once(" of ").unwrap();
        assert!(step == all && all.parse::<usize>().unwrap() > 10, "{said}");
    }

    #[test]
    fn what_is_launched_for_its_kernels_changes_no_token() {
        let tokens_of = |compiles: bool| {
            let (handle, mut worker) = worker(Device::flex());
            if compiles {
                worker.compile_steps(&StartProgress::default());
            }
            std::thread::spawn(move || worker.run());
            let mut stream = handle.submit(request((0..50).collect())).unwrap();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.build().unwrap().block_on(async {
                let mut ids = Vec::new();
                while let Some(output) = stream.next().await {
                    if let EngineOutput::Token { id, .. } = output {
                        ids.push(id);
                    }
                }
                ids
            })
        };
        let expected = tokens_of(false);
        assert!(!expected.is_empty());
        assert_eq!(tokens_of(true), expected);
    }

    #[test]
    fn a_failed_step_ends_its_sequences_and_no_others() {
        let (handle, worker) = broken_worker();
        let engine = std::thread::spawn(move || worker.run());
        let submit = |prompt| handle.submit(request(prompt)).unwrap();
        assert_eq!(end(submit((0..50).collect())), Ok(FinishReason::Length));
        for _ in 0..2 {
            let failed = end(submit(vec![1, KNOWN as u32 + 7]));
            assert!(
                matches!(failed, Err(SequenceError::DeviceFailed(_))),
                "{failed:?}"
            );
        }
        // The cache is another one: nothing is found in it.
        assert_eq!(end(submit((0..50).collect())), Ok(FinishReason::Length));
        assert_eq!(handle.stats().num_free_blocks, 32);
        for _ in 0..MAX_FAILURES {
            let failed = end(submit(vec![1, KNOWN as u32 + 7]));
            assert!(
                matches!(failed, Err(SequenceError::DeviceFailed(_))),
                "{failed:?}"
            );
        }
        // It gives up.
        engine.join().unwrap();
        assert!(handle.submit(request(vec![1])).is_err());
    }

    #[cfg(feature = "gpu")]
    mod on_a_gpu {
        use super::*;

        /// A GPU, or Mesa's lavapipe.
        fn gpu() -> Device {
            let mut gpus = ["cuda", "wgpu"].into_iter().map(model_qwen::parse_device);
            gpus.find_map(Result::ok).expect("a GPU")
        }

        /// The device has no room for what a step needs, and then it has again.
        #[test]
        fn steps_succeed_again_when_there_is_room() {
            let (handle, mut worker) = worker(gpu());
            let ask = |worker: &mut Worker, prompt: std::ops::Range<u32>| {
                let mut request = request(prompt.collect());
                request.max_tokens = 5;
                let stream = handle.submit(request).unwrap();
                worker.receive();
                while worker.scheduler.has_work() {
                    worker.step();
                }
                end(stream)
            };
            assert_eq!(ask(&mut worker, 0..50), Ok(FinishReason::Length));
            let known = worker.model.embed_tokens.clone();
            let [vocab, hidden] = known.dims();
            worker.model.embed_tokens =
                burn::tensor::Tensor::zeros([vocab << 20, hidden], (&worker.device, known.dtype()));
            let failed = ask(&mut worker, 0..40);
            assert!(
                matches!(failed, Err(SequenceError::DeviceFailed(_))),
                "{failed:?}"
            );
            worker.model.embed_tokens = known;
            for _ in 0..2 {
                assert_eq!(ask(&mut worker, 0..50), Ok(FinishReason::Length));
            }
        }
    }
}
