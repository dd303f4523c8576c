//! Moves the adapter of a trainer into buffers.

use std::sync::Arc;

use lora_4bit::training::{add_in_place, writes_in_place};
use model_qwen::QwenModel;

use super::Trainer;
use super::flat_parameters::{FlatParameters, is_faster};
use crate::flat::{Flat, FlatLayout};
use crate::parameters::{GradientStore, Trainable, visit_model};

impl Trainer {
    /// Moves the adapter into flat buffers, once, on a GPU that trains it so.
    pub(crate) fn prepare(&mut self) {
        if self.lay_flat() {
            // What they were before goes back to the driver.
            self.device().memory_cleanup();
        }
    }

    /// The same; the memory that they have taken before stays with the process. Says whether there was something to do.
    pub(super) fn lay_flat(&mut self) -> bool {
        let options = &self.options;
        let (Some(slot), false) = (options.trainable.slot(), options.optimizer.eight_bit) else {
            return false;
        };
        let device = self.model.device();
        if self.flat.is_some() || !writes_in_place(&device) {
            return false;
        }
        let adapter = Trainable::Adapter { slot };
        let mut tensors = Vec::new();
        visit_model(&mut self.model, adapter, &mut |name, parameter| {
            tensors.push((name.to_owned(), parameter.dims()));
        });
        let has_two_rates = options.loraplus_lr_ratio != 1.0;
        let layout = Arc::new(FlatLayout::of(&tensors, |name| {
            has_two_rates && is_faster(name)
        }));
        let [values, gradients] = [(); 2].map(|()| Flat::zeros(&layout, &device));
        visit_model(&mut self.model, adapter, &mut |name, parameter| {
            if let Some(view) = values.view(name) {
                add_in_place(&view, parameter.value());
                parameter.replace(|_| view);
            }
        });
        self.flat = Some(FlatParameters { values, gradients });
        true
    }

    /// The model, with the current values of its trainable tensors.
    #[must_use]
    pub fn model(&self) -> &QwenModel {
        &self.model
    }

    /// The model, for others to change. Whatever tensors it then has are trained from there on. Replicas on further devices keep theirs.
    pub fn model_mut(&mut self) -> &mut QwenModel {
        // The next step would train what the buffers have.
        self.flat = None;
        &mut self.model
    }

    /// Where the gradients of the coming step are added up.
    pub(crate) fn gradient_store(&self) -> GradientStore {
        match &self.flat {
            Some(flat) => GradientStore::in_flat(flat.gradients.share()),
            None => GradientStore::default(),
        }
    }
}
