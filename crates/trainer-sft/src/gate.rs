//! What a run passes before each unit of its work, so that others on the same device may come first.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::Device;
use model_qwen::kernels;

/// A unit of a run's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkUnit {
    /// A micro-batch, a batch of an evaluation, or a token of an answer.
    Batch,
    /// A layer of it, or a chunk of its logits: for a program that cannot wait for a whole batch.
    Layer,
}

pub(crate) type Wait = Arc<dyn Fn(WorkUnit) + Send + Sync>;

thread_local! {
    /// What work of this thread passes: the layers of a model lie deep below a run. [`on_worker`] takes it along.
    static HERE: RefCell<Option<Wait>> = const { RefCell::new(None) };
}

/// As long as it is there, work of this thread passes a gate.
pub(crate) struct Behind(Option<Wait>);

impl Behind {
    /// Lets the work of this thread pass `wait`, which may wait.
    pub(crate) fn new(wait: impl Fn(WorkUnit) + Send + Sync + 'static) -> Self {
        Self(HERE.replace(Some(Arc::new(wait))))
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        HERE.set(self.0.take());
    }
}

/// What work of this thread passes, for other threads.
pub(crate) fn here() -> Option<Wait> {
    HERE.with_borrow(Clone::clone)
}

/// Lets the work of this thread pass what that of another one does.
pub(crate) fn behind(wait: Option<Wait>) -> Behind {
    Behind(HERE.replace(wait))
}

/// Computes `work` where [`kernels::on_worker`] does, behind the gate of this thread.
pub(crate) fn on_worker<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    let wait = here();
    // Who waits in a pool holds one of its threads, which the work that comes first may need: only in a pool of its own.
    if wait.is_some() && rayon::current_thread_index().is_none() {
        return work();
    }
    kernels::on_worker(device, || {
        let _behind = behind(wait);
        work()
    })
}

/// Returns when the work of this thread may go on.
pub(crate) fn pass(unit: WorkUnit) {
    let wait = HERE.with_borrow(Clone::clone);
    if let Some(wait) = wait {
        wait(unit);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use lora_4bit::AdapterSelection;
    use model_qwen::{QwenConfig, QwenModel};

    use super::*;
    use crate::batch::Batch;
    use crate::parameters::{GradientStore, Trainable};
    use crate::step::{Checkpointing, StepOptions, explicit};

    #[test]
    fn work_passes_the_gate_that_it_is_behind() {
        let passed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let count = |index: usize| {
            let passed = Arc::clone(&passed);
            move |unit| {
                assert_eq!(unit, WorkUnit::Layer);
                passed[index].fetch_add(1, Ordering::Relaxed);
            }
        };
        let numbers = || [0, 1].map(|index: usize| passed[index].load(Ordering::Relaxed));
        pass(WorkUnit::Layer);
        let outer = Behind::new(count(0));
        pass(WorkUnit::Layer);
        let inner = Behind::new(count(1));
        pass(WorkUnit::Layer);
        assert_eq!(numbers(), [1, 1]);
        drop(inner);
        pass(WorkUnit::Layer);
        assert_eq!(numbers(), [2, 1]);
        // Also on the thread that computes for this one.
        on_worker(&Device::flex(), || pass(WorkUnit::Layer));
        assert_eq!(numbers(), [3, 1]);
        drop(outer);
        pass(WorkUnit::Layer);
        on_worker(&Device::flex(), || pass(WorkUnit::Layer));
        assert_eq!(numbers(), [3, 1]);
    }

    /// By the twins of its operations.
    #[test]
    fn the_step_of_gpus_passes_before_each_layer_and_chunk() {
        let text = r#"{"model_type": "qwen2", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 8,
            "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": true, "torch_dtype": "float32"}"#;
        let config = QwenConfig::from_json(text, "config.json".as_ref()).unwrap();
        let model = QwenModel::random(config, 7, &Device::flex());
        let batch = Batch {
            tokens: vec![1, 2, 3],
            positions: vec![0, 1, 2],
            targets: vec![None, Some(3), None],
            lengths: vec![3],
            ..Batch::default()
        };
        let passed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&passed);
        let _behind = Behind::new(move |unit| {
            assert_eq!(unit, WorkUnit::Layer);
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let options = StepOptions {
            trainable: Trainable::Full,
            adapters: &AdapterSelection::Base,
            checkpointing: Checkpointing::On,
            noise: None,
        };
        let mut store = GradientStore::default();
        explicit::forward_backward(&model, &batch, options, 1.0, &mut store);
        // Three layers, forward and backward, and a chunk of logits.
        assert_eq!(passed.load(Ordering::Relaxed), 7);
    }
}
