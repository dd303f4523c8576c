//! The stats of each target of a batch by itself, and gradients of whatever is made of it.
//!
//! A loss that is no sum over tokens, such as one that compares answers, is a function of the cross-entropies of its targets. Its
//! gradient is that of their sum, each weighted by the derivative of the loss.

use lora_4bit::AdapterSelection;
use model_qwen::QwenModel;

use super::{StepOptions, backward_of_loss, hidden, lm_head};
use crate::batch::Batch;
use crate::loss::{self, Targets, TokenStats};
use crate::parameters::GradientStore;

/// The stats of each target of `batch`, without gradients.
pub(crate) fn forward(
    model: &QwenModel,
    batch: &Batch,
    adapters: &AdapterSelection,
) -> Vec<TokenStats> {
    let x = hidden(model, batch, adapters); // [tokens, hidden]
    loss::stats_of_targets(&lm_head(model), &x, &Targets::new(&batch.targets), 1.0)
}

/// Adds the gradients of the cross-entropies of `batch` to `store`, each times what `weigh` gives for it.
pub(crate) fn forward_backward(
    model: &QwenModel,
    batch: &Batch,
    options: StepOptions<'_>,
    store: &mut GradientStore,
    weigh: impl FnOnce(&[TokenStats]) -> Vec<f32>,
) {
    let targets = Targets::new(&batch.targets);
    backward_of_loss(model, batch, options, store, |lm_head, x, trained| {
        (
            (),
            loss::backward_rows(lm_head, x, &targets, weigh, trained),
        )
    });
}
