//! An adapter whose tensors lie in buffers, which a GPU trains with one launch each.

use crate::flat::Flat;
use crate::parameters::{GradientStore, LORA_B, LORA_MAGNITUDE};

/// An adapter in buffers.
#[derive(Debug)]
pub(super) struct FlatParameters {
    /// What the tensors of the model are views of.
    pub(super) values: Flat,
    pub(super) gradients: Flat,
}

impl FlatParameters {
    /// Itself, and the gradients of the adapter, taken out of `gradients`, if there are any.
    pub(super) fn summed(&self, gradients: &mut GradientStore) -> Option<(&Self, Flat)> {
        let spare = || {
            self.gradients.clear();
            self.gradients.share()
        };
        let summed = gradients.take_flat(self.values.layout(), spare)?;
        Some((self, summed))
    }
}

/// Whether LoRA+ trains a tensor at the higher rate, as PEFT groups them.
pub(super) fn is_faster(name: &str) -> bool {
    name.ends_with(LORA_B) || name.ends_with(LORA_MAGNITUDE)
}
