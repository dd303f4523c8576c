//! What a model computes besides its layers: the start and the end of a step, and the loss.
//!
//! The loss has a plain twin made of tensor operations in [`naive`]: the reference of the tests, and what runs on devices
//! without a kernel.

use burn::tensor::{DType, Device, Tensor, TensorData};
use kv_paging::Rotary;
use lora_4bit::device::{is_cpu, is_f32_on_cpu, is_untracked_cpu};
use tracing::trace_span;

pub(crate) mod choice;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
#[cfg(feature = "gpu")]
pub(crate) mod graph;
mod integers;
pub mod naive;

#[cfg(all(test, feature = "gpu"))]
pub(crate) use cube::first_gpu;
use integers::ints;
pub(crate) use integers::token_tensor;

/// These rows of `x`.
pub(crate) fn select_rows(x: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows = rows.iter().map(|&row| row as i32).collect();
    x.clone().select(0, ints(rows, &x.device()))
}

/// `scale` times the cosines and sines of `positions` times `inv_freq [half]`, both `[positions, 1, half]`, where a GPU computes them
/// as exactly as the CPU: on cards of NVIDIA.
pub(crate) fn angles_on_gpu(
    positions: &[u32],
    frequencies: (&[f32], f32),
    device: &Device,
) -> Option<Rotary> {
    #[cfg(feature = "gpu")]
    return gpu::device_angles(positions, frequencies, device);
    #[cfg(not(feature = "gpu"))]
    {
        let _ = (positions, frequencies, device);
        None
    }
}

/// Forgets what kernels keep on devices between launches. Call it when a device has failed to compute something: what the
/// failed kernels should have left there is missing.
pub fn forget_device_state() {
    lora_4bit::kernels::forget_device_state();
    kv_paging::kernels::forget_device_state();
}

/// Runs `step`; on the CPU, on a thread of rayon's pool.
///
/// The kernels of a step split their work over that pool some hundred times. From a thread outside of it, each of these
/// would wait for a worker to wake up; a worker starts its share at once, while the others look for theirs. GPU backends
/// keep a queue for each thread, so that there the step stays where it is.
pub fn on_worker<R: Send>(device: &Device, step: impl FnOnce() -> R + Send) -> R {
    match is_cpu(device) {
        true => rayon::scope(|_| step()),
        false => step(),
    }
}

/// What is known of each row of logits that has a target: its cross-entropy; 1 if the target is the first of the largest
/// logits, or else 0; the entropy of its softmax. And the gradient of `scale` times the sum of the cross-entropies. On a GPU it
/// takes the memory of `logits`, which nobody else may hold.
///
/// # Shapes
/// logits and their gradient `[rows, vocab]`, of one type; what is known `[rows, 3]` in f32.
///
/// # Panics
/// As [`cross_entropy`].
pub fn cross_entropy_of_rows(
    logits: Tensor<2>,
    targets: &[u32],
    scale: f64,
) -> (Tensor<2>, Tensor<2>) {
    let _span = trace_span!("cross_entropy").entered();
    let [rows, vocab] = check_targets(&logits, targets);
    if rows > 0 && is_untracked_cpu(&logits) && is_f32_on_cpu(&logits) {
        let device = logits.device();
        let mut values: Vec<f32> = match logits.into_data().try_into_vec() {
            Ok(values) => values,
            Err(_) => unreachable!("the dtype is f32"),
        };
        let known = cpu::cross_entropy_of_rows(&mut values, targets, scale as f32);
        let known = TensorData::new(known.into_flattened(), [rows, 3]);
        let gradient = TensorData::new(values, [rows, vocab]);
        return (
            Tensor::from_data(known, (&device, DType::F32)),
            Tensor::from_data(gradient, (&device, DType::F32)),
        );
    }
    #[cfg(feature = "gpu")]
    if cube::abilities::has_plane_operations(&logits.device()) {
        return gpu::cross_entropy_of_rows(logits, targets, scale);
    }
    naive::cross_entropy_of_rows(logits, targets, scale)
}

/// [`cross_entropy_of_rows`], summed over the rows.
///
/// # Shapes
/// logits and their gradient `[rows, vocab]`; the sums `[3]`: cross-entropy, rows that are right, entropy.
///
/// # Panics
/// When there aren't as many targets as rows, or a target isn't below the size of the vocabulary.
pub fn cross_entropy(logits: Tensor<2>, targets: &[u32], scale: f64) -> (Tensor<1>, Tensor<2>) {
    let _span = trace_span!("cross_entropy").entered();
    let [rows, vocab] = check_targets(&logits, targets);
    let device = logits.device();
    if rows == 0 {
        return (Tensor::zeros([3], (&device, DType::F32)), logits);
    }
    if !is_untracked_cpu(&logits) || !is_f32_on_cpu(&logits) {
        return naive::cross_entropy(logits, targets, scale);
    }
    let mut values: Vec<f32> = match logits.into_data().try_into_vec() {
        Ok(values) => values,
        Err(_) => unreachable!("the dtype is f32"),
    };
    let sums = cpu::cross_entropy(&mut values, targets, scale as f32);
    let gradient = TensorData::new(values, [rows, vocab]);
    (
        Tensor::from_data(sums, (&device, DType::F32)),
        Tensor::from_data(gradient, (&device, DType::F32)),
    )
}

