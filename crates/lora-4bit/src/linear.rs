//! A linear layer: a dense or NF4 weight, an optional bias, and any number of LoRA adapters.
//!
//! `y = x·Wᵀ + bias + scaling·(dropout(x)·Aᵀ)·Bᵀ`, where the last term exists for the rows that use an adapter. The
//! adapter is never merged into the weight, so one base weight serves requests with different adapters in one batch.
//!
//! Source: LoRA (<https://arxiv.org/abs/2106.09685>), `peft/tuners/lora/layer.py` of PEFT.

use burn::tensor::{IndexingUpdateOp, Tensor};

use crate::adapter_selection::{AdapterSelection, Dropout, RowGroups};
use crate::kernels;
use crate::weight::{Weight, constant_like};

/// A linear layer with optional LoRA adapters.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Base weight, `[out, in]`.
    pub weight: Weight,
    /// Base bias, `[out]`.
    pub bias: Option<Tensor<1>>,
    /// Number of the layer within its model: two layers with the same id drop the same inputs.
    pub id: u32,
    adapters: Vec<Option<LoraWeights>>,
}

/// One LoRA adapter of one layer.
#[derive(Clone, Debug)]
pub struct LoraWeights {
    /// `[r, in]`, f32.
    pub a: Tensor<2>,
    /// `[out, r]`, f32.
    pub b: Tensor<2>,
    /// Factor of the product, `alpha / r` or `alpha / √r`.
    pub scaling: f32,
}

impl Linear {
    /// A layer without adapters and with id 0.
    ///
    /// # Panics
    ///
    /// If `bias` doesn't have one value per row of `weight`.
    pub fn new(weight: Weight, bias: Option<Tensor<1>>) -> Self {
        if let Some(bias) = &bias {
            assert_eq!(bias.dims()[0], weight.shape()[0], "length of the bias");
        }
        Self {
            weight,
            bias,
            id: 0,
            adapters: Vec::new(),
        }
    }

    /// Number of columns of the weight.
    pub fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Number of rows of the weight.
    pub fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Puts an adapter into `slot`, or takes it out. Slots appear as needed.
    ///
    /// # Panics
    ///
    /// If the shapes of `a` and `b` don't fit each other and the layer.
    pub fn set_adapter(&mut self, slot: usize, adapter: Option<LoraWeights>) {
        if let Some(LoraWeights { a, b, .. }) = &adapter {
            let r = a.dims()[0];
            assert_eq!(a.dims(), [r, self.in_features()], "shape of LoRA's A");
            assert_eq!(b.dims(), [self.out_features(), r], "shape of LoRA's B");
        }
        if slot >= self.adapters.len() {
            self.adapters.resize(slot + 1, None);
        }
        self.adapters[slot] = adapter;
        while let Some(None) = self.adapters.last() {
            self.adapters.pop();
        }
    }

    /// The adapter in `slot`.
    pub fn adapter(&self, slot: usize) -> Option<&LoraWeights> {
        self.adapters.get(slot)?.as_ref()
    }

    /// The adapter in `slot`.
    pub fn adapter_mut(&mut self, slot: usize) -> Option<&mut LoraWeights> {
        self.adapters.get_mut(slot)?.as_mut()
    }

    /// Applies the layer.
    ///
    /// `x` may belong to an autodiff graph while the layer's tensors don't, and the other way round.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` f32 → `[tokens, out]` f32
    pub fn forward(&self, x: Tensor<2>, adapters: &AdapterSelection) -> Tensor<2> {
        let base = self.forward_base(x.clone()); // [tokens, out]
        match adapters {
            AdapterSelection::Base => base,
            AdapterSelection::All { slot, dropout } => match self.adapter(*slot) {
                Some(adapter) => {
                    let x = self.drop_inputs(x, *dropout); // [tokens, in]
                    let delta = adapter.forward(x); // [tokens, out]
                    constant_like(base, &delta) + delta
                }
                None => base,
            },
            AdapterSelection::PerRow(rows) => self.add_per_row(base, &x, rows),
        }
    }

    /// `x·Wᵀ + bias`: `[tokens, in]` → `[tokens, out]`.
    fn forward_base(&self, x: Tensor<2>) -> Tensor<2> {
        let y = self.weight.forward(x); // [tokens, out]
        match &self.bias {
            Some(bias) => {
                let bias = constant_like(bias.clone(), &y).cast(y.dtype());
                constant_like(y, &bias) + bias.unsqueeze() // [tokens, out]
            }
            None => y,
        }
    }

    /// Adds each group's adapter to its rows of `base [tokens, out]`; other rows keep their value.
    fn add_per_row(&self, base: Tensor<2>, x: &Tensor<2>, rows: &RowGroups) -> Tensor<2> {
        assert_eq!(x.dims()[0], rows.num_rows, "rows of the adapter selection");
        rows.groups.iter().fold(base, |y, group| {
            let Some(adapter) = self.adapter(group.slot) else {
                return y;
            };
            let x = x.clone().select(0, group.rows.clone()); // [group, in]
            let delta = adapter.forward(x); // [group, out]
            constant_like(y, &delta).select_assign(
                0,
                group.rows.clone(),
                delta,
                IndexingUpdateOp::Add,
            ) // [tokens, out]
        })
    }

    fn drop_inputs(&self, x: Tensor<2>, dropout: Option<Dropout>) -> Tensor<2> {
        match dropout {
            Some(dropout) if dropout.p > 0.0 => {
                let mask = dropout.mask(self.id, x.dims(), &x.device().inner());
                let mask = constant_like(mask.cast(x.dtype()), &x); // [tokens, in]
                x * mask
            }
            _ => x,
        }
    }
}

impl LoraWeights {
    /// `scaling·(x·Aᵀ)·Bᵀ`.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` → `[tokens, out]`
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let low = product(x, &self.a); // [tokens, r]
        product(low * self.scaling, &self.b) // [tokens, out]
    }
}

/// `x · wᵀ` where `w` may be in training.
fn product(x: Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
    if !w.is_tracked() {
        return kernels::dense_linear(x, w.clone());
    }
    let w = w.clone().cast(x.dtype());
    constant_like(x, &w).matmul(w.transpose())
}
