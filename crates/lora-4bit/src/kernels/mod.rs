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
//! `cpu_gated` is `silu(x · gateᵀ) · (x · upᵀ)`, on CPUs with AMX: neither product goes through memory by itself.
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
#[cfg(feature = "gpu")]
mod device;
pub mod naive;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, ExtensionType, backend_extension};
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use crate::adapter_selection::StackedRows;
use crate::lora_stack::LoraStack;
use crate::weight::Weight;

pub use crate::compute_dtype::ComputeDtype;

pub(crate) use cpu::simd::bytes::{
    ByteFactor, STEP as BYTE_STEP, SplitRow, W_ROWS as BYTE_ROWS, is_fast as bytes_are_fast,
};

#[cfg(feature = "gpu")]
pub(crate) use device::{
    DeviceLayer, device_gated, device_gated_lora, device_input_dtype, device_linear,
    device_three_linears, device_two_linears,
};

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

/// The first half of an MLP, on the plain CPU backend.
#[backend_extension(Flex)]
pub(crate) trait GatedOps: Backend {
    /// `silu(x · gateᵀ) · (x · upᵀ)`: `[m, k]`, `[n, k]` twice → `[m, n]`.
    fn dense_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self>;
}

/// `silu(x · gateᵀ) · (x · upᵀ)`, where a CPU does that at once.
///
/// # Shapes
///
/// `x [m, k]`, weights `[n, k]` → `[m, n]`
pub(crate) fn cpu_gated(
    x: &Tensor<2>,
    [gate, up]: [&Weight; 2],
    compute: ComputeDtype,
) -> Option<Tensor<2>> {
    let (Weight::Dense(gate), Weight::Dense(up)) = (gate, up) else {
        return None;
    };
    let [n, k] = gate.dims();
    let on_cpu = [x, gate, up]
        .into_iter()
        .all(|tensor| matches!(tensor.device().as_dispatch(), DispatchDevice::Flex(_)));
    let fits = on_cpu && x.dtype() == DType::F32 && up.dims() == [n, k] && x.dims()[1] == k;
    let is_bf16 = |weight: &Tensor<2>| weight.dtype() == DType::BF16;
    if !fits || !is_bf16(gate) || !is_bf16(up) || !cpu::gates(x.dims()[0], [n, k], compute) {
        return None;
    }
    let [x, gate, up] = [x, gate, up].map(|tensor| tensor.clone().into_dispatch());
    let y = <Dispatch as GatedOps>::dense_gated(x, gate, up, compute);
    Some(Tensor::from_dispatch(y))
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

/// Adds what the stacked adapters of up to three layers make of `x` to their base products. Layers without a stack keep
/// theirs.
pub(crate) fn add_stacked<const N: usize>(
    x: &Tensor<2>,
    bases: [Tensor<2>; N],
    stacks: [Option<&LoraStack>; N],
    rows: &StackedRows,
) -> [Tensor<2>; N] {
    #[cfg(feature = "gpu")]
    if device::on_gpu(x) {
        return device::device_add_lora(x, bases, stacks, rows);
    }
    let mut stacks = stacks.into_iter();
    bases.map(|y| match stacks.next().flatten() {
        Some(stack) => naive::add_stacked(y, x.clone(), stack, rows),
        None => y,
    })
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

/// Forgets what this thread's kernels keep on devices between launches. Call it when a device has failed to compute
/// something: what the failed kernels should have left there is missing.
#[cfg(feature = "gpu")]
pub fn forget_device_state() {
    cube::forget_counters();
}
