//! AdamW of what lies in buffers: a launch for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use lora_4bit::training::{adamw_in_place, add_in_place};

use super::{AdamW, Moments, StepRate};
use crate::flat::{Flat, FlatLayout};

/// Running means of what lies in buffers.
#[derive(Debug)]
pub(super) struct FlatMoments {
    mean: Flat,
    variance: Flat,
}

impl Clone for FlatMoments {
    fn clone(&self) -> Self {
        // A step writes to the buffers whoever holds them.
        Self {
            mean: self.mean.copy(),
            variance: self.variance.copy(),
        }
    }
}

impl FlatMoments {
    /// Those that `moments` has, which go, and zeros.
    fn gather(
        layout: &Arc<FlatLayout>,
        moments: &mut BTreeMap<String, Moments>,
        device: &Device,
    ) -> Self {
        let [mean, variance] = [(); 2].map(|()| Flat::zeros(layout, device));
        for name in layout.names() {
            let Some(known) = moments.remove(name) else {
                continue;
            };
            for (to, from) in [(&mean, known.mean), (&variance, known.variance)] {
                if let Some(to) = to.view(name) {
                    add_in_place(&to, from);
                }
            }
        }
        Self { mean, variance }
    }

    /// Views of those of each tensor.
    pub(super) fn by_name(&self) -> impl Iterator<Item = (String, Moments)> {
        self.mean.layout().names().filter_map(|name| {
            let [mean, variance] = [&self.mean, &self.variance].map(|flat| flat.view(name));
            let (mean, variance) = (mean?, variance?);
            Some((name.to_owned(), Moments { mean, variance }))
        })
    }
}

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
