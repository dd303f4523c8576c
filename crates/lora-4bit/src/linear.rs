//! A linear layer: a dense or NF4 weight, an optional bias, and any number of LoRA adapters.
//!
//! `y = x·Wᵀ + bias + scaling·(dropout(x)·Aᵀ)·Bᵀ`, where the last term exists for the rows that use an adapter. The
//! adapter is never merged into the weight, so one base weight serves requests with different adapters in one batch. An adapter
//! with DoRA scales the result, see [`Dora`](crate::Dora).
//!
//! [`norm_qkv`], [`norm_swiglu`] and [`linear_residual`] are what a decoder layer computes with such layers. They answer on
//! every device; `kernels` decides how many launches they take.

use burn::backend::Dispatch;
use burn::tensor::{DType, IndexingUpdateOp, Tensor};

use crate::adapter_selection::{AdapterSelection, RowGroups, StackedRows};
use crate::dropout::Dropout;
use crate::kernels::{self, Adapters, ComputeDtype, LayerOperand, Maybe, Norm, both};
use crate::lora::{DoraStack, LoraStack, LoraWeights};
use crate::weight::Weight;

/// A linear layer with optional LoRA adapters.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Base weight, `[out, in]`.
    pub weight: Weight,
    /// Base bias, f32: `[out]`.
    pub bias: Option<Tensor<1>>,
    /// Number of the layer within its model: two layers with the same id drop the same inputs.
    pub id: u32,
    /// Type in which the base weight is multiplied.
    pub compute: ComputeDtype,
    adapters: Vec<Option<LoraWeights>>,
    stack: Option<LoraStack>,
}

