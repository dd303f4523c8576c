//! The matrix products of a linear layer, as tensor operations with a fast path per backend.
//!
//! | operation | computes | shapes |
//! |---|---|---|
//! | [`dense_linear`] | `x · wᵀ` | `[m, k]`, `[n, k]` → `[m, n]` |
//! | [`dense_linear_t`] | `dy · w` | `[m, n]`, `[n, k]` → `[m, k]` |
//! | `nf4_linear` | `x · wᵀ`, `w` in NF4 | `[m, k]`, `[n, k]` → `[m, n]` |
//! | `nf4_linear_t` | `dy · w`, `w` in NF4 | `[m, n]`, `[n, k]` → `[m, k]` |
//!
//! `x` and `dy` are f32 on the CPU; a dense `w` is f32, bf16 or f16; sums are f32. The result has the type of `x`.
//! The transposed products are the gradients of the plain ones with respect to `x`. `w` is a constant: no operation
//! here has a gradient for it.
//!
//! Rooms: `naive` (each operation written with plain tensor operations; the reference in tests), `cpu` (burn's flex
//! backend), `cube` (CubeCL backends), `autodiff` (gradients).

// Unsafe code is confined to this module: intrinsics and raw pointers of the kernels.
#![allow(unsafe_code)]

mod autodiff;
mod cpu;
#[cfg(any(
    feature = "cuda",
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "rocm"
))]
mod cube;
pub mod naive;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::Tensor;
use tracing::trace_span;

/// The tensors of an NF4 weight on one backend.
#[derive(ExtensionType, Clone, Debug)]
pub struct Nf4Operand<B: Backend> {
    /// Two codes a byte, first value in the high four bits: `[ceil(n * k / 2)]`.
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
        /// `[blocks]`.
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
#[backend_extension(Flex, Cube: cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan", feature = "metal", feature = "rocm")), Autodiff)]
pub trait LinearOps: Backend {
    /// `x · wᵀ`: `[m, k]`, `[n, k]` → `[m, n]`.
    fn dense_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        naive::dense_linear::<Self>(x, w)
    }

    /// `dy · w`: `[m, n]`, `[n, k]` → `[m, k]`.
    fn dense_linear_t(dy: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        naive::dense_linear_t::<Self>(dy, w)
    }

    /// `x · wᵀ` with `w` in NF4: `[m, k]` → `[m, n]`.
    fn nf4_linear(
        x: FloatTensor<Self>,
        #[extension_type] w: Nf4Operand<Self>,
    ) -> FloatTensor<Self> {
        naive::nf4_linear::<Self>(x, w)
    }

    /// `dy · w` with `w` in NF4: `[m, n]` → `[m, k]`.
    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        #[extension_type] w: Nf4Operand<Self>,
    ) -> FloatTensor<Self> {
        naive::nf4_linear_t::<Self>(dy, w)
    }
}

/// `x · wᵀ` with a constant `w`.
///
/// # Shapes
///
/// `x [m, k]`, `w [n, k]` → `[m, n]`
pub fn dense_linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let [n, k] = w.dims();
    let _span = trace_span!("dense_linear", n, k).entered();
    check_inner("dense_linear", x.dims()[1], k);
    let y = <Dispatch as LinearOps>::dense_linear(x.into_dispatch(), w.into_dispatch());
    Tensor::from_dispatch(y)
}

/// `dy · w` with a constant `w`: the gradient of [`dense_linear`] with respect to `x`.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]`
pub fn dense_linear_t(dy: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let [n, k] = w.dims();
    let _span = trace_span!("dense_linear_t", n, k).entered();
    check_inner("dense_linear_t", dy.dims()[1], n);
    let dx = <Dispatch as LinearOps>::dense_linear_t(dy.into_dispatch(), w.into_dispatch());
    Tensor::from_dispatch(dx)
}

/// `x · wᵀ` with a constant `w` in NF4.
///
/// # Shapes
///
/// `x [m, k]`, `w [n, k]` → `[m, n]`
pub(crate) fn nf4_linear(x: Tensor<2>, w: Nf4Operand<Dispatch>) -> Tensor<2> {
    let [n, k] = w.shape;
    let _span = trace_span!("nf4_linear", n, k).entered();
    check_inner("nf4_linear", x.dims()[1], k);
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_linear(x.into_dispatch(), w))
}

/// `dy · w` with a constant `w` in NF4: the gradient of [`nf4_linear`] with respect to `x`.
///
/// # Shapes
///
/// `dy [m, n]`, `w [n, k]` → `[m, k]`
pub(crate) fn nf4_linear_t(dy: Tensor<2>, w: Nf4Operand<Dispatch>) -> Tensor<2> {
    let [n, k] = w.shape;
    let _span = trace_span!("nf4_linear_t", n, k).entered();
    check_inner("nf4_linear_t", dy.dims()[1], n);
    Tensor::from_dispatch(<Dispatch as LinearOps>::nf4_linear_t(dy.into_dispatch(), w))
}

fn check_inner(op: &str, left: usize, right: usize) {
    assert_eq!(
        left, right,
        "{op}: inner dimensions {left} and {right} differ"
    );
}
