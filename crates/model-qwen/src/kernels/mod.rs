//! What a model computes besides its layers: the start and the end of a step, and the loss.
//!
//! The loss has a plain twin made of tensor operations in [`naive`]: the reference of the tests, and what runs on devices
//! without a kernel.

use burn::backend::DispatchDevice;
#[cfg(feature = "gpu")]
use burn::backend::tensor::{FloatTensor, IntTensor};
#[cfg(feature = "gpu")]
use burn::backend::{Dispatch, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
#[cfg(feature = "gpu")]
use cube::PendingWords;
#[cfg(feature = "gpu")]
use kv_paging::Rotary;
use tracing::trace_span;

pub(crate) mod allocator;
#[cfg(feature = "gpu")]
mod choice;
mod cpu;
#[cfg(feature = "gpu")]
mod cube;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "gpu")]
pub(crate) mod graph;
pub(crate) mod map_file;
pub mod naive;

pub use allocator::{keep_freed_memory, return_freed_memory, share_freed_memory};
#[cfg(feature = "gpu")]
pub use choice::{
    PendingIds, PendingTop, device_draw, device_queues_reads, device_read_ids, device_top_logits,
    wait_on_device,
};

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
    /// Index of the largest value of each row `[rows, vocab]`, the first of several; NaN never is: `[rows]`.
    fn device_argmax(logits: FloatTensor<Self>) -> IntTensor<Self>;
    /// The same; also written to the first elements of `chosen`, which all of its handles see.
    fn device_choose(logits: FloatTensor<Self>, chosen: IntTensor<Self>) -> IntTensor<Self>;
    /// A copy of a head `[vocab, hidden]` in 8 bits: `[vocab * hidden / 4]`, and what describes its rows: `[vocab * 4]`.
    fn device_copy_head(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>);
    /// [`DeviceModelOps::device_choose`] for the logits of `norm(x)`, x `[rows, hidden]`, with this copy of the head. `x` is not
    /// rounded, as a product of three rows or more with tensor cores would.
    fn device_choose_from(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        eps: f64,
        head: FloatTensor<Self>,
        codes: IntTensor<Self>,
        factors: FloatTensor<Self>,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self>;
    /// Starts to copy token ids to the host.
    fn device_read_ids(ids: IntTensor<Self>) -> PendingWords;
    /// Starts to find what is likely in each row of logits `[rows, vocab]` and to copy it to the host; scales `[rows]`, floats.
    fn device_top_logits(logits: FloatTensor<Self>, scales: IntTensor<Self>) -> PendingWords;
    /// Draws a token of each row of logits `[rows, vocab]` as `draws` says from `at` on, where it has the words of
    /// [`Draw`](crate::Draw): the first one of `num_draws` rows, then the second. -1 where the largest logits don't decide; also
    /// written to the first elements of `chosen`, as 0 there.
    fn device_draw(
        logits: FloatTensor<Self>,
        draws: IntTensor<Self>,
        at: usize,
        num_draws: usize,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self>;
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

/// See [`DeviceModelOps::device_choose`].
#[cfg(feature = "gpu")]
pub(crate) fn device_choose(
    logits: Tensor<2>,
    chosen: &Tensor<1, burn::tensor::Int>,
) -> Tensor<1, burn::tensor::Int> {
    let chosen = chosen.clone().into_dispatch();
    Tensor::from_dispatch(Dispatch::device_choose(logits.into_dispatch(), chosen))
}

/// Draws a token of each row of a step as it says, see [`DeviceModelOps::device_draw`].
#[cfg(feature = "gpu")]
pub(crate) fn device_draw_step(
    logits: Tensor<2>,
    step: &kv_paging::DecodeStep,
    chosen: &Tensor<1, burn::tensor::Int>,
) -> Tensor<1, burn::tensor::Int> {
    Tensor::from_dispatch(Dispatch::device_draw(
        logits.into_dispatch(),
        step.values().clone().into_dispatch(),
        step.choices_at(),
        step.num_rows(),
        chosen.clone().into_dispatch(),
    ))
}

/// A copy of a head in 8 bits on a GPU, and what describes its rows.
#[cfg(feature = "gpu")]
#[derive(Debug)]
pub(crate) struct DeviceBounds {
    /// `[vocab * hidden / 4]`.
    codes: Tensor<1, burn::tensor::Int>,
    /// `[vocab * 4]`.
    factors: Tensor<1>,
}

#[cfg(feature = "gpu")]
impl DeviceBounds {
    /// The most rows of `x` at once.
    pub(crate) const MAX_ROWS: usize = cube::MAX_BOUND_ROWS;

    /// The bounds of `weight [vocab, hidden]`, for which [`Self::bytes_of`] says that there are kernels.
    pub(crate) fn new(weight: &Tensor<2>) -> Self {
        let (codes, factors) = Dispatch::device_copy_head(weight.clone().into_dispatch());
        Self {
            codes: Tensor::from_dispatch(codes),
            factors: Tensor::from_dispatch(factors),
        }
    }

    /// Bytes of memory of the bounds of `weight [vocab, hidden]`; 0 where there are no kernels for it.
    pub(crate) fn bytes_of(weight: &Tensor<2>) -> usize {
        let [vocab, hidden] = weight.dims();
        if cube::can_bound(weight) {
            vocab * (hidden + 16)
        } else {
            0
        }
    }

    /// Bytes of memory.
    pub(crate) fn num_bytes(&self) -> usize {
        4 * (self.codes.dims()[0] + self.factors.dims()[0])
    }

    /// The token with the largest logit of each row of `norm(x) · weightᵀ`, x `[rows, hidden]`: `[rows]`, also written to the
    /// first elements of `chosen`.
    pub(crate) fn choose(
        &self,
        x: Tensor<2>,
        (norm, eps): (&Tensor<1>, f64),
        weight: &Tensor<2>,
        chosen: &Tensor<1, burn::tensor::Int>,
    ) -> Tensor<1, burn::tensor::Int> {
        Tensor::from_dispatch(Dispatch::device_choose_from(
            x.into_dispatch(),
            norm.clone().into_dispatch(),
            eps,
            weight.clone().into_dispatch(),
            self.codes.clone().into_dispatch(),
            self.factors.clone().into_dispatch(),
            chosen.clone().into_dispatch(),
        ))
    }
}

/// Index of the largest value of each row, the first of several; NaN never is.
///
/// # Shapes
/// logits `[rows, vocab]`; result `[rows]`.
#[cfg(feature = "gpu")]
pub fn device_argmax(logits: Tensor<2>) -> Tensor<1, burn::tensor::Int> {
    Tensor::from_dispatch(Dispatch::device_argmax(logits.into_dispatch()))
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

    /// The largest logits of each row, with a row of few distinct values and one that holds NaN and infinities.
    #[cfg(feature = "gpu")]
    #[test]
    fn a_gpu_finds_the_largest_logits() {
        let gpu = cube::first_gpu();
        // More than one part keeps, and than a row gives.
        let vocab = 40_000;
        let mut rows: Vec<Vec<f32>> = (0..3)
            .map(|_| random([1, vocab]).into_data().iter().collect())
            .collect();
        for logit in &mut rows[1] {
            *logit = logit.round();
        }
        rows[2][..3000].fill(f32::NAN);
        rows[2][3000..39_990].fill(f32::NEG_INFINITY);
        let scales = [1.0, 2.0, 0.5];
        let data = TensorData::new(rows.concat(), [3, vocab]);
        let logits = Tensor::<2>::from_data(data, (&gpu, DType::F32));
        let found = device_top_logits(logits, &scales).wait().expect("a step");
        for ((row, top), scale) in rows.iter().zip(found).zip(scales) {
            let numbers = row.iter().copied().filter(|logit| !logit.is_nan());
            let mut sorted: Vec<f32> = numbers.clone().collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            // Every part has 63 above its own bound, if values differ, and the row 511 at most.
            assert!(top.bound <= sorted[63], "{}", top.bound);
            assert!(top.entries.len() < 512);
            let expected: Vec<(u32, f32)> = (0..)
                .zip(row.iter().copied())
                .filter(|(_, logit)| *logit > top.bound)
                .collect();
            assert_eq!(top.entries, expected);
            let weights = numbers.map(|logit| f64::from((logit - sorted[0]) * scale).exp());
            let total: f64 = weights.sum();
            assert!(
                (top.total / total - 1.0).abs() < 1e-4,
                "{}, not {total}",
                top.total
            );
        }
    }

    /// What a decode step computes besides the layers.
    #[cfg(feature = "gpu")]
    #[test]
    fn steps_on_a_gpu_embed_turn_and_choose() {
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
        let best = device_argmax(on_gpu(logits, [4, vocab])).into_data();
        assert_eq!(
            best.iter::<i32>().collect::<Vec<_>>(),
            [9_999, 0, 4_095, 4_321]
        );
    }

    /// The most likely tokens by the bounds of a head are those of all logits.
    #[cfg(feature = "gpu")]
    #[test]
    fn bounds_on_a_gpu_choose_the_most_likely_tokens() {
        use burn::tensor::Int;
        let gpu = cube::first_gpu();
        let floats = |data: TensorData| data.iter::<f32>().collect::<Vec<f32>>();
        // Of the others not all know bf16.
        let dtypes = match gpu.as_dispatch() {
            DispatchDevice::Cube(device) if cube::queues(device) => vec![DType::F32, DType::BF16],
            _ => vec![DType::F32],
        };
        for (vocab, hidden) in [(5000, 64), (1030, 896), (2, 16), (4096, 1536), (700, 8192)] {
            for (dtype, rows) in dtypes
                .iter()
                .flat_map(|dtype| [1, 2, 4].map(|m| (*dtype, m)))
            {
                let mut head = floats(random([vocab, hidden]).into_data());
                let equal = [vocab / 3, vocab - 1].map(|row| row * hidden);
                head.copy_within(equal[0]..equal[0] + hidden, equal[1]);
                let head = TensorData::new(head, [vocab, hidden]);
                let head = Tensor::<2>::from_data(head, (&gpu, dtype));
                let norm = random([hidden]);
                let mut x = floats((random([rows, hidden]) * 30.0).into_data());
                if rows == 4 {
                    // The row that is there twice is the largest; no logit is a number; all are zero.
                    let twice = head.clone().narrow(0, vocab / 3, 1).into_data();
                    let norm = floats(norm.clone().into_data());
                    let signs = floats(twice).into_iter().zip(&norm).map(|(w, n)| w * n);
                    x[..hidden].copy_from_slice(&signs.collect::<Vec<f32>>());
                    x[hidden..2 * hidden].fill(f32::NAN);
                    x[2 * hidden..3 * hidden].fill(0.0);
                }
                let x = Tensor::<2>::from_data(TensorData::new(x, [rows, hidden]), &gpu);
                let norm = Tensor::<1>::from_data(norm.into_data(), (&gpu, DType::F32));
                let places = TensorData::new(vec![-1; 5], [5]);
                let places = Tensor::<1, Int>::from_data(places, (&gpu, DType::I32));
                let bounds = DeviceBounds::new(&head);
                assert_eq!(bounds.num_bytes(), DeviceBounds::bytes_of(&head));
                let chosen = bounds.choose(x.clone(), (&norm, 1e-6), &head, &places);
                let chosen: Vec<i32> = chosen.into_data().iter().collect();
                let written: Vec<i32> = places.into_data().iter().collect();
                assert_eq!(written[..rows], chosen);
                assert!(written[rows..].iter().all(|id| *id == -1));

                let on_cpu = |x: Tensor<2>| Tensor::<2>::from_data(x.into_data(), &Device::flex());
                let norm = Tensor::<1>::from_data(norm.into_data(), &Device::flex());
                let head = on_cpu(head.cast(DType::F32));
                let norm = lora_4bit::Norm {
                    weight: &norm,
                    eps: 1e-6,
                };
                let logits = lora_4bit::rms_norm(on_cpu(x), norm).matmul(head.transpose());
                let logits = floats(logits.into_data());
                for (row, (id, logits)) in chosen.iter().zip(logits.chunks(vocab)).enumerate() {
                    let found = logits[*id as usize];
                    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
                    let is_special = rows == 4 && row < 3;
                    let expected = if row == 0 { vocab / 3 } else { 0 };
                    assert!(
                        if is_special {
                            *id as usize == expected
                        } else {
                            found >= largest - 1e-3
                        },
                        "{vocab} x {hidden}, {dtype:?}, row {row} of {rows}: {id} with {found} of {largest}"
                    );
                }
            }
        }
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
