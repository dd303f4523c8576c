//! The matrix products of a linear layer, as tensor operations with a fast path per backend.
//!
//! | operation | computes | shapes |
//! |---|---|---|
//! | [`dense_linear`] | `x · wᵀ` | `[m, k]`, `[n, k]` → `[m, n]` |
//! | [`dense_linear_t`] | `dy · w` | `[m, n]`, `[n, k]` → `[m, k]` |
//! | `nf4_linear` | `x · wᵀ`, `w` in NF4 | `[m, k]`, `[n, k]` → `[m, n]` |
//! | `nf4_linear_t` | `dy · w`, `w` in NF4 | `[m, n]`, `[n, k]` → `[m, k]` |
//!
//! `x` and `dy` are f32; on a GPU they may also have the type to which the product rounds them. A dense `w` is f32, bf16 or f16;
//! sums and results are f32. With [`ComputeDtype::Bf16`] the operands may be rounded to bf16 first, where the hardware multiplies these faster.
//! The transposed products are the gradients of the plain ones with respect to `x`. Except in `fused::product` with a tracked
//! dense weight (`--full` on a CPU), `w` is a constant: no operation here has a gradient for it.
//!
//! [`lora_add`] adds an adapter's product to the base product: `y + scaling · (x · aᵀ) · b`, with gradients for all four.
//! [`rms_norm`] and [`swiglu`] lie between the products of a decoder layer. `fused` joins products, adapters, norm and
//! activation; each of its operations computes what its name says on every device.
//!
//! [`plan`] says which kernel computes a product. Rooms: `naive` (each operation written with plain tensor operations; the
//! reference in tests), `cpu` (Burn's flex backend), `cube` (CubeCL backends), `autodiff` (gradients).

// Unsafe code is confined to this module: intrinsics and raw pointers of the kernels.
#![allow(unsafe_code)]

mod autodiff;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
pub(crate) mod draw;
mod elementwise;
pub mod exp;
mod fused;
pub mod naive;
mod operand;
pub(crate) mod optimizer;
pub mod plan;
pub(crate) mod tile;
pub(crate) mod training;
mod vectorized;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use tracing::trace_span;

use crate::device::is_f32_on_cpu;

#[cfg(feature = "gpu")]
pub use cube::sum_of_cube;
pub(crate) use elementwise::add;
pub use elementwise::{Norm, inner_product, rms_norm, swiglu};
pub use fused::both;
pub(crate) use fused::{input_dtype, linear, norm_linears, norm_swiglu, product};
pub use operand::{AbsmaxOperand, Nf4Operand};
pub(crate) use operand::{
    Adapters, LayerOperand, Maybe, STACK_PADDING, STACK_RANKS, StackOperand, WeightOperand,
};

pub use crate::compute_dtype::ComputeDtype;

pub(crate) use cpu::simd::bytes::{
    ByteOperand, STEP as BYTE_STEP, SplitRow, W_ROWS as BYTE_ROWS, is_fast as bytes_are_fast,
};

/// Whether loops that are compiled twice may use AVX2 and FMA: the CPU has both, and `LORA_4BIT_SIMD` allows them.
#[doc(hidden)]
#[cfg(target_arch = "x86_64")]
pub fn has_avx2() -> bool {
    cpu::simd::has_avx2()
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

/// Products of one LoRA adapter, on the CPU, inside and outside of autodiff graphs.
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

    /// A layer with [`Adapters::One`], its weight and bias constants. The input gets one gradient, not a sum of two.
    fn linear_with_adapter(
        x: FloatTensor<Self>,
        #[extension_type] layer: LayerOperand<Self>,
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
    if ![&y, &x, &a, &b].into_iter().all(is_f32_on_cpu) {
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

/// `dy · w` with a constant `w`: the gradient of [`dense_linear`] with respect to `x`. With [`ComputeDtype::Bf16`] tensor cores multiply
/// operands in bf16.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]` in f32
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
pub fn forget_device_state() {
    #[cfg(feature = "gpu")]
    cube::forget_counters();
}
