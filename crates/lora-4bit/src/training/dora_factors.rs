//! What DoRA does to the outputs of a group.

use burn::tensor::{DType, Device, Tensor};

use crate::linear::Linear;
use crate::lora::{Dora, LoraWeights};

/// What DoRA does to the outputs of a group. Those of layers without it have ones.
#[derive(Clone, Debug)]
pub(super) struct DoraFactors {
    /// `m / ‖W + s·B·A‖`, f32: `[out]`.
    pub(super) factor: Tensor<1>,
    /// `‖W + s·B·A‖`, f32: `[out]`.
    pub(super) norm: Tensor<1>,
    /// Which layers have it.
    pub(super) has_dora: Vec<bool>,
}

impl DoraFactors {
    /// Those of the layers one after the other, if one has any.
    pub(super) fn stack(
        layers: &[&Linear],
        adapters: &[Option<LoraWeights>],
        device: &Device,
    ) -> Option<Self> {
        let all = || {
            let adapters = adapters.iter().map(Option::as_ref);
            adapters.map(|adapter| adapter.and_then(|adapter| adapter.dora.as_ref()))
        };
        let has_dora: Vec<bool> = all().map(|dora| dora.is_some()).collect();
        has_dora.contains(&true).then(|| {
            let stacked = |of: &dyn Fn(&Dora) -> Tensor<1>| {
                let parts = layers.iter().zip(all()).map(|(layer, dora)| match dora {
                    Some(dora) => of(dora),
                    None => Tensor::ones([layer.out_features()], (device, DType::F32)),
                });
                Tensor::cat(parts.collect(), 0) // [out]
            };
            Self {
                factor: stacked(&Dora::factor),
                norm: stacked(&|dora| dora.norm().clone()),
                has_dora,
            }
        })
    }

    /// How far the factors are from one: `[out]`.
    pub(super) fn change(&self) -> Tensor<1> {
        self.factor.clone() - 1.0
    }
}
