//! The matrix products of a linear layer, as tensor operations with a fast path per backend.
//!
//! | operation | computes | shapes |
//! |---|---|---|
//! | [`dense_linear`] | `x · wᵀ` | `[m, k]`, `[n, k]` → `[m, n]` |
//! | [`dense_linear_t`] | `dy · w` | `[m, n]`, `[n, k]` → `[m, k]` |
//! | `nf4_linear` | `x · wᵀ`, `w` in NF4 | `[m, k]`, `[n, k]` → `[m, n]` |
//! | `nf4_linear_t` | `dy · w`, `w` in NF4 | `[m, n]`, `[n, k]` → `[m, k]` |
//!
//! `x` and `dy` are f32, on a GPU also what the product would round f32 to; a dense `w` is f32, bf16 or f16; sums and results
//! are f32. With [`ComputeDtype::Bf16`] the factors may be rounded to bf16 first, where the hardware multiplies these faster.
//! The transposed products are the gradients of the plain ones with respect to `x`. `w` is a constant: no operation
//! here has a gradient for it.
//!
//! [`lora_add`] adds an adapter's product to the base product: `y + scaling · (x · aᵀ) · b`, with gradients for all four.
//!
//! Rooms: `naive` (each operation written with plain tensor operations; the reference in tests), `cpu` (burn's flex
//! backend), `cube` (CubeCL backends), `autodiff` (gradients).

// Unsafe code is confined to this module: intrinsics and raw pointers of the kernels.
#![allow(unsafe_code)]

mod autodiff;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
pub mod naive;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, ExtensionType, backend_extension};
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

#[cfg(feature = "gpu")]
use crate::adapter_selection::StackedRows;
#[cfg(feature = "gpu")]
use crate::lora_stack::LoraStack;
#[cfg(feature = "gpu")]
use crate::weight::Weight;

/// The type in which the factors of a product are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ComputeDtype {
    /// As they are. On a CPU each row has the same result whatever other rows are multiplied beside it.
    #[default]
    F32,
    /// As the sum of two bf16, 16 bits of precision, on CPUs with AMX when there are many rows. Elsewhere as
    /// [`ComputeDtype::F32`].
    Bf16x2,
    /// Rounded to bf16 (or to the type of a weight in f16) where that is faster: on CPUs with AVX-512-BF16 or AMX when there
    /// are many rows, on GPUs from three rows on (five with NF4). What `bnb_4bit_compute_dtype` and autocast do; sums stay f32. Elsewhere as
    /// [`ComputeDtype::F32`].
    Bf16,
}

/// The tensors of an NF4 weight on one backend.
#[derive(ExtensionType, Clone, Debug)]
pub struct Nf4Operand<B: Backend> {
    /// Two codes a byte, first value in the high four bits: `[ceil(n * k / 2)]` in U8, or in words of four bytes.
    pub packed: IntTensor<B>,
    /// Level of each code, f32: `[16]`.
    pub quant_map: FloatTensor<B>,
    /// Scales of the blocks of 64 values.
    #[extension_type]
    pub absmax: AbsmaxOperand<B>,
    /// `[n, k]`.
    pub shape: [usize; 2],
}

/// The scales of an NF4 weight on one backend, one for each block of 64 values of the flattened matrix.
#[derive(ExtensionType, Clone, Debug)]
pub enum AbsmaxOperand<B: Backend> {
    /// f32: `[blocks]`.
    Single(FloatTensor<B>),
    /// Scale of block `i` is `map[codes[i]] * nested_absmax[i / 256] + offset`.
    Double {
        /// `[blocks]` in U8, or in words of four bytes.
        codes: IntTensor<B>,
        /// f32: `[256]`.
        map: FloatTensor<B>,
        /// f32: `[ceil(blocks / 256)]`.
        nested_absmax: FloatTensor<B>,
        /// Mean of the scales before quantization.
        offset: f32,
    },
}

/// Products with a frozen weight. The bodies given here are the naive ones; a backend with kernels overrides them.
#[backend_extension(Flex, Cube: cfg(feature = "gpu"), Autodiff)]
pub trait LinearOps: Backend {
    /// `x · wᵀ`: `[m, k]`, `[n, k]` → `[m, n]`.
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::dense_linear::<Self>(x, w)
    }

    /// `dy · w`: `[m, n]`, `[n, k]` → `[m, k]`.
    fn dense_linear_t(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::dense_linear_t::<Self>(dy, w)
    }

    /// `x · wᵀ` with `w` in NF4: `[m, k]` → `[m, n]`.
    fn nf4_linear(
        x: FloatTensor<Self>,
        #[extension_type] w: Nf4Operand<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::nf4_linear::<Self>(x, w)
    }

    /// `dy · w` with `w` in NF4: `[m, n]` → `[m, k]`.
    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        #[extension_type] w: Nf4Operand<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::nf4_linear_t::<Self>(dy, w)
    }

    /// The whole weight in f32: `[n, k]`.
    fn nf4_dequantize(#[extension_type] w: Nf4Operand<Self>) -> FloatTensor<Self> {
        naive::dequantize::<Self>(w)
    }
}

