//! The operations of the forward pass that lie between the matrix products.
//!
//! Each has a plain twin made of tensor ops in [`naive`]: the reference of the tests, and what runs
//! under autodiff and on devices without a kernel of their own.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Tensor};
use tracing::trace_span;

use crate::rotary::Rotary;

mod autodiff;
mod cpu;
mod cube;
pub(crate) mod map_file;
pub mod naive;

/// The fused operations; `Dispatch` sends each call to the backend its tensors live on.
#[backend_extension(Flex)]
pub(crate) trait ModelOps: burn::backend::Backend {
    /// `x / rms(x) * weight` per row: x `[rows, dim]`, weight `[dim]`, both f32.
    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// Rotates the halves of each head: x `[tokens, heads, head_dim]`, cos and sin
    /// `[tokens, 1, head_dim / 2]`, all f32.
    fn fused_rotary(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// `silu(gate) * up`, elementwise, f32.
    fn fused_silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Whether a tensor lives where the fused operations run: plain CPU, f32, outside autodiff.
pub(crate) fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Root-mean-square normalisation (arXiv 1910.07467) over the last dimension.
///
/// # Shapes
/// x `[rows, dim]`, weight `[dim]`; result `[rows, dim]`.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    let _span = trace_span!("rms_norm").entered();
    if !is_fused(&x) || !is_fused(weight) {
        return naive::rms_norm(x, weight, eps);
    }
    let (x, weight) = (x.into_dispatch(), weight.clone().into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_rms_norm(x, weight, eps))
}

/// Rotary embedding as Qwen applies it: dimension `i` is paired with `i + head_dim / 2`.
///
/// # Shapes
/// x and result `[tokens, heads, head_dim]`.
pub fn apply_rotary(x: Tensor<3>, rotary: &Rotary) -> Tensor<3> {
    if !is_fused(&x) {
        return naive::apply_rotary(x, rotary);
    }
    Tensor::from_dispatch(Dispatch::fused_rotary(
        x.into_dispatch(),
        rotary.cos.clone().into_dispatch(),
        rotary.sin.clone().into_dispatch(),
    ))
}

/// The gate of the MLP: `silu(gate) * up`.
///
/// # Shapes
/// All `[tokens, intermediate]`.
pub fn silu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let _span = trace_span!("silu_mul").entered();
    if !is_fused(&gate) || !is_fused(&up) {
        return naive::silu_mul(gate, up);
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_silu_mul(gate, up))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    /// Small, odd and large enough to be split over threads.
    const ROWS: [usize; 4] = [1, 3, 17, 700];

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(
            shape,
            Distribution::Uniform(-3.0, 3.0),
            (&Device::flex(), DType::F32),
        )
    }

    #[track_caller]
    fn check<const D: usize>(fused: Tensor<D>, naive: Tensor<D>) {
        assert_eq!(fused.dims(), naive.dims());
        let values = |t: Tensor<D>| t.into_data().iter::<f32>().collect::<Vec<f32>>();
        for (i, (a, b)) in values(fused).into_iter().zip(values(naive)).enumerate() {
            assert!(
                (a - b).abs() <= 1e-5 * b.abs().max(1.0),
                "element {i}: {a}, twin {b}"
            );
        }
    }

    #[test]
    fn rms_norm_equals_its_twin() {
        for rows in ROWS {
            for dim in [2, 16, 61, 896] {
                let (x, weight) = (random([rows, dim]), random([dim]));
                check(
                    rms_norm(x.clone(), &weight, 1e-6),
                    naive::rms_norm(x, &weight, 1e-6),
                );
            }
        }
    }

    #[test]
    fn rotary_equals_its_twin() {
        for tokens in ROWS {
            for (heads, head_dim) in [(1, 2), (5, 16), (14, 64)] {
                let x = random([tokens, heads, head_dim]);
                let rotary = Rotary {
                    cos: random([tokens, 1, head_dim / 2]),
                    sin: random([tokens, 1, head_dim / 2]),
                };
                check(
                    apply_rotary(x.clone(), &rotary),
                    naive::apply_rotary(x, &rotary),
                );
            }
        }
    }

    #[test]
    fn silu_mul_equals_its_twin() {
        for rows in ROWS {
            for width in [1, 96, 333] {
                let (gate, up) = (random([rows, width]), random([rows, width]));
                check(
                    silu_mul(gate.clone(), up.clone()),
                    naive::silu_mul(gate, up),
                );
            }
        }
    }

    #[test]
    fn views_and_shared_tensors_are_left_alone() {
        let whole = random([40, 64]);
        let view = whole.clone().transpose().narrow(0, 5, 20); // [20, 40], neither contiguous nor at the start
        let weight = random([40]);
        check(
            rms_norm(view.clone(), &weight, 1e-6),
            naive::rms_norm(view.clone(), &weight, 1e-6),
        );
        check(
            silu_mul(view.clone(), view.clone()),
            naive::silu_mul(view.clone(), view),
        );
        let before = whole.clone();
        let weight = random([64]);
        let _ = rms_norm(whole.clone(), &weight, 1e-6);
        check(whole, before);
    }

    #[test]
    fn the_fused_path_is_taken_on_the_cpu_only_without_autodiff() {
        let x = random([2, 8]);
        assert!(is_fused(&x));
        assert!(!is_fused(&x.autodiff()));
    }
}
