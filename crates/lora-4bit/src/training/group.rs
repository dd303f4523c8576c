//! Layers that share an input, ready for products.

use burn::tensor::{DType, Device, Tensor};

use super::dora_factors::DoraFactors;
use crate::dropout::Dropout;
use crate::kernels::training::{self as ops, Part};
use crate::linear::Linear;
use crate::lora::LoraWeights;

/// The ranks of a group's adapters take a multiple of this, the inner values of a step of the kernels.
pub const RANKS: usize = 64;

/// Layers that share an input, ready for products.
#[derive(Clone, Debug)]
pub struct Group {
    /// The weights one below the other: `[out, in]`.
    pub(super) weight: Tensor<2>,
    /// f32: `[out]`.
    pub(super) bias: Option<Tensor<1>>,
    pub(super) adapters: Option<Stacked>,
    pub(super) dora: Option<DoraFactors>,
    pub(super) layers: Vec<Part>,
}

/// The adapters of a group.
#[derive(Clone, Debug)]
pub(super) struct Stacked {
    /// `[ranks, in]`, rows past the adapters' zero.
    pub(super) a: Tensor<2>,
    /// Times the scaling: `[out, ranks]`.
    pub(super) b: Tensor<2>,
    pub(super) dropout: Option<Dropout>,
}

impl Group {
    /// The layers with the adapters in `slot`, if any, in `dtype`.
    ///
    /// # Panics
    ///
    /// If there is no layer, or inputs differ in width.
    #[must_use]
    pub fn new(layers: &[&Linear], slot: Option<(usize, Option<Dropout>)>, dtype: DType) -> Self {
        let device = layers[0].weight.device();
        let weights = layers.iter().map(|layer| layer.weight.operand()).collect();
        let adapter = |layer: &'_ Linear| slot.and_then(|(slot, _)| layer.adapter(slot).cloned());
        let adapters: Vec<Option<LoraWeights>> =
            layers.iter().map(|layer| adapter(layer)).collect();
        let (mut row, mut rank) = (0, 0);
        let mut parts = Vec::with_capacity(layers.len());
        for (layer, adapter) in layers.iter().zip(&adapters) {
            let rows = layer.out_features();
            let ranks = adapter.as_ref().map_or(0, |adapter| adapter.a.dims()[0]);
            parts.push(Part {
                id: layer.id,
                row,
                rows,
                rank,
                ranks,
                scaling: adapter.as_ref().map_or(0.0, |adapter| adapter.scaling),
            });
            row += rows;
            rank += ranks;
        }
        let dora = DoraFactors::stack(layers, &adapters, &device);
        let dropout = slot.and_then(|(_, dropout)| dropout.filter(|dropout| dropout.p > 0.0));
        let adapters = (rank > 0).then(|| {
            let all: Vec<_> = (adapters.iter().zip(&parts))
                .filter_map(|(adapter, part)| {
                    let adapter = adapter.as_ref()?;
                    Some(([&adapter.a, &adapter.b_t], *part))
                })
                .collect();
            let shape = [layers[0].in_features(), row, rank.next_multiple_of(RANKS)];
            let [a, b] = ops::stack_adapters(&all, shape, dtype);
            Stacked { a, b, dropout }
        });
        Self {
            weight: ops::stack_weights(weights, dtype),
            bias: stack_biases(layers, &device),
            adapters,
            dora,
            layers: parts,
        }
    }
}

/// The biases one after the other, zero where a layer has none: `[out]`.
fn stack_biases(layers: &[&Linear], device: &Device) -> Option<Tensor<1>> {
    layers.iter().find_map(|layer| layer.bias.as_ref())?;
    let biases = layers.iter().map(|layer| match &layer.bias {
        Some(bias) => bias.clone(),
        None => Tensor::zeros([layer.out_features()], (device, DType::F32)),
    });
    Some(Tensor::cat(biases.collect(), 0))
}
