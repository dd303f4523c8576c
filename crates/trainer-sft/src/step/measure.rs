//! What a model makes of batches, without training.

use lora_4bit::AdapterSelection;
use model_qwen::QwenModel;

use super::forward;
use crate::batch::Batch;

/// Means over the target tokens of some batches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// Cross-entropy, in nats.
    pub loss: f64,
    /// Part of the targets that are the likeliest token.
    pub token_accuracy: f64,
    /// Entropy of the predictions, in nats.
    pub entropy: f64,
}

/// Means over the target tokens of `batches` together, and the number of these tokens; `None` when there is none.
///
/// # Errors
/// The first error among the batches.
pub fn measure<E>(
    model: &QwenModel,
    adapters: &AdapterSelection,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
) -> Result<Option<(Means, usize)>, E> {
    let (mut sums, mut num_targets) = ([0f64; 3], 0usize);
    for batch in batches {
        let batch = batch?;
        if batch.num_targets() == 0 {
            continue;
        }
        num_targets += batch.num_targets();
        let found = forward(model, &batch, adapters).into_data(); // [3]
        for (sum, value) in sums.iter_mut().zip(found.iter::<f64>()) {
            *sum += value;
        }
    }
    let [loss, token_accuracy, entropy] = sums.map(|sum| sum / num_targets.max(1) as f64);
    let means = Means {
        loss,
        token_accuracy,
        entropy,
    };
    Ok((num_targets > 0).then_some((means, num_targets)))
}
