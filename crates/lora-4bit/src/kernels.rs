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
//! [`plan`] says which kernel computes a product. `ops` has the traits of these products, which backends implement; `products`
//! calls them. `device_ops` has the traits of GPUs.
//!
//! Rooms: `naive` (each operation written with plain tensor operations; the reference in tests), `cpu` (Burn's flex backend),
//! `cube` (CubeCL backends), `autodiff` (gradients).

// Unsafe code is confined to this module: intrinsics and raw pointers of the kernels.
#![allow(unsafe_code)]

mod autodiff;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "gpu")]
mod device_ops;
pub(crate) mod draw;
mod elementwise;
pub mod exp;
mod features;
mod fused;
pub mod naive;
mod norm;
mod operand;
mod ops;
pub(crate) mod optimizer;
pub mod plan;
mod products;
pub(crate) mod tile;
pub(crate) mod training;
mod vectorized;

#[cfg(feature = "gpu")]
pub use cube::{launch, sum_of_cube};
pub(crate) use elementwise::add;
pub use elementwise::{inner_product, rms_norm, swiglu};
pub use fused::both;
pub(crate) use fused::{input_dtype, linear, norm_linears, norm_swiglu, product};
pub use norm::Norm;
pub use operand::{AbsmaxOperand, Nf4Operand};
pub(crate) use operand::{
    Adapters, LayerOperand, Maybe, STACK_PADDING, STACK_RANKS, StackOperand, WeightOperand,
};

pub use ops::LinearOps;
pub use products::{dense_linear, dense_linear_t, lora_add};
pub(crate) use products::{nf4_dequantize, nf4_linear, nf4_linear_t};

pub use crate::compute_dtype::ComputeDtype;

pub(crate) use cpu::simd::bytes::{ByteOperand, is_fast as bytes_are_fast};
pub(crate) use cpu::simd::split_row::{STEP as BYTE_STEP, SplitRow, W_ROWS as BYTE_ROWS};

/// Whether loops that are compiled twice may use AVX2 and FMA: the CPU has both, and `LORA_4BIT_SIMD` allows them.
#[doc(hidden)]
#[cfg(target_arch = "x86_64")]
pub fn has_avx2() -> bool {
    cpu::simd::has_avx2()
}

/// Forgets what this thread's kernels keep on devices between launches. Call it when a device has failed to compute
/// something: what the failed kernels should have left there is missing.
pub fn forget_device_state() {
    #[cfg(feature = "gpu")]
    cube::forget_counters();
}
