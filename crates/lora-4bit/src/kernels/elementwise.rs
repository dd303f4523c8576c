//! RMSNorm and SwiGLU: what lies between the products of a decoder layer.
//!
//! Each has a plain twin in [`naive`]: the reference of the tests, and what runs on devices without a kernel. On the CPU the
//! kernels have gradients of their own.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
#[cfg(feature = "gpu")]
use burn::tensor::DType;
use burn::tensor::Tensor;
use tracing::trace_span;

#[cfg(feature = "gpu")]
use super::device_ops::GpuElementwiseOps;
use super::naive;
use super::norm::Norm;
#[cfg(feature = "gpu")]
use super::operand::NormOperand;
use crate::device::is_f32_on_cpu;

#[cfg(feature = "gpu")]
impl Norm<'_> {
    /// Whether a GPU's kernels normalise `x` with it: both are f32, and the norm takes part in no autodiff graph.
    ///
    /// # Panics
    ///
    /// If the weight hasn't a value for each column of `x`.
    pub(super) fn is_on_gpu(&self, x: &Tensor<2>) -> bool {
        assert_eq!(self.weight.dims(), [x.dims()[1]], "rms_norm: weight");
        is_on_gpu(x) && is_on_gpu(self.weight)
    }
}

#[cfg(feature = "gpu")]
impl NormOperand<Dispatch> {
    pub(super) fn new(norm: Norm<'_>) -> Self {
        Self {
            weight: norm.weight.clone().into_dispatch(),
            eps: norm.eps,
        }
    }
}

/// The operations on the CPU, inside and outside of autodiff graphs.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait ElementwiseOps: Backend {
    /// `x / rms(x) * weight` per row: x `[rows, dim]`, weight `[dim]`, both f32.
    fn cpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64)
    -> FloatTensor<Self>;
    /// `silu(gate) * up`, elementwise, f32: `[rows, width]`.
    fn cpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// `residual + y`, elementwise, f32: `[rows, width]`.
    fn cpu_add(residual: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self>;
    /// `y + bias` per row: y `[rows, width]`, bias `[width]`, both f32. The bias is a constant.
    fn cpu_add_bias(y: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`inner_product`].
    fn cpu_inner_product(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Whether the GPU's kernels take a tensor.
#[cfg(feature = "gpu")]
fn is_on_gpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && super::cube::features::has_plane_operations(&x.device())
}

/// Root-mean-square normalisation over the last dimension.
///
/// # Shapes
///
/// x `[rows, dim]` f32, weight `[dim]`; result `[rows, dim]` f32.
///
/// # Panics
///
/// If the weight has another length.
pub fn rms_norm(x: Tensor<2>, norm: Norm<'_>) -> Tensor<2> {
    let _span = trace_span!("rms_norm").entered();
    let Norm { weight, eps } = norm;
    assert_eq!(weight.dims(), [x.dims()[1]], "rms_norm: weight");
    #[cfg(feature = "gpu")]
    if is_on_gpu(&x) && is_on_gpu(weight) {
        let (x, weight) = (x.into_dispatch(), weight.clone().into_dispatch());
        let y = <Dispatch as GpuElementwiseOps>::gpu_rms_norm(x, weight, eps, DType::F32);
        return Tensor::from_dispatch(y);
    }
    if !is_f32_on_cpu(&x) || !is_f32_on_cpu(weight) || weight.is_tracked() {
        return naive::rms_norm(x, norm);
    }
    let (x, weight) = (x.into_dispatch(), weight.clone().into_dispatch());
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::cpu_rms_norm(x, weight, eps))
}

/// The gate of an MLP: `silu(gate) * up` (SwiGLU, arXiv 2002.05202).
///
/// # Shapes
///
/// All `[rows, width]` f32.
///
/// # Panics
///
/// If the shapes differ.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let _span = trace_span!("swiglu").entered();
    assert_eq!(gate.dims(), up.dims(), "swiglu: gate and up");
    #[cfg(feature = "gpu")]
    if is_on_gpu(&gate) && is_on_gpu(&up) {
        let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
        return Tensor::from_dispatch(<Dispatch as GpuElementwiseOps>::gpu_swiglu(gate, up));
    }
    if !is_f32_on_cpu(&gate) || !is_f32_on_cpu(&up) {
        return naive::swiglu(gate, up);
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::cpu_swiglu(gate, up))
}