/// A root-mean-square norm (arXiv 1910.07467) before a layer.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// `[in]`, f32.
    pub weight: &'a Tensor<1>,
    /// Added to the mean square.
    pub eps: f64,
}

/// A tensor that may be missing: the macro that dispatches operations takes no `Option` within another type.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub enum Extra<B: Backend> {
    /// Missing.
    None,
    /// There.
    Some(FloatTensor<B>),
}

#[cfg(feature = "gpu")]
impl<B: Backend> Extra<B> {
    fn into_option(self) -> Option<FloatTensor<B>> {
        match self {
            Self::None => None,
            Self::Some(tensor) => Some(tensor),
        }
    }
}

#[cfg(feature = "gpu")]
impl Extra<Dispatch> {
    fn new<const D: usize>(tensor: Option<&Tensor<D>>) -> Self {
        tensor.map_or(Self::None, |tensor| {
            Self::Some(tensor.clone().into_dispatch())
        })
    }
}

/// A weight `[n, k]`.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub enum WeightOperand<B: Backend> {
    /// f32, bf16 or f16.
    Dense(FloatTensor<B>),
    /// 4 bits a value and scales.
    Nf4 {
        /// Its tensors.
        #[extension_type]
        weight: Nf4Operand<B>,
    },
}

#[cfg(feature = "gpu")]
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

/// A weight `[n, k]` and its bias `[n]`.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub struct LayerOperand<B: Backend> {
    /// `[n, k]`.
    #[extension_type]
    pub weight: WeightOperand<B>,
    /// `[n]`.
    #[extension_type]
    pub bias: Extra<B>,
}

#[cfg(feature = "gpu")]
impl LayerOperand<Dispatch> {
    fn new(weight: &Weight, bias: Option<&Tensor<1>>) -> Self {
        Self {
            weight: WeightOperand::new(weight),
            bias: Extra::new(bias),
        }
    }
}

/// Root-mean-square normalisation of the rows of `x` before a product, or none.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub struct NormOperand<B: Backend> {
    /// `[k]`, f32.
    #[extension_type]
    pub weight: Extra<B>,
    /// Added to the mean square.
    pub eps: f64,
}

