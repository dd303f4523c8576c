//! What a model computes besides its layers: the start and the end of a step, and the loss.
//!
//! The loss has a plain twin made of tensor operations in [`naive`]: the reference of the tests, and what runs on devices
//! without a kernel.

use burn::backend::DispatchDevice;
#[cfg(feature = "gpu")]
use burn::backend::tensor::{FloatTensor, IntTensor};
#[cfg(feature = "gpu")]
use burn::backend::{Dispatch, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
#[cfg(feature = "gpu")]
use kv_paging::Rotary;
use tracing::trace_span;

pub(crate) mod choice;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "gpu")]
pub(crate) mod graph;
pub mod naive;

#[cfg(all(test, feature = "gpu"))]
pub(crate) use cube::first_gpu;

/// The operations of a step on a GPU, outside of autodiff graphs.
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait DeviceModelOps: burn::backend::Backend {
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

/// Token ids as a tensor for `select`, `[tokens]`.
pub(crate) fn token_tensor(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    let len = ids.len();
    Tensor::from_data(
        TensorData::new(ids, [len]),
        (&device.clone().inner(), DType::I32),
    )
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

/// The loss of a training step on a GPU, outside of autodiff graphs.
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait LossOps: burn::backend::Backend {
    /// The losses of rows of logits, `[rows]`, and the logits, overwritten with the gradient of `scale` times their sum.
    fn gpu_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// The cross-entropy of each row with its target, and the gradient of `scale` times their sum. On a GPU it takes the memory of
/// `logits`, which nobody else may hold.
///
/// # Shapes
/// logits and their gradient `[rows, vocab]`, of one type; the losses `[rows]` in f32.
///
/// # Panics
/// As [`cross_entropy`].
pub fn cross_entropy_of_rows(
    logits: Tensor<2>,
    targets: &[u32],
    scale: f64,
) -> (Tensor<1>, Tensor<2>) {
    let _span = trace_span!("cross_entropy").entered();
    let [rows, vocab] = logits.dims();
    assert_eq!(targets.len(), rows, "targets of the rows");
    let largest = targets.iter().max().copied().unwrap_or_default();
    assert!((largest as usize) < vocab, "target {largest} of {vocab}");
    #[cfg(feature = "gpu")]
    if cube::has_plane_operations(&logits.device()) {
        let targets = token_tensor(targets, &logits.device()).into_dispatch();
        let (losses, gradient) =
            <Dispatch as LossOps>::gpu_cross_entropy(logits.into_dispatch(), targets, scale as f32);
        return (
            Tensor::from_dispatch(losses),
            Tensor::from_dispatch(gradient),
        );
    }
    naive::cross_entropy_of_rows(logits, targets, scale)
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
    fn the_fused_path_is_taken_on_the_cpu() {
        let x = random([2, 8]);
        assert!(is_fused(&x) && is_fused(&x.clone().autodiff()));
        assert!(is_plain_cpu(&x) && !is_plain_cpu(&x.autodiff()));
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