/// `residual + y`. On the CPU a loop of our own: Burn's is compiled without optimization in the dev profile.
///
/// # Shapes
///
/// All `[rows, width]`, f32.
pub(crate) fn add(residual: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    assert_eq!(residual.dims(), y.dims(), "add: residual");
    if ![&residual, &y].into_iter().all(is_f32_on_cpu) {
        return residual + y;
    }
    let (residual, y) = (residual.into_dispatch(), y.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::cpu_add(residual, y))
}

/// `y + bias` for each row.
///
/// # Shapes
///
/// y and the result `[rows, width]`, bias `[width]`.
pub(super) fn add_bias(y: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    assert_eq!(bias.dims(), [y.dims()[1]], "add_bias: bias");
    if !is_f32_on_cpu(&y) || !is_f32_on_cpu(&bias) || bias.is_tracked() {
        return naive::add_bias(y, bias);
    }
    let (y, bias) = (y.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::cpu_add_bias(y, bias))
}

/// `Σ x · y`, of which `y` is a constant. On the CPU a loop of our own: Burn's is compiled without optimization in the dev profile.
///
/// A backward pass that starts here gives `x` the gradient `y`.
///
/// # Shapes
///
/// x and y alike; the result is `[1]`.
pub fn inner_product<const D: usize>(x: Tensor<D>, y: Tensor<D>) -> Tensor<1> {
    assert_eq!(x.dims(), y.dims(), "inner_product: shapes");
    if !is_f32_on_cpu(&x) || !is_f32_on_cpu(&y) || y.is_tracked() {
        return (x * y).sum();
    }
    let (x, y) = (x.into_dispatch(), y.into_dispatch());
    Tensor::from_dispatch(<Dispatch as ElementwiseOps>::cpu_inner_product(x, y))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, Device, Distribution};

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

    fn norm(weight: &Tensor<1>) -> Norm<'_> {
        Norm { weight, eps: 0.5 }
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
                    rms_norm(x.clone(), norm(&weight)),
                    naive::rms_norm(x, norm(&weight)),
                );
            }
        }
    }

    #[test]
    fn swiglu_equals_its_twin() {
        for rows in ROWS {
            for width in [1, 96, 333] {
                let (gate, up) = (random([rows, width]), random([rows, width]));
                check(swiglu(gate.clone(), up.clone()), naive::swiglu(gate, up));
            }
        }
    }

    #[test]
    fn sums_equal_their_twins() {
        for rows in ROWS {
            for width in [1, 96, 333] {
                let (x, y, bias) = (
                    random([rows, width]),
                    random([rows, width]),
                    random([width]),
                );
                check(add(x.clone(), y.clone()), x + y.clone());
                check(add_bias(y.clone(), bias.clone()), naive::add_bias(y, bias));
            }
        }
    }

    #[test]
    fn views_and_shared_tensors_are_left_alone() {
        let whole = random([40, 64]);
        let view = whole.clone().transpose().narrow(0, 5, 20); // [20, 40], neither contiguous nor at the start
        let weight = random([40]);
        check(
            rms_norm(view.clone(), norm(&weight)),
            naive::rms_norm(view.clone(), norm(&weight)),
        );
        check(
            swiglu(view.clone(), view.clone()),
            naive::swiglu(view.clone(), view),
        );
        let before = whole.clone();
        let weight = random([64]);
        let _ = rms_norm(whole.clone(), norm(&weight));
        check(whole, before);
    }

    /// Values and gradients of `fused` and `naive` for the same inputs.
    #[track_caller]
    fn check_gradients<const N: usize>(
        inputs: [Tensor<2>; N],
        fused: impl Fn(&[Tensor<2>; N]) -> Tensor<2>,
        naive: impl Fn(&[Tensor<2>; N]) -> Tensor<2>,
    ) {
        let run = |op: &dyn Fn(&[Tensor<2>; N]) -> Tensor<2>| {
            let leaves = inputs.clone().map(|x| x.autodiff().require_grad());
            let y = op(&leaves);
            // The square, so that the gradient of every element is its own.
            let mut gradients = (y.clone() * y.clone()).sum().backward();
            let gradients = leaves.map(|x| x.grad_remove(&mut gradients).unwrap());
            (y.inner(), gradients)
        };
        let ((y, gradients), (expected, expected_gradients)) = (run(&fused), run(&naive));
        check(y, expected);
        for (a, b) in gradients.into_iter().zip(expected_gradients) {
            check(a, b);
        }
    }

    #[test]
    fn gradients_equal_those_of_the_twins() {
        for rows in ROWS {
            let weight = random([61]);
            check_gradients(
                [random([rows, 61])],
                |[x]| rms_norm(x.clone(), norm(&weight)),
                |[x]| naive::rms_norm(x.clone(), norm(&weight)),
            );
            check_gradients(
                [random([rows, 96]), random([rows, 96])],
                |[gate, up]| swiglu(gate.clone(), up.clone()),
                |[gate, up]| naive::swiglu(gate.clone(), up.clone()),
            );
            check_gradients(
                [random([rows, 33]), random([rows, 33])],
                |[x, y]| add(x.clone(), y.clone()),
                |[x, y]| x.clone() + y.clone(),
            );
            let bias = random([33]);
            check_gradients(
                [random([rows, 33])],
                |[y]| add_bias(y.clone(), bias.clone()),
                |[y]| naive::add_bias(y.clone(), bias.clone()),
            );
        }
    }

    #[test]
    fn an_inner_product_equals_its_twin() {
        for rows in ROWS {
            for width in [1, 96, 333] {
                let (x, y) = (random([rows, width]), random([rows, width]));
                let [fused, twin] = [0, 1].map(|way| {
                    let (x, y) = (x.clone().autodiff().require_grad(), y.clone().autodiff());
                    let z = match way {
                        0 => inner_product(x.clone(), y),
                        _ => (x.clone() * y).sum(),
                    };
                    let mut gradients = (z.clone() * 3.0).backward();
                    let value = z.inner().into_scalar::<f32>();
                    (value, x.grad_remove(&mut gradients).unwrap())
                });
                let size = (rows * width) as f32;
                assert!((fused.0 - twin.0).abs() < 1e-5 * size.max(10.0));
                check(fused.1, twin.1);
            }
        }
    }

    #[test]
    fn a_norm_in_training_gets_a_gradient() {
        let weight = random([8]).autodiff().require_grad();
        let x = random([3, 8]).autodiff();
        let gradients = rms_norm(x, norm(&weight)).sum().backward();
        assert!(weight.grad(&gradients).is_some());
    }

    /// The kernels of a GPU against the twins on the CPU.
    #[cfg(feature = "gpu")]
    #[test]
    fn kernels_of_a_gpu_equal_the_twins() {
        let gpu = crate::kernels::cube::features::first_gpu();
        fn to<const D: usize>(x: &Tensor<D>, device: &Device) -> Tensor<D> {
            Tensor::from_data(x.clone().into_data(), (device, x.dtype()))
        }
        for rows in ROWS {
            for dim in [2, 61, 896] {
                let (x, weight) = (random([rows, dim]), random([dim]));
                let (on_gpu, gpu_weight) = (to(&x, &gpu), to(&weight, &gpu));
                assert!(is_on_gpu(&on_gpu), "the device has no plane operations");
                let exact = naive::rms_norm(x.clone(), norm(&weight));
                check(rms_norm(on_gpu.clone(), norm(&gpu_weight)), exact.clone());
                let up = random([rows, dim]);
                let y = swiglu(on_gpu.clone(), to(&up, &gpu));
                check(y, naive::swiglu(x, up));
                let weight = gpu_weight.into_dispatch();
                let y = Dispatch::gpu_rms_norm(on_gpu.into_dispatch(), weight, 0.5, DType::F16);
                let y = Tensor::<2>::from_dispatch(y).cast(DType::F32);
                let error = (y.into_data().iter::<f32>())
                    .zip(exact.into_data().iter::<f32>())
                    .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
                    .fold(0.0, f32::max);
                assert!(error < 1e-3, "rounded to 11 bits: {error}");
            }
        }
    }
}
