//! The moments of what lies in buffers.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::Device;
use lora_4bit::training::add_in_place;

use super::moments::Moments;
use crate::flat::{Flat, FlatLayout};

/// Running means of what lies in buffers.
#[derive(Debug)]
pub(super) struct FlatMoments {
    pub(super) mean: Flat,
    pub(super) variance: Flat,
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
    pub(super) fn gather(
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
