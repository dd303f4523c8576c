//! AdamW of what lies in buffers: a launch for each.

use burn::tensor::{DType, Tensor};
use lora_4bit::training::adamw_in_place;

use super::flat_moments::FlatMoments;
use super::{AdamW, StepRate};
use crate::flat::Flat;

impl AdamW {
    /// New values in place of those of an adapter, whose moments are in f32. `rate` says how far those with a learning rate of their
    /// own move, and the others.
    pub(crate) fn update_flat(
        &mut self,
        values: &Flat,
        gradients: &Flat,
        clip: Option<&Tensor<1>>,
        rate: impl Fn(bool) -> StepRate,
    ) {
        let Some(first) = values.buckets().first() else {
            return;
        };
        let device = first.device();
        let clip = clip.map_or_else(|| Tensor::ones([1], (&device, DType::F32)), Clone::clone); // [1]
        let layout = values.layout();
        if let Some(other) = self.flat.take_if(|flat| flat.mean.layout() != layout) {
            // Of another run, whose tensors lay elsewhere.
            self.moments.extend(other.by_name());
        }
        let moments = self.flat.take();
        let moments =
            moments.unwrap_or_else(|| FlatMoments::gather(layout, &mut self.moments, &device));
        let both = moments
            .mean
            .buckets()
            .iter()
            .zip(moments.variance.buckets());
        let tensors = values.buckets().iter().zip(both).zip(gradients.buckets());
        for ((_, is_faster), ((value, (mean, variance)), gradient)) in
            values.layout().buckets().zip(tensors)
        {
            let factors = self.factors(rate(is_faster));
            adamw_in_place([value, mean, variance], gradient, &clip, factors);
        }
        self.flat = Some(moments);
    }

    /// Gives tensors moments of their own again, if that of `name` has them in a buffer.
    pub(super) fn take_apart(&mut self, name: &str) {
        if let Some(flat) = self.flat.take_if(|flat| flat.mean.layout().has(name)) {
            self.moments.extend(flat.by_name());
        }
    }
}
