//! Products and what comes before and after them in a model, on a GPU outside of autodiff graphs.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, ExtensionType, backend_extension};
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use super::{ComputeDtype, Nf4Operand, Norm, check_inner, naive};
use crate::adapter_selection::StackedRows;
use crate::lora_stack::LoraStack;
use crate::weight::Weight;

/// A tensor that may be missing: the macro that dispatches operations takes no `Option` within another type.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum Extra<B: Backend> {
    /// Missing.
    None,
    /// There.
    Some(FloatTensor<B>),
}

impl<B: Backend> Extra<B> {
    pub(super) fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

impl Extra<Dispatch> {
    fn new<const D: usize>(tensor: Option<&Tensor<D>>) -> Self {
        tensor.map_or(Self::None, |tensor| {
            Self::Some(tensor.clone().into_dispatch())
        })
    }
}

/// A weight `[n, k]`.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum WeightOperand<B: Backend> {
    /// f32, bf16 or f16.
    Dense(FloatTensor<B>),
    /// 4 bits a value and scales.
    Nf4 {
        /// Its tensors.
        #[extension_type]
        weight: Nf4Operand<B>,
    },
}

impl WeightOperand<Dispatch> {
    fn new(weight: &Weight) -> Self {
        match weight {
            Weight::Dense(weight) => Self::Dense(weight.clone().into_dispatch()),
            Weight::Nf4(weight) => Self::Nf4 {
                weight: weight.operand(),
            },
        }
    }
}

/// A weight `[n, k]`, its bias `[n]`, and its adapters.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct LayerOperand<B: Backend> {
    /// `[n, k]`.
    #[extension_type]
    pub weight: WeightOperand<B>,
    /// `[n]`.
    #[extension_type]
    pub bias: Extra<B>,
    /// Added in the same launch, or the operation gives up.
    #[extension_type]
    pub stack: ExtraStack<B>,
}

impl LayerOperand<Dispatch> {
    fn new(layer: DeviceLayer<'_>) -> Self {
        Self {
            weight: WeightOperand::new(layer.weight),
            bias: Extra::new(layer.bias),
            stack: match layer.stack {
                Some((stack, rows)) => ExtraStack::Some {
                    stack: StackOperand::new(stack, rows),
                },
                None => ExtraStack::None,
            },
        }
    }
}

/// What an operation computes of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceLayer<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) bias: Option<&'a Tensor<1>>,
    pub(crate) stack: Option<(&'a LoraStack, &'a StackedRows)>,
}

/// Stacked adapters of a layer, see [`LoraStack`], and the slot of each row of its input.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct StackOperand<B: Backend> {
    /// `[slots * rank * in]`.
    pub a: FloatTensor<B>,
    /// `[out * slots * rank]` and more.
    pub b: FloatTensor<B>,
    /// Ranks of the stack.
    pub rank: usize,
    /// Slots of the stack.
    pub num_slots: usize,
    /// The slot of each row, from `at` on, or -1.
    pub slots: IntTensor<B>,
    /// See `slots`.
    pub at: usize,
}

impl StackOperand<Dispatch> {
    fn new(stack: &LoraStack, rows: &StackedRows) -> Self {
        Self {
            a: stack.a.clone().into_dispatch(),
            b: stack.b.clone().into_dispatch(),
            rank: stack.rank,
            num_slots: stack.num_slots,
            slots: rows.slots.clone().into_dispatch(),
            at: rows.at,
        }
    }
}

/// [`StackOperand`], or none.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum ExtraStack<B: Backend> {
    /// Missing.
    None,
    /// There.
    Some {
        /// Its tensors.
        #[extension_type]
        stack: StackOperand<B>,
    },
}

/// Root-mean-square normalisation of the rows of `x` before a product, or none.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct NormOperand<B: Backend> {
    /// `[k]`, f32.
    #[extension_type]
    pub weight: Extra<B>,
    /// Added to the mean square.
    pub eps: f64,
}

impl NormOperand<Dispatch> {
    fn new(norm: Option<Norm<'_>>) -> Self {
        Self {
            weight: Extra::new(norm.map(|norm| norm.weight)),
            eps: norm.map_or(0.0, |norm| norm.eps),
        }
    }
}

/// Products and what comes before and after them in a model, on a GPU outside of autodiff graphs.
///
/// `None` is an answer where single operations are to do the same.
#[backend_extension(Cube)]
pub(crate) trait DeviceLinearOps: Backend {
    /// The type that `x` is best given in: the one that the product would round it to.
    fn device_input_dtype(
        x: FloatTensor<Self>,
        #[extension_type] w: WeightOperand<Self>,
        compute: ComputeDtype,
    ) -> DType;