/// What is known of each row of logits, as [`cross_entropy_of_rows`] has it, and the gradient of the sum of the cross-entropies
/// times `weight`, which gets the number of a row and its cross-entropy: for losses whose derivative by a row's
/// log-probability depends on that log-probability.
///
/// # Shapes
/// logits and their gradient `[rows, vocab]`.
///
/// # Panics
/// As [`cross_entropy`].
pub fn weighted_cross_entropy(
    logits: Tensor<2>,
    targets: &[u32],
    weight: &(dyn Fn(usize, f32) -> f32 + Sync),
) -> (Vec<[f32; 3]>, Tensor<2>) {
    let _span = trace_span!("cross_entropy").entered();
    let [rows, vocab] = check_targets(&logits, targets);
    if rows == 0 {
        return (Vec::new(), logits);
    }
    let device = logits.device();
    if is_untracked_cpu(&logits) && is_f32_on_cpu(&logits) {
        let mut values: Vec<f32> = match logits.into_data().try_into_vec() {
            Ok(values) => values,
            Err(_) => unreachable!("the dtype is f32"),
        };
        let known = cpu::weighted_cross_entropy(&mut values, targets, weight);
        let gradient = TensorData::new(values, [rows, vocab]);
        return (known, Tensor::from_data(gradient, (&device, DType::F32)));
    }
    let (known, gradient) = cross_entropy_of_rows(logits, targets, 1.0);
    let known: Vec<f32> = known.into_data().iter::<f32>().collect();
    let known: Vec<[f32; 3]> = known.as_chunks().0.to_vec();
    let weights = known.iter().enumerate();
    let weights: Vec<f32> = weights.map(|(row, known)| weight(row, known[0])).collect();
    let weights = TensorData::new(weights, [rows, 1]);
    let weights = Tensor::<2>::from_data(weights, (&device, DType::F32)); // [rows, 1]
    let weights = weights.cast(gradient.dtype());
    (known, gradient * weights)
}

/// Rows and vocabulary of logits that have these targets.
fn check_targets(logits: &Tensor<2>, targets: &[u32]) -> [usize; 2] {
    let [rows, vocab] = logits.dims();
    assert_eq!(targets.len(), rows, "targets of the rows");
    let largest = targets.iter().max().copied().unwrap_or_default();
    assert!((largest as usize) < vocab, "target {largest} of {vocab}");
    [rows, vocab]
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    pub(super) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(
            shape,
            Distribution::Uniform(-3.0, 3.0),
            (&Device::flex(), DType::F32),
        )
    }

    #[track_caller]
    pub(super) fn check<const D: usize>(fused: Tensor<D>, naive: Tensor<D>) {
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
    fn weights_of_rows_scale_their_gradients() {
        let logits = random([5, 300]) * 3.0;
        let targets = [0, 7, 299, 150, 3];
        let weight = |row: usize, loss: f32| row as f32 - 0.5 * loss;
        let (known, gradient) = weighted_cross_entropy(logits.clone(), &targets, &weight);
        let (expected, unweighted) = naive::cross_entropy_of_rows(logits, &targets, 1.0);
        let weights = known
            .iter()
            .enumerate()
            .map(|(row, known)| weight(row, known[0]));
        let weights: Vec<f32> = weights.collect();
        let known = TensorData::new(known.concat(), [5, 3]);
        let on_cpu = (&Device::flex(), DType::F32);
        check(Tensor::<2>::from_data(known, on_cpu), expected);
        let weights = Tensor::<2>::from_data(TensorData::new(weights, [5, 1]), on_cpu);
        check(gradient, unweighted * weights);
    }

    #[test]
    fn cross_entropy_equals_its_twin() {
        for (rows, vocab) in [(1, 2), (3, 50), (20, 9001)] {
            let logits = random([rows, vocab]) * 4.0;
            let mut targets: Vec<u32> = (0..rows).map(|i| (i * 7 % vocab) as u32).collect();
            // A row that is right.
            let likely = logits
                .clone()
                .narrow(0, 0, 1)
                .argmax(1)
                .into_scalar::<i64>();
            targets[0] = likely as u32;
            let (sums, gradient) = cross_entropy(logits.clone(), &targets, 0.25);
            let found: Vec<f32> = sums.to_data().iter().collect();
            assert!(found[1] >= 1.0 && found[2] > 0.0, "{found:?}");
            let (expected, expected_gradient) =
                naive::cross_entropy(logits.clone(), &targets, 0.25);
            check(sums, expected);
            check(gradient, expected_gradient);
            let (known, gradient) = cross_entropy_of_rows(logits.clone(), &targets, 0.25);
            let (expected, expected_gradient) =
                naive::cross_entropy_of_rows(logits, &targets, 0.25);
            check(known, expected);
            check(gradient, expected_gradient);
        }
        // Of equal logits the first one is the likeliest.
        let equal = Tensor::zeros([2, 40], &Device::flex());
        for (sums, _) in [
            cross_entropy(equal.clone(), &[0, 3], 1.0),
            naive::cross_entropy(equal, &[0, 3], 1.0),
        ] {
            assert_eq!(sums.to_data().iter::<f32>().nth(1), Some(1.0));
        }
    }
}