#[cfg(feature = "gpu")]
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
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait DeviceLinearOps: Backend {
    /// The type that `x` is best given in: the one that the product would round it to.
    fn device_input_dtype(
        x: FloatTensor<Self>,
        #[extension_type] w: WeightOperand<Self>,
        compute: ComputeDtype,
    ) -> DType;

    /// `x · wᵀ + bias + residual`.
    fn device_linear(
        x: FloatTensor<Self>,
        #[extension_type] layer: LayerOperand<Self>,
        #[extension_type] residual: Extra<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self>;

    /// `norm(x) · wᵀ + bias` for three layers.
    fn device_three_linears(
        x: FloatTensor<Self>,
        #[extension_type] first: LayerOperand<Self>,
        #[extension_type] second: LayerOperand<Self>,
        #[extension_type] third: LayerOperand<Self>,
        #[extension_type] norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)>;

    /// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)`, in f32 or in the type of the weights.
    fn device_gated(
        x: FloatTensor<Self>,
        #[extension_type] gate: WeightOperand<Self>,
        #[extension_type] up: WeightOperand<Self>,
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

    /// The adapters' products of each row added to base products of layers with the same input; the slots start at `at`. For
    /// a missing layer the result is the first one's.
    fn device_add_lora(
        x: FloatTensor<Self>,
        #[extension_type] first: LoraOperand<Self>,
        #[extension_type] second: ExtraLora<Self>,
        #[extension_type] third: ExtraLora<Self>,
        slots: IntTensor<Self>,
        at: usize,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)>;

    /// `silu(gate) · up` with the adapters' products of each row added to both first; in the type of `x`.
    fn device_gated_lora(
        x: FloatTensor<Self>,
        #[extension_type] gate: LoraOperand<Self>,
        #[extension_type] up: LoraOperand<Self>,
        slots: IntTensor<Self>,
        at: usize,
    ) -> Option<FloatTensor<Self>>;
}

/// A base product and stacked adapters, see [`LoraStack`].
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub struct LoraOperand<B: Backend> {
    /// `[rows, out]`, f32.
    pub y: FloatTensor<B>,
    /// `[slots * rank * in]`.
    pub a: FloatTensor<B>,
    /// `[slots * rank * out]`.
    pub b_t: FloatTensor<B>,
    /// Ranks of the stack.
    pub rank: usize,
}

#[cfg(feature = "gpu")]
impl LoraOperand<Dispatch> {
    fn new(y: Tensor<2>, stack: &LoraStack) -> Self {
        Self {
            y: y.into_dispatch(),
            a: stack.a.clone().into_dispatch(),
            b_t: stack.b_t.clone().into_dispatch(),
            rank: stack.rank,
        }
    }
}

/// [`LoraOperand`], or none.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub enum ExtraLora<B: Backend> {
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
#[cfg(feature = "gpu")]
fn on_gpu(x: &Tensor<2>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Cube(_))
}

/// The type that `x`, if it lives on a GPU, is best given to a product in.
#[cfg(feature = "gpu")]
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

/// `x · wᵀ + bias + residual`, if `x` lives on a GPU.
#[cfg(feature = "gpu")]
pub(crate) fn device_linear(
    x: &Tensor<2>,
    weight: &Weight,
    bias: Option<&Tensor<1>>,
    residual: Option<&Tensor<2>>,
    compute: ComputeDtype,
) -> Option<Tensor<2>> {
    on_gpu(x).then(|| {
        let [n, k] = weight.shape();
        check_inner("device_linear", x.dims()[1], k);
        if let Some(residual) = residual {
            assert_eq!(residual.dims(), [x.dims()[0], n], "device_linear: residual");
        }
        let (layer, residual) = (LayerOperand::new(weight, bias), Extra::new(residual));
        let x = x.clone().into_dispatch();
        Tensor::from_dispatch(Dispatch::device_linear(x, layer, residual, compute))
    })
}

/// `norm(x) · wᵀ + bias` for three layers, if a GPU does that at once.
#[cfg(feature = "gpu")]
pub(crate) fn device_three_linears(
    x: &Tensor<2>,
    norm: Option<Norm<'_>>,
    layers: [(&Weight, Option<&Tensor<1>>); 3],
    compute: ComputeDtype,
) -> Option<[Tensor<2>; 3]> {
    if !on_gpu(x) {
        return None;
    }
    for (weight, _) in layers {
        check_inner("device_three_linears", x.dims()[1], weight.shape()[1]);
    }
    let [first, second, third] = layers.map(|(weight, bias)| LayerOperand::new(weight, bias));
    let (x, norm) = (x.clone().into_dispatch(), NormOperand::new(norm));
    let (a, b, c) = Dispatch::device_three_linears(x, first, second, third, norm, compute)?;
    Some([a, b, c].map(Tensor::from_dispatch))
}

/// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)`, if a GPU does that at once.
#[cfg(feature = "gpu")]
pub(crate) fn device_gated(
    x: &Tensor<2>,
    norm: Option<Norm<'_>>,
    gate: &Weight,
    up: &Weight,
    compute: ComputeDtype,
) -> Option<Tensor<2>> {
    if !on_gpu(x) {
        return None;
    }
    check_inner("device_gated", x.dims()[1], gate.shape()[1]);
    assert_eq!(gate.shape(), up.shape(), "device_gated: gate and up");
    let (x, norm) = (x.clone().into_dispatch(), NormOperand::new(norm));
    let [gate, up] = [gate, up].map(WeightOperand::new);
    Dispatch::device_gated(x, gate, up, norm, compute).map(Tensor::from_dispatch)
}

/// `x · wᵀ` for two layers, if `x` lives on a GPU.
#[cfg(feature = "gpu")]
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
#[cfg(feature = "gpu")]
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
    let first = LoraOperand::new(y.clone(), stack);
    let mut extra = || match layers.next() {
        Some((y, stack)) => ExtraLora::Some {
            layer: LoraOperand::new(y.clone(), stack),
        },
        None => ExtraLora::None,
    };
    let (second, third) = (extra(), extra());
    let slots = rows.slots.clone().into_dispatch();
    let added = Dispatch::device_add_lora(
        x.clone().into_dispatch(),
        first,
        second,
        third,
        slots,
        rows.at,
    );
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
#[cfg(feature = "gpu")]
pub(crate) fn device_gated_lora(
    x: &Tensor<2>,
    [gate, up]: [Tensor<2>; 2],
    [gate_stack, up_stack]: [&LoraStack; 2],
    rows: &StackedRows,
) -> Option<Tensor<2>> {
    let gate = LoraOperand::new(gate, gate_stack);
    let up = LoraOperand::new(up, up_stack);
    let (x, slots) = (
        x.clone().into_dispatch(),
        rows.slots.clone().into_dispatch(),
    );
    Dispatch::device_gated_lora(x, gate, up, slots, rows.at).map(Tensor::from_dispatch)
}

/// The product of a LoRA adapter, on the plain CPU backend.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait LoraOps: Backend {
    /// `y + scaling · (x · aᵀ) · b`: `[m, n]`, `[m, k]`, `[r, k]`, `[r, n]`, all f32 → `[m, n]`.
    fn lora_add(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        scaling: f32,
    ) -> FloatTensor<Self>;
}

/// `y + scaling · (x · aᵀ) · b`, where `b` is the transpose of LoRA's B.
///
/// # Shapes
///
/// `y [m, n]`, `x [m, k]`, `a [r, k]`, `b [r, n]` → `[m, n]`
pub fn lora_add(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scaling: f32) -> Tensor<2> {
    let _span = trace_span!("lora_add").entered();
    let ([m, n], [r, k]) = (y.dims(), a.dims());
    assert_eq!(x.dims(), [m, k], "lora_add: x");
    assert_eq!(b.dims(), [r, n], "lora_add: b");
    let on_cpu = [&y, &x, &a, &b].iter().all(|tensor| {
        let device = tensor.device().without_autodiff();
        tensor.dtype() == DType::F32 && matches!(device.as_dispatch(), DispatchDevice::Flex(_))
    });
    if !on_cpu {
        return naive::lora_add(y, x, a, b, scaling);
    }
    let [y, x, a, b] = [y, x, a, b].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as LoraOps>::lora_add(y, x, a, b, scaling))
}