    /// `x · wᵀ + bias + residual`. `None` only for a layer with adapters.
    fn device_linear(
        x: FloatTensor<Self>,
        #[extension_type] layer: LayerOperand<Self>,
        #[extension_type] residual: Extra<Self>,
        compute: ComputeDtype,
    ) -> Option<FloatTensor<Self>>;

    /// `norm(x) · wᵀ + bias` for three layers.
    fn device_three_linears(
        x: FloatTensor<Self>,
        #[extension_type] first: LayerOperand<Self>,
        #[extension_type] second: LayerOperand<Self>,
        #[extension_type] third: LayerOperand<Self>,
        #[extension_type] norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)>;

    /// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)` of layers without biases, in f32 or in the type of the weights.
    fn device_gated(
        x: FloatTensor<Self>,
        #[extension_type] gate: LayerOperand<Self>,
        #[extension_type] up: LayerOperand<Self>,
        #[extension_type] norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> Option<FloatTensor<Self>>;

    /// `x · wᵀ` for two layers.
    fn device_two_linears(
        x: FloatTensor<Self>,
        #[extension_type] first: WeightOperand<Self>,
        #[extension_type] second: WeightOperand<Self>,
        compute: ComputeDtype,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// The adapters' products of each row added to base products of layers with the same input and slots. For a missing layer
    /// the result is the first one's.
    fn device_add_lora(
        x: FloatTensor<Self>,
        #[extension_type] first: LoraOperand<Self>,
        #[extension_type] second: ExtraLora<Self>,
        #[extension_type] third: ExtraLora<Self>,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)>;

    /// `silu(gate) · up` with the adapters' products of each row added to both first, with the same slots; in the type of `x`.
    fn device_gated_lora(
        x: FloatTensor<Self>,
        #[extension_type] gate: LoraOperand<Self>,
        #[extension_type] up: LoraOperand<Self>,
    ) -> Option<FloatTensor<Self>>;
}

/// A base product and stacked adapters.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct LoraOperand<B: Backend> {
    /// `[rows, out]`, f32.
    pub y: FloatTensor<B>,
    /// The adapters.
    #[extension_type]
    pub stack: StackOperand<B>,
}

impl LoraOperand<Dispatch> {
    fn new(y: Tensor<2>, stack: &LoraStack, rows: &StackedRows) -> Self {
        Self {
            y: y.into_dispatch(),
            stack: StackOperand::new(stack, rows),
        }
    }
}

/// [`LoraOperand`], or none.
#[derive(ExtensionType, Clone, Debug)]
pub(crate) enum ExtraLora<B: Backend> {
    /// Missing.
    None,
    /// There.
    Some {
        /// Its tensors.
        #[extension_type]
        layer: LoraOperand<B>,
    },
}

/// Whether a tensor lives where [`DeviceLinearOps`] run.
pub(super) fn on_gpu(x: &Tensor<2>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Cube(_))
}

/// The type that `x`, if it lives on a GPU, is best given to a product in.
pub(crate) fn device_input_dtype(
    x: &Tensor<2>,
    w: &Weight,
    compute: ComputeDtype,
) -> Option<DType> {
    on_gpu(x).then(|| {
        let x = x.clone().into_dispatch();
        Dispatch::device_input_dtype(x, WeightOperand::new(w), compute)
    })
}

/// `x · wᵀ + bias + residual`, if `x` lives on a GPU; with the layer's adapters, if the GPU adds them in the same launch.
pub(crate) fn device_linear(
    x: &Tensor<2>,
    layer: DeviceLayer<'_>,
    residual: Option<&Tensor<2>>,
    compute: ComputeDtype,
) -> Option<Tensor<2>> {
    if !on_gpu(x) {
        return None;
    }
    let [n, k] = layer.weight.shape();
    check_inner("device_linear", x.dims()[1], k);
    if let Some(residual) = residual {
        assert_eq!(residual.dims(), [x.dims()[0], n], "device_linear: residual");
    }
    let (layer, residual) = (LayerOperand::new(layer), Extra::new(residual));
    let x = x.clone().into_dispatch();
    Dispatch::device_linear(x, layer, residual, compute).map(Tensor::from_dispatch)
}

/// `norm(x) · wᵀ + bias` for three layers, if a GPU does that at once.
pub(crate) fn device_three_linears(
    x: &Tensor<2>,
    norm: Option<Norm<'_>>,
    layers: [DeviceLayer<'_>; 3],
    compute: ComputeDtype,
) -> Option<[Tensor<2>; 3]> {
    if !on_gpu(x) {
        return None;
    }
    for layer in layers {
        let inner = layer.weight.shape()[1];
        check_inner("device_three_linears", x.dims()[1], inner);
    }
    let [first, second, third] = layers.map(LayerOperand::new);
    let (x, norm) = (x.clone().into_dispatch(), NormOperand::new(norm));
    let (a, b, c) = Dispatch::device_three_linears(x, first, second, third, norm, compute)?;
    Some([a, b, c].map(Tensor::from_dispatch))
}

/// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)` of layers without biases, if a GPU does that at once.
pub(crate) fn device_gated(
    x: &Tensor<2>,
    norm: Option<Norm<'_>>,
    gate: DeviceLayer<'_>,
    up: DeviceLayer<'_>,
    compute: ComputeDtype,
) -> Option<Tensor<2>> {
    if !on_gpu(x) {
        return None;
    }
    check_inner("device_gated", x.dims()[1], gate.weight.shape()[1]);
    let shapes = [gate, up].map(|layer| layer.weight.shape());
    assert_eq!(shapes[0], shapes[1], "device_gated: gate and up");
    let (x, norm) = (x.clone().into_dispatch(), NormOperand::new(norm));
    let [gate, up] = [gate, up].map(LayerOperand::new);
    Dispatch::device_gated(x, gate, up, norm, compute).map(Tensor::from_dispatch)
}

/// `x · wᵀ` for two layers, if `x` lives on a GPU.
pub(crate) fn device_two_linears(
    x: &Tensor<2>,
    weights: [&Weight; 2],
    compute: ComputeDtype,
) -> Option<[Tensor<2>; 2]> {
    if !on_gpu(x) {
        return None;
    }
    for weight in weights {
        check_inner("device_two_linears", x.dims()[1], weight.shape()[1]);
    }
    let [first, second] = weights.map(WeightOperand::new);
    let x = x.clone().into_dispatch();
    let (a, b) = Dispatch::device_two_linears(x, first, second, compute);
    Some([a, b].map(Tensor::from_dispatch))
}

/// Adds what the stacked adapters of up to three layers make of `x` to their base products, on a GPU. Layers without a stack
/// keep theirs.
pub(crate) fn device_add_lora<const N: usize>(
    x: &Tensor<2>,
    bases: [Tensor<2>; N],
    stacks: [Option<&LoraStack>; N],
    rows: &StackedRows,
) -> [Tensor<2>; N] {
    let _span = trace_span!("device_add_lora").entered();
    assert!(N <= 3, "{N} layers at once");
    let layers = bases.iter().zip(stacks);
    let mut layers = layers.filter_map(|(y, stack)| Some((y, stack?)));
    let Some((y, stack)) = layers.next() else {
        return bases;
    };
    let first = LoraOperand::new(y.clone(), stack, rows);
    let mut extra = || match layers.next() {
        Some((y, stack)) => ExtraLora::Some {
            layer: LoraOperand::new(y.clone(), stack, rows),
        },
        None => ExtraLora::None,
    };
    let (second, third) = (extra(), extra());
    let added = Dispatch::device_add_lora(x.clone().into_dispatch(), first, second, third);
    let mut stacks = stacks.into_iter();
    let Some((first, second, third)) = added else {
        return bases.map(|y| match stacks.next().flatten() {
            Some(stack) => naive::add_stacked(y, x.clone(), stack, rows),
            None => y,
        });
    };
    let mut added = [first, second, third]
        .into_iter()
        .map(Tensor::from_dispatch);
    bases.map(|y| match stacks.next().flatten() {
        Some(_) => added.next().unwrap_or(y),
        None => y,
    })
}

/// `silu(gate) · up` with what the stacked adapters make of `x` added to both first, if a GPU does that at once.
pub(crate) fn device_gated_lora(
    x: &Tensor<2>,
    [gate, up]: [Tensor<2>; 2],
    [gate_stack, up_stack]: [&LoraStack; 2],
    rows: &StackedRows,
) -> Option<Tensor<2>> {
    let gate = LoraOperand::new(gate, gate_stack, rows);
    let up = LoraOperand::new(up, up_stack, rows);
    let x = x.clone().into_dispatch();
    Dispatch::device_gated_lora(x, gate, up).map(Tensor::from_dispatch)
}
