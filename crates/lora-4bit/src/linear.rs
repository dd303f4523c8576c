//! A linear layer: a dense or NF4 weight, an optional bias, and any number of LoRA adapters.
//!
//! `y = x·Wᵀ + bias + scaling·(dropout(x)·Aᵀ)·Bᵀ`, where the last term exists for the rows that use an adapter. The
//! adapter is never merged into the weight, so one base weight serves requests with different adapters in one batch.
//!
//! Source: LoRA (<https://arxiv.org/abs/2106.09685>), `peft/tuners/lora/layer.py` of PEFT.

use burn::tensor::{DType, IndexingUpdateOp, Tensor};

use crate::adapter_selection::{AdapterSelection, Dropout, RowGroups, StackedRows, is_cpu};
use crate::kernels::{self, ComputeDtype, Norm};
use crate::lora_stack::LoraStack;
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
    /// Type in which the base weight is multiplied.
    pub compute: ComputeDtype,
    adapters: Vec<Option<LoraWeights>>,
    stack: Option<LoraStack>,
}

/// One LoRA adapter of one layer.
#[derive(Clone, Debug)]
pub struct LoraWeights {
    /// `[r, in]`, f32.
    pub a: Tensor<2>,
    /// The transpose of B, `[r, out]`, f32: both products and their gradients read it along its rows.
    pub b_t: Tensor<2>,
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
        if let Some(LoraWeights { a, b_t, .. }) = &adapter {
            let r = a.dims()[0];
            assert_eq!(a.dims(), [r, self.in_features()], "shape of LoRA's A");
            let expected = [r, self.out_features()];
            assert_eq!(b_t.dims(), expected, "shape of LoRA's B, transposed");
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

    /// Copies the adapters into one tensor, for [`AdapterSelection::Stacked`]; in bf16 if the base product is computed in
    /// that. Call it whenever adapters have changed.
    ///
    /// The result is a sum over all of it, `[1]`, if there is any: reading it tells whether the device had room. On the CPU
    /// nothing is stacked.
    pub fn stack_adapters(&mut self) -> Option<Tensor<1>> {
        let device = self.weight.device();
        if is_cpu(&device) {
            return None;
        }
        let dtype = match self.compute {
            ComputeDtype::Bf16 if device.supports_dtype(DType::BF16) => DType::BF16,
            _ => DType::F32,
        };
        self.stack = LoraStack::new(&self.adapters, dtype);
        let stack = self.stack.as_ref()?;
        let sum = |tensor: &Tensor<1>| tensor.clone().cast(DType::F32).sum();
        Some(sum(&stack.a) + sum(&stack.b))
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
        #[cfg(feature = "gpu")]
        if let Some(y) = self.forward_stacked(&x, None, adapters) {
            return y;
        }
        let base = self.forward_base(x.clone()); // [tokens, out]
        self.add_adapters(base, x, adapters)
    }

    /// Applies the layer and adds the result to `residual`.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` f32, `residual [tokens, out]` f32 → `[tokens, out]` f32
    pub fn forward_onto(
        &self,
        residual: Tensor<2>,
        x: Tensor<2>,
        adapters: &AdapterSelection,
    ) -> Tensor<2> {
        #[cfg(feature = "gpu")]
        {
            if let Some(y) = self.forward_stacked(&x, Some(&residual), adapters) {
                return y;
            }
            let base = self.for_device(&AdapterSelection::Base);
            if let Some(y) = kernels::device_linear(&x, base, Some(&residual), self.compute) {
                return self.add_adapters(y, x, adapters);
            }
        }
        residual + self.forward(x, adapters)
    }

    /// The type that the input is best given in: [`Linear::forward`] takes f32, and on a GPU also what it would round f32 to.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`: any tensor like the input, of which only the shape, the type and the device are looked at.
    pub fn input_dtype(&self, x: &Tensor<2>, adapters: &AdapterSelection) -> DType {
        #[cfg(feature = "gpu")]
        if matches!(
            adapters,
            AdapterSelection::Base | AdapterSelection::Stacked(_)
        ) {
            let dtype = kernels::device_input_dtype(x, &self.weight, self.compute);
            return dtype.unwrap_or(DType::F32);
        }
        let _ = (x, adapters);
        DType::F32
    }

    /// Applies three layers to the same input, if a GPU does that at once; otherwise call each. With a `norm`, if it also
    /// normalises the input.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` f32 → `[tokens, out]` f32 for each layer
    pub fn forward_three(
        layers: [&Self; 3],
        x: &Tensor<2>,
        norm: Option<Norm<'_>>,
        adapters: &AdapterSelection,
    ) -> Option<[Tensor<2>; 3]> {
        #[cfg(feature = "gpu")]
        {
            if norm.is_some() && !matches!(adapters, AdapterSelection::Base) {
                return None;
            }
            let compute = layers[0].compute;
            let all_at_once = |adapters| {
                let layers = layers.map(|layer| layer.for_device(adapters));
                kernels::device_three_linears(x, norm, layers, compute)
            };
            if layers.iter().any(|layer| layer.uses_stack(adapters))
                && let Some(results) = all_at_once(adapters)
            {
                return Some(results);
            }
            let results = all_at_once(&AdapterSelection::Base)?;
            if let AdapterSelection::Stacked(rows) = adapters {
                return Some(add_stacked(layers, results, x, rows));
            }
            let mut layers = layers.into_iter();
            Some(results.map(|y| match layers.next() {
                Some(layer) => layer.add_adapters(y, x.clone(), adapters),
                None => unreachable!("a layer for each result"),
            }))
        }
        #[cfg(not(feature = "gpu"))]
        {
            let _ = (layers, x, norm, adapters);
            None
        }
    }

    /// `silu(gate(x)) * up(x)`, if the device does that at once: a GPU without adapters or with stacked ones, a CPU with AMX
    /// without adapters. With a `norm`, if it also normalises the input.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]`, see [`Linear::input_dtype`] → `[tokens, out]`, f32 or bf16
    pub fn forward_gated(
        gate: &Self,
        up: &Self,
        x: &Tensor<2>,
        norm: Option<Norm<'_>>,
        adapters: &AdapterSelection,
    ) -> Option<Tensor<2>> {
        if gate.bias.is_some() || up.bias.is_some() {
            return None;
        }
        if norm.is_none() && matches!(adapters, AdapterSelection::Base) {
            let weights = [&gate.weight, &up.weight];
            if let Some(y) = kernels::cpu_gated(x, weights, gate.compute) {
                return Some(y);
            }
        }
        #[cfg(feature = "gpu")]
        {
            let at_once = |adapters| {
                let [gate_layer, up_layer] = [gate, up].map(|layer| layer.for_device(adapters));
                kernels::device_gated(x, norm, gate_layer, up_layer, gate.compute)
            };
            match adapters {
                AdapterSelection::Stacked(rows) if gate.stack.is_some() || up.stack.is_some() => {
                    let y = at_once(adapters);
                    if y.is_some() || norm.is_some() {
                        return y;
                    }
                    let stacks = [gate.stack.as_ref()?, up.stack.as_ref()?];
                    let weights = [&gate.weight, &up.weight];
                    let bases = kernels::device_two_linears(x, weights, gate.compute)?;
                    kernels::device_gated_lora(x, bases, stacks, rows)
                }
                AdapterSelection::Base | AdapterSelection::Stacked(_) => at_once(adapters),
                _ => None,
            }
        }
        #[cfg(not(feature = "gpu"))]
        {
            None
        }
    }

    /// The layer, if it lives on a GPU, with stacked adapters that are added in the same launch.
    #[cfg(feature = "gpu")]
    fn forward_stacked(
        &self,
        x: &Tensor<2>,
        residual: Option<&Tensor<2>>,
        adapters: &AdapterSelection,
    ) -> Option<Tensor<2>> {
        let layer = self.for_device(adapters);
        layer.stack?;
        kernels::device_linear(x, layer, residual, self.compute)
    }

    /// What a GPU computes of the layer in one launch.
    #[cfg(feature = "gpu")]
    fn for_device<'a>(&'a self, adapters: &'a AdapterSelection) -> kernels::DeviceLayer<'a> {
        kernels::DeviceLayer {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            stack: match adapters {
                AdapterSelection::Stacked(rows) => {
                    self.assert_stacked();
                    self.stack.as_ref().map(|stack| (stack, &**rows))
                }
                _ => None,
            },
        }
    }

    #[cfg(feature = "gpu")]
    fn uses_stack(&self, adapters: &AdapterSelection) -> bool {
        matches!(adapters, AdapterSelection::Stacked(_)) && self.stack.is_some()
    }

    fn assert_stacked(&self) {
        assert!(
            self.stack.is_some() || self.adapters.is_empty(),
            "the adapters of layer {} are not stacked",
            self.id
        );
    }

    /// Adds what the adapters make of `x` to `base`.
    fn add_adapters(
        &self,
        base: Tensor<2>,
        x: Tensor<2>,
        adapters: &AdapterSelection,
    ) -> Tensor<2> {
        match adapters {
            AdapterSelection::Base => base,
            AdapterSelection::All { slot, dropout } => match self.adapter(*slot) {
                Some(adapter) => {
                    let x = self.drop_inputs(x, *dropout); // [tokens, in]
                    adapter.add_to(base, x) // [tokens, out]
                }
                None => base,
            },
            AdapterSelection::PerRow(rows) => self.add_per_row(base, &x, rows),
            AdapterSelection::Stacked(rows) => {
                let [y] = add_stacked([self], [base], &x, rows);
                y
            }
        }
    }

    /// `x·Wᵀ + bias`: `[tokens, in]` → `[tokens, out]`.
    fn forward_base(&self, x: Tensor<2>) -> Tensor<2> {
        #[cfg(feature = "gpu")]
        if self.bias.is_some() {
            let layer = self.for_device(&AdapterSelection::Base);
            if let Some(y) = kernels::device_linear(&x, layer, None, self.compute) {
                return y;
            }
        }
        let y = self.weight.forward(x, self.compute); // [tokens, out]
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
            let rows = |tensor: &Tensor<2>| tensor.clone().select(0, group.rows.clone());
            let sum = adapter.add_to(rows(&y), rows(x)); // [group, out]
            y.select_assign(0, group.rows.clone(), sum, IndexingUpdateOp::Assign) // [tokens, out]
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

/// Adds what the stacked adapters of layers make of `x` to their base products.
fn add_stacked<const N: usize>(
    layers: [&Linear; N],
    bases: [Tensor<2>; N],
    x: &Tensor<2>,
    rows: &StackedRows,
) -> [Tensor<2>; N] {
    let stacks = layers.map(|layer| {
        layer.assert_stacked();
        layer.stack.as_ref()
    });
    kernels::add_stacked(x, bases, stacks, rows)
}

impl LoraWeights {
    /// The adapter of `a [r, in]` and `b [out, r]`.
    pub fn new(a: Tensor<2>, b: Tensor<2>, scaling: f32) -> Self {
        let b_t = b.transpose(); // [r, out]
        Self { a, b_t, scaling }
    }

    /// `y + scaling·(x·Aᵀ)·Bᵀ`.
    ///
    /// # Shapes
    ///
    /// `y [tokens, out]`, `x [tokens, in]` → `[tokens, out]`
    pub fn add_to(&self, y: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        kernels::lora_add(y, x, self.a.clone(), self.b_t.clone(), self.scaling)
    }
}
