//! The operations of the forward pass that lie between the matrix products.
//!
//! Each has a plain twin made of tensor ops in [`naive`]: the reference of the tests, and what runs
//! on devices without a kernel of their own. On the CPU the kernels have gradients of their own.

use burn::backend::tensor::FloatTensor;
#[cfg(feature = "gpu")]
use burn::backend::tensor::IntTensor;
use burn::backend::{Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use tracing::trace_span;

use crate::rotary::Rotary;

mod autodiff;
pub(crate) mod choice;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "gpu")]
pub(crate) mod graph;
pub mod naive;

#[cfg(all(test, feature = "gpu"))]
pub(crate) use cube::first_gpu;

/// The fused operations; `Dispatch` sends each call to the backend its tensors live on.
#[backend_extension(Flex, Autodiff)]
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

/// The same on a GPU, outside of autodiff graphs.
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait DeviceModelOps: burn::backend::Backend {
    /// See [`ModelOps::fused_rms_norm`]; the result has the type `dtype`.
    fn device_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        dtype: DType,
    ) -> FloatTensor<Self>;
    /// See [`ModelOps::fused_rotary`], for queries and keys.
    fn device_rotate_both(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`ModelOps::fused_silu_mul`].
    fn device_silu_mul(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// What a step starts with. Of `rows` tokens, which start at `tokens_at` in `step`, the rows of `weight [vocab, hidden]` in
    /// f32; -1, -2 and so on stand for the tokens in `chosen`. Then `scale` times the cosines and sines of the positions from
    /// `positions_at` on, times `inv_freq [half]`: both `[rows, 1, half]`.
    #[allow(clippy::too_many_arguments)]
    fn device_begin(
        weight: FloatTensor<Self>,
        step: IntTensor<Self>,
        chosen: IntTensor<Self>,
        inv_freq: FloatTensor<Self>,
        tokens_at: usize,
        positions_at: usize,
        rows: usize,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

/// What a step starts with: rows of the embedding, `[rows, hidden]`, and the angles of the positions.
#[cfg(feature = "gpu")]
pub(crate) fn device_begin(
    weight: &Tensor<2>,
    step: &kv_paging::DecodeStep,
    chosen: &Tensor<1, burn::tensor::Int>,
    (inv_freq, scale): (&Tensor<1>, f32),
) -> (Tensor<2>, Rotary) {
    let (x, cos, sin) = Dispatch::device_begin(
        weight.clone().into_dispatch(),
        step.values().clone().into_dispatch(),
        chosen.clone().into_dispatch(),
        inv_freq.clone().into_dispatch(),
        step.tokens_at(),
        step.positions_at(),
        step.num_rows(),
        scale,
    );
    let [cos, sin] = [cos, sin].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(x), Rotary { cos, sin })
}

/// Forgets what kernels keep on devices between launches. Call it when a device has failed to compute something: what the
/// failed kernels should have left there is missing.
pub fn forget_device_state() {
    #[cfg(feature = "gpu")]
    {
        lora_4bit::kernels::forget_device_state();
        kv_paging::kernels::forget_device_state();
    }
}

/// Whether a tensor lives where the fused operations run: plain CPU, f32. It may be part of an autodiff graph.
fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device().without_autodiff();
    x.dtype() == DType::F32 && matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether a tensor is computed on the CPU outside of any autodiff graph, by whichever thread asks for it.
pub(crate) fn is_plain_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Both results. On the plain CPU backend the threads share the work of both, instead of waiting for each other after
/// the first; a GPU queues what one thread sends it.
pub(crate) fn both<const D: usize, A: Send, B: Send>(
    x: &Tensor<D>,
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    match is_plain_cpu(x) {
        true => rayon::join(a, b),
        false => (a(), b()),
    }
}

/// Runs `step`; on the CPU, on a thread of rayon's pool.
///
/// The kernels of a step split their work over that pool some hundred times. From a thread outside of it, each of these
/// would wait for a worker to wake up; a worker starts its share at once, while the others look for theirs. GPU backends
/// keep a queue for each thread, so that there the step stays where it is.
pub fn on_worker<R: Send>(device: &Device, step: impl FnOnce() -> R + Send) -> R {
    match device.clone().without_autodiff().as_dispatch() {
        DispatchDevice::Flex(_) => rayon::scope(|_| step()),
        _ => step(),
    }
}

/// Root-mean-square normalisation (arXiv 1910.07467) over the last dimension.
///
/// # Shapes
/// x `[rows, dim]`, weight `[dim]`; result `[rows, dim]`.
pub fn rms_norm(x: Tensor<2>, weight: &Tensor<1>, eps: f64) -> Tensor<2> {
    rms_norm_to(x, weight, eps, DType::F32)
}

/// [`rms_norm`] with a result of another type than f32.
pub(crate) fn rms_norm_to(x: Tensor<2>, weight: &Tensor<1>, eps: f64, dtype: DType) -> Tensor<2> {
    let _span = trace_span!("rms_norm").entered();
    #[cfg(feature = "gpu")]
    if cube::supports(&x) && cube::supports(weight) {
        let (x, weight) = (x.into_dispatch(), weight.clone().into_dispatch());
        return Tensor::from_dispatch(Dispatch::device_rms_norm(x, weight, eps, dtype));
    }
    if dtype != DType::F32 {
        return rms_norm(x, weight, eps).cast(dtype);
    }
    if !is_fused(&x) || !is_fused(weight) || weight.is_tracked() {
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

/// [`apply_rotary`] of queries and keys.
pub fn rotate_both(q: Tensor<3>, k: Tensor<3>, rotary: &Rotary) -> (Tensor<3>, Tensor<3>) {
    #[cfg(feature = "gpu")]
    if cube::supports(&q) && cube::supports(&k) {
        let [q, k] = [q, k].map(Tensor::into_dispatch);
        let [cos, sin] = [&rotary.cos, &rotary.sin].map(|angles| angles.clone().into_dispatch());
        let (q, k) = Dispatch::device_rotate_both(q, k, cos, sin);
        return (Tensor::from_dispatch(q), Tensor::from_dispatch(k));
    }
    both(
        &q.clone(),
        || apply_rotary(q, rotary),
        || apply_rotary(k, rotary),
    )
}

/// The gate of the MLP: `silu(gate) * up`.
///
/// # Shapes
/// All `[tokens, intermediate]`.
pub fn silu_mul(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let _span = trace_span!("silu_mul").entered();
    #[cfg(feature = "gpu")]
    if cube::supports(&gate) && cube::supports(&up) {
        let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
        return Tensor::from_dispatch(Dispatch::device_silu_mul(gate, up));
    }
    if !is_fused(&gate) || !is_fused(&up) {
        return naive::silu_mul(gate, up);
    }
    let (gate, up) = (gate.into_dispatch(), up.into_dispatch());
    Tensor::from_dispatch(Dispatch::fused_silu_mul(gate, up))
}

/// Summed cross-entropy of `targets`, one for each row of logits, and the gradient of `scale` times it.
///
/// # Shapes
/// logits and their gradient `[rows, vocab]`; the sum `[1]`.
///
/// # Panics
/// When there aren't as many targets as rows, or a target isn't below the size of the vocabulary.
pub fn cross_entropy(logits: Tensor<2>, targets: &[u32], scale: f64) -> (Tensor<1>, Tensor<2>) {
    let _span = trace_span!("cross_entropy").entered();
    let [rows, vocab] = logits.dims();
    assert_eq!(targets.len(), rows, "targets of the rows");
    let largest = targets.iter().max().copied().unwrap_or_default();
    assert!((largest as usize) < vocab, "target {largest} of {vocab}");
    if rows == 0 || !is_plain_cpu(&logits) || !is_fused(&logits) {
        return naive::cross_entropy(logits, targets, scale);
    }
    let device = logits.device();
    let mut values: Vec<f32> = match logits.into_data().try_into_vec() {
        Ok(values) => values,
        Err(_) => unreachable!("the dtype is f32"),
    };
    let loss = cpu::cross_entropy(&mut values, targets, scale as f32);
    let gradient = TensorData::new(values, [rows, vocab]);
    (
        Tensor::from_data([loss], (&device, DType::F32)),
        Tensor::from_data(gradient, (&device, DType::F32)),
    )
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

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

    /// The kernels of a GPU against the twins on the CPU.
    #[cfg(feature = "gpu")]
    #[test]
    fn kernels_of_a_gpu_equal_the_twins() {
        let gpu = cube::first_gpu();
        fn to<const D: usize>(x: &Tensor<D>, device: &Device) -> Tensor<D> {
            Tensor::from_data(x.clone().into_data(), (device, x.dtype()))
        }
        for rows in ROWS {
            for dim in [2, 61, 896] {
                let (x, weight) = (random([rows, dim]), random([dim]));
                let (on_gpu, gpu_weight) = (to(&x, &gpu), to(&weight, &gpu));
                assert!(
                    cube::supports(&on_gpu),
                    "the device has no plane operations"
                );
                let y = rms_norm(on_gpu, &gpu_weight, 1e-6);
                check(y, naive::rms_norm(x.clone(), &weight, 1e-6));
                let up = random([rows, dim]);
                let y = silu_mul(to(&x, &gpu), to(&up, &gpu));
                check(y, naive::silu_mul(x.clone(), up));
                let y = rms_norm_to(to(&x, &gpu), &gpu_weight, 1e-6, DType::F16);
                let (y, exact) = (y.cast(DType::F32), naive::rms_norm(x, &weight, 1e-6));
                let error = (y.into_data().iter::<f32>())
                    .zip(exact.into_data().iter::<f32>())
                    .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
                    .fold(0.0, f32::max);
                assert!(error < 1e-3, "rounded to 11 bits: {error}");
            }
            let (q, k) = (random([rows, 5, 16]), random([rows, 2, 16]));
            let (cos, sin) = (random([rows, 1, 8]), random([rows, 1, 8]));
            let on_gpu = Rotary {
                cos: to(&cos, &gpu),
                sin: to(&sin, &gpu),
            };
            let (rotated_q, rotated_k) = rotate_both(to(&q, &gpu), to(&k, &gpu), &on_gpu);
            let rotary = Rotary { cos, sin };
            check(rotated_q, naive::apply_rotary(q, &rotary));
            check(rotated_k, naive::apply_rotary(k, &rotary));
        }
    }

    /// What a decode step computes besides the layers.
    #[cfg(feature = "gpu")]
    #[test]
    fn steps_on_a_gpu_embed_turn_and_choose() {
        use crate::sampling::Draw;
        use burn::tensor::Int;
        let gpu = cube::first_gpu();
        let integers = |values: &[i32]| {
            let data = TensorData::new(values.to_vec(), [values.len()]);
            Tensor::<1, Int>::from_data(data, (&gpu, DType::I32))
        };
        let on_gpu = |values: Vec<f32>, shape: [usize; 2]| {
            Tensor::<2>::from_data(TensorData::new(values, shape), (&gpu, DType::F32))
        };
        let floats = |data: TensorData| data.iter::<f32>().collect::<Vec<f32>>();

        let weight = random([50, 12]);
        let weight = on_gpu(floats(weight.into_data()), [50, 12]);
        let inv_freq: Vec<f32> = (0..20).map(|i| 0.3_f32.powi(i)).collect();
        let frequencies = Tensor::<1>::from_data(inv_freq.as_slice(), (&gpu, DType::F32));
        let (x, cos, sin) = Dispatch::device_begin(
            weight.clone().into_dispatch(),
            integers(&[7, 7, 49, 0, -2, 9, 0, 1000, 5]).into_dispatch(),
            integers(&[11, 3]).into_dispatch(),
            frequencies.into_dispatch(),
            2,
            6,
            3,
            1.5,
        );
        check(
            Tensor::from_dispatch(x),
            weight.select(0, integers(&[49, 0, 3])),
        );
        let turns: [fn(f32) -> f32; 2] = [f32::cos, f32::sin];
        for (turned, turn) in [cos, sin].into_iter().zip(turns) {
            let expected = [0.0, 1000.0, 5.0].into_iter().flat_map(|position: f32| {
                let angles = inv_freq.iter().map(move |freq| position * freq);
                angles.map(move |angle| 1.5 * turn(angle))
            });
            let turned = floats(Tensor::<3>::from_dispatch(turned).into_data());
            assert_eq!(turned.len(), 60);
            for (a, b) in turned.into_iter().zip(expected) {
                assert!((a - b).abs() < 1e-3, "{a}, expected {b}");
            }
        }

        // Several parts of a row; the first of equal values; never a NaN.
        let vocab = 10_000;
        let mut logits = floats(random([4, vocab]).into_data());
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| row * vocab);
        (logits[a + 9_999], logits[b], logits[b + 5_000]) = (5.0, 5.0, 5.0);
        (logits[c + 4_095], logits[c + 4_096]) = (5.0, 5.0);
        logits[d..d + vocab].fill(f32::NAN);
        logits[d + 4_321] = -1e30;
        let draws = [Draw::default(); 4];
        let best = choice::draw_tokens(&on_gpu(logits, [4, vocab]), &draws).unwrap();
        assert_eq!(
            best.wait().unwrap(),
            [9_999, 0, 4_095, 4_321].map(Some::<u32>)
        );
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
    fn the_fused_path_is_taken_on_the_cpu() {
        let x = random([2, 8]);
        assert!(is_fused(&x) && is_fused(&x.clone().autodiff()));
        assert!(is_plain_cpu(&x) && !is_plain_cpu(&x.autodiff()));
    }

    /// Values and gradients of `fused` and `naive` for the same inputs.
    #[track_caller]
    fn check_gradients<const D: usize, const N: usize>(
        inputs: [Tensor<D>; N],
        fused: impl Fn(&[Tensor<D>; N]) -> Tensor<D>,
        naive: impl Fn(&[Tensor<D>; N]) -> Tensor<D>,
    ) {
        let run = |op: &dyn Fn(&[Tensor<D>; N]) -> Tensor<D>| {
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
                |[x]| rms_norm(x.clone(), &weight, 1e-6),
                |[x]| naive::rms_norm(x.clone(), &weight, 1e-6),
            );
            check_gradients(
                [random([rows, 96]), random([rows, 96])],
                |[gate, up]| silu_mul(gate.clone(), up.clone()),
                |[gate, up]| naive::silu_mul(gate.clone(), up.clone()),
            );
            let rotary = Rotary {
                cos: random([rows, 1, 8]),
                sin: random([rows, 1, 8]),
            };
            check_gradients(
                [random([rows, 5, 16])],
                |[x]| apply_rotary(x.clone(), &rotary),
                |[x]| naive::apply_rotary(x.clone(), &rotary),
            );
        }
    }

    #[test]
    fn a_norm_in_training_gets_a_gradient() {
        let weight = random([8]).autodiff().require_grad();
        let x = random([3, 8]).autodiff();
        let gradients = rms_norm(x, &weight, 1e-6).sum().backward();
        assert!(weight.grad(&gradients).is_some());
    }

    #[test]
    fn cross_entropy_equals_its_twin() {
        for (rows, vocab) in [(1, 2), (3, 50), (20, 9001)] {
            let logits = random([rows, vocab]) * 4.0;
            let targets: Vec<u32> = (0..rows).map(|i| (i * 7 % vocab) as u32).collect();
            let (loss, gradient) = cross_entropy(logits.clone(), &targets, 0.25);
            let (expected, expected_gradient) = naive::cross_entropy(logits, &targets, 0.25);
            check(loss, expected);
            check(gradient, expected_gradient);
        }
    }
}