/// How a layer is computed with a selection of adapters.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each layer, and it is used at once"
)]
enum Path<'a> {
    /// The kernels add the adapters together with the base product.
    Fused(Adapters<Dispatch>),
    /// The kernels add the adapters of a stack, and DoRA scales the result.
    StackedDora {
        stack: &'a LoraStack,
        dora: &'a DoraStack,
        rows: &'a StackedRows,
    },
    /// One adapter, whose input loses what dropout drops.
    Dropped(&'a LoraWeights, Dropout),
    /// One adapter, with DoRA, which scales the result.
    Dora(&'a LoraWeights),
    /// Each adapter is added to its rows of the base product.
    PerRow(&'a RowGroups),
}

/// Queries, keys and values of the normalised input.
///
/// # Shapes
///
/// `x [tokens, in]` f32 → `[tokens, out]` f32 for each layer
///
/// # Panics
///
/// As [`Linear::forward`].
pub fn norm_qkv(
    x: &Tensor<2>,
    norm: Norm<'_>,
    [q, k, v]: [&Linear; 3],
    adapters: &AdapterSelection,
) -> [Tensor<2>; 3] {
    match [q, k, v].map(|layer| layer.operand(adapters)) {
        [Some(q), Some(k), Some(v)] => kernels::norm_linears(x, norm, [q, k, v]),
        _ => {
            let x = kernels::rms_norm(x.clone(), norm); // [tokens, in]
            let project = |layer: &Linear| layer.forward(x.clone(), adapters);
            let (q, (k, v)) = both(&x, || project(q), || both(&x, || project(k), || project(v)));
            [q, k, v]
        }
    }
}

/// The gated half of an MLP on the normalised input: `silu(gate(norm(x))) * up(norm(x))` (SwiGLU, arXiv 2002.05202).
///
/// # Shapes
///
/// `x [tokens, in]` f32 → `[tokens, out]`, f32 or the type to which the next product would round it
///
/// # Panics
///
/// As [`Linear::forward`], and if the weights differ in shape.
pub fn norm_swiglu(
    x: &Tensor<2>,
    norm: Norm<'_>,
    [gate, up]: [&Linear; 2],
    adapters: &AdapterSelection,
) -> Tensor<2> {
    match [gate, up].map(|layer| layer.operand(adapters)) {
        [Some(gate), Some(up)] => kernels::norm_swiglu(x, norm, [gate, up]),
        _ => {
            let x = kernels::rms_norm(x.clone(), norm); // [tokens, in]
            let project = |layer: &Linear| layer.forward(x.clone(), adapters);
            let (gate, up) = both(&x, || project(gate), || project(up)); // [tokens, out]
            kernels::swiglu(gate, up)
        }
    }
}

/// A layer applied to `x`, added to `residual`.
///
/// # Shapes
///
/// `residual [tokens, out]` f32, `x [tokens, in]` → `[tokens, out]` f32
///
/// # Panics
///
/// As [`Linear::forward`], and if `residual` has another shape than the result.
pub fn linear_residual(
    residual: Tensor<2>,
    x: Tensor<2>,
    layer: &Linear,
    adapters: &AdapterSelection,
) -> Tensor<2> {
    match layer.operand(adapters) {
        Some(layer) => kernels::linear(x, layer, Some(residual)),
        None => kernels::add(residual, layer.forward(x, adapters)),
    }
}

impl Linear {
    /// A layer without adapters and with id 0; the bias is kept in f32.
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
            bias: bias.map(|bias| bias.cast(DType::F32)),
            id: 0,
            compute: ComputeDtype::default(),
            adapters: Vec::new(),
            stack: None,
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
    /// If the shapes of A and B don't fit each other and the layer.
    pub fn set_adapter(&mut self, slot: usize, adapter: Option<LoraWeights>) {
        if let Some(LoraWeights { a, b_t, dora, .. }) = &adapter {
            let r = a.dims()[0];
            assert_eq!(a.dims(), [r, self.in_features()], "shape of LoRA's A");
            let expected = [r, self.out_features()];
            assert_eq!(b_t.dims(), expected, "shape of LoRA's B, transposed");
            if let Some(dora) = dora {
                let expected = [self.out_features()];
                assert_eq!(dora.magnitude.dims(), expected, "shape of DoRA's magnitude");
            }
        }
        if slot >= self.adapters.len() {
            self.adapters.resize(slot + 1, None);
        }
        self.adapters[slot] = adapter;
        while let Some(None) = self.adapters.last() {
            self.adapters.pop();
        }
        self.stack = None;
    }

    /// The adapter in `slot`.
    pub fn adapter(&self, slot: usize) -> Option<&LoraWeights> {
        self.adapters.get(slot)?.as_ref()
    }

    /// Computes the norms of DoRA of the adapter in `slot` again, after A or B have changed.
    pub fn update_norm(&mut self, slot: usize) {
        if let Some(Some(adapter)) = self.adapters.get_mut(slot) {
            adapter.update_norm(&self.weight);
            self.stack = None;
        }
    }

    /// The adapter in `slot`, to change it.
    pub fn adapter_mut(&mut self, slot: usize) -> Option<&mut LoraWeights> {
        let adapter = self.adapters.get_mut(slot)?.as_mut()?;
        // The stack holds copies of the adapters as they were.
        self.stack = None;
        Some(adapter)
    }

    /// Copies the adapters into one tensor, for [`AdapterSelection::Stacked`]; in bf16 if the base product is computed in
    /// bf16. Call it whenever adapters have changed.
    ///
    /// The result is a sum over all values, `[1]`, if there is an adapter: reading it tells whether the device had room.
    pub fn stack_adapters(&mut self) -> Option<Tensor<1>> {
        let device = self.weight.device();
        let dtype = match self.compute {
            ComputeDtype::Bf16 if device.supports_dtype(DType::BF16) => DType::BF16,
            _ => DType::F32,
        };
        self.stack = LoraStack::new(&self.adapters, self.bias.as_ref(), dtype);
        self.stack.as_ref().map(LoraStack::sum)
    }

    /// Applies the layer.
    ///
    /// `x` may belong to an autodiff graph while the layer's tensors don't, and the other way round.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` f32 → `[tokens, out]` f32
    ///
    /// # Panics
    ///
    /// If `x` has another width than the weight, if a selection of rows has another length, or if it is
    /// [`AdapterSelection::Stacked`] and adapters have changed since [`Linear::stack_adapters`].
    pub fn forward(&self, x: Tensor<2>, adapters: &AdapterSelection) -> Tensor<2> {
        match self.path(adapters) {
            Path::Fused(adapters) => kernels::linear(x, self.base(adapters), None),
            Path::StackedDora { stack, dora, rows } => {
                let num_rows = x.dims()[0];
                let y = kernels::linear(x, self.base(stack.operand(rows)), None); // [tokens, out]
                dora.scale(y, rows.slots.clone().narrow(0, rows.at, num_rows))
            }
            Path::Dropped(adapter, dropout) => self.forward_dropped(x, adapter, dropout),
            Path::Dora(adapter) => {
                let y = kernels::linear(x, self.base(adapter.operand()), None); // [tokens, out]
                self.scaled(y, adapter)
            }
            Path::PerRow(rows) => {
                let base = kernels::linear(x.clone(), self.base(Adapters::None), None); // [tokens, out]
                self.add_per_row(base, &x, rows)
            }
        }
    }

    /// With one adapter, whose input loses what dropout drops. With DoRA, so does that of the base product in its change.
    fn forward_dropped(&self, x: Tensor<2>, adapter: &LoraWeights, dropout: Dropout) -> Tensor<2> {
        let base = kernels::linear(x.clone(), self.base(Adapters::None), None); // [tokens, out]
        let x = self.drop_inputs(x, dropout);
        let Some(dora) = &adapter.dora else {
            return adapter.add_to(base, x);
        };
        let dropped = self.weight.forward(x.clone(), self.compute); // [tokens, out]
        let extra = adapter.add_to(dropped.clone(), x); // [tokens, out]
        dora.scale_dropped(base, dropped, extra)
    }

    /// The result `y [tokens, out]` of the plain adapter, scaled if it has DoRA.
    fn scaled(&self, y: Tensor<2>, adapter: &LoraWeights) -> Tensor<2> {
        match &adapter.dora {
            Some(dora) => dora.scale(y, self.bias.as_ref()),
            None => y,
        }
    }

    /// The type that the layer takes its input in without a conversion: f32, or on a GPU the type that its product rounds f32
    /// to.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`: any tensor like the input, of which only the shape, the type and the device are read.
    pub fn input_dtype(&self, x: &Tensor<2>, adapters: &AdapterSelection) -> DType {
        match self.operand(adapters) {
            Some(layer) => kernels::input_dtype(x, layer),
            None => DType::F32,
        }
    }

    /// The handles of the layer and of its adapters, where the kernels add these together with the base product.
    fn operand(&self, adapters: &AdapterSelection) -> Option<LayerOperand<Dispatch>> {
        match self.path(adapters) {
            Path::Fused(adapters) => Some(self.base(adapters)),
            Path::StackedDora { .. } | Path::Dropped(..) | Path::Dora(_) | Path::PerRow(_) => None,
        }
    }

    fn path<'a>(&'a self, adapters: &'a AdapterSelection) -> Path<'a> {
        match adapters {
            AdapterSelection::Base => Path::Fused(Adapters::None),
            AdapterSelection::Stacked(rows) => match &self.stack {
                Some(stack) => match stack.dora() {
                    Some(dora) => Path::StackedDora { stack, dora, rows },
                    None => Path::Fused(stack.operand(rows)),
                },
                None => {
                    let has_none = self.adapters.is_empty();
                    assert!(has_none, "layer {}: call stack_adapters first", self.id);
                    Path::Fused(Adapters::None)
                }
            },
            AdapterSelection::All { slot, dropout } => {
                let dropout = dropout.filter(|dropout| dropout.p > 0.0);
                match (self.adapter(*slot), dropout) {
                    (None, _) => Path::Fused(Adapters::None),
                    (Some(adapter), Some(dropout)) => Path::Dropped(adapter, dropout),
                    (Some(adapter), None) if adapter.dora.is_some() => Path::Dora(adapter),
                    (Some(adapter), None) => Path::Fused(adapter.operand()),
                }
            }
            AdapterSelection::PerRow(rows) => Path::PerRow(rows),
        }
    }

    /// The handles of the layer with `adapters`.
    fn base(&self, adapters: Adapters<Dispatch>) -> LayerOperand<Dispatch> {
        LayerOperand {
            weight: self.weight.operand(),
            bias: Maybe::new(self.bias.as_ref()),
            adapters,
            compute: self.compute,
        }
    }

    /// Adds each group's adapter to its rows of `base [tokens, out]`; other rows keep their value.
    fn add_per_row(&self, base: Tensor<2>, x: &Tensor<2>, rows: &RowGroups) -> Tensor<2> {
        assert_eq!(x.dims()[0], rows.num_rows, "rows of the adapter selection");
        rows.groups.iter().fold(base, |y, group| {
            let Some(adapter) = self.adapter(group.slot) else {
                return y;
            };
            let rows = |tensor: &Tensor<2>| tensor.clone().select(0, group.rows.clone());
            let sum = self.scaled(adapter.add_to(rows(&y), rows(x)), adapter); // [group, out]
            y.select_assign(0, group.rows.clone(), sum, IndexingUpdateOp::Assign) // [tokens, out]
        })
    }

    /// `x [tokens, in]` without the values that dropout drops.
    fn drop_inputs(&self, x: Tensor<2>, dropout: Dropout) -> Tensor<2> {
        let mask = dropout.mask(self.id, x.dims(), &x.device().inner()); // [tokens, in]
        x.clone() * mask.cast(x.dtype())
    }
}