/// `x · wᵀ` with a constant `w`.
///
/// # Shapes
///
/// `x [m, k]`, `w [n, k]` → `[m, n]`
pub fn dense_linear(x: Tensor<2>, w: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
    let [n, k] = w.dims();
    let _span = trace_span!("dense_linear", n, k).entered();
    check_inner("dense_linear", x.dims()[1], k);
    let y = <Dispatch as LinearOps>::dense_linear(x.into_dispatch(), w.into_dispatch(), compute);
    Tensor::from_dispatch(y)
}

/// `dy · w` with a constant `w`: the gradient of [`dense_linear`] with respect to `x`.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]`
pub fn dense_linear_t(dy: Tensor<2>, w: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
    let [n, k] = w.dims();
    let _span = trace_span!("dense_linear_t", n, k).entered();
    check_inner("dense_linear_t", dy.dims()[1], n);
    let dx =
        <Dispatch as LinearOps>::dense_linear_t(dy.into_dispatch(), w.into_dispatch(), compute);
    Tensor::from_dispatch(dx)
}

/// `x · wᵀ` with a constant `w` in NF4.
///
/// # Shapes
///
/// `x [m, k]`, `w [n, k]` → `[m, n]`
pub(crate) fn nf4_linear(
    x: Tensor<2>,
    w: Nf4Operand<Dispatch>,
    compute: ComputeDtype,
) -> Tensor<2> {
    let [n, k] = w.shape;
    let _span = trace_span!("nf4_linear", n, k).entered();
    check_inner("nf4_linear", x.dims()[1], k);
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_linear(
        x.into_dispatch(),
        w,
        compute,
    ))
}

/// `dy · w` with a constant `w` in NF4: the gradient of [`nf4_linear`] with respect to `x`.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]`
pub(crate) fn nf4_linear_t(
    dy: Tensor<2>,
    w: Nf4Operand<Dispatch>,
    compute: ComputeDtype,
) -> Tensor<2> {
    let [n, k] = w.shape;
    let _span = trace_span!("nf4_linear_t", n, k).entered();
    check_inner("nf4_linear_t", dy.dims()[1], n);
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_linear_t(
        dy.into_dispatch(),
        w,
        compute,
    ))
}

/// The whole of a weight in NF4, in f32: `[n, k]`.
pub(crate) fn nf4_dequantize(w: Nf4Operand<Dispatch>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_dequantize(w))
}

fn check_inner(op: &str, left: usize, right: usize) {
    assert_eq!(
        left, right,
        "{op}: inner dimensions {left} and {right} differ"
    );
}
