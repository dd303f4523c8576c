//! What a GPU computes with kernels of its own, outside of autodiff graphs.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};
use kv_paging::{DecodeStep, Rotary};

use super::cube::abilities::has_exact_sines;
use super::integers::token_tensor;

/// The operations of a step on a GPU, outside of autodiff graphs.
#[backend_extension(Cube)]
pub(crate) trait DeviceModelOps: Backend {
    /// What a step starts with. Of `rows` tokens, which start at `tokens_at` in `step`, the rows of `weight [vocab, hidden]` in
    /// f32; -1, -2 and so on stand for the tokens in `chosen`. The tokens are also written to `inputs`. Then `scale` times the cosines and sines of the positions from
    /// `positions_at` on, times `inv_freq [half]`: both `[rows, 1, half]`.
    #[allow(clippy::too_many_arguments)]
    fn device_begin(
        weight: FloatTensor<Self>,
        step: IntTensor<Self>,
        chosen: IntTensor<Self>,
        inputs: IntTensor<Self>,
        inv_freq: FloatTensor<Self>,
        tokens_at: usize,
        positions_at: usize,
        rows: usize,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `scale` times the cosines and sines of `positions [rows]` times `inv_freq [half]`: both `[rows, 1, half]`.
    fn device_angles(
        positions: IntTensor<Self>,
        inv_freq: FloatTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// See [`angles_on_gpu`](super::angles_on_gpu): other GPUs may take the sine of a large number less exactly.
pub(crate) fn device_angles(
    positions: &[u32],
    (inv_freq, scale): (&[f32], f32),
    device: &Device,
) -> Option<Rotary> {
    has_exact_sines(device).then(|| angles(positions, (inv_freq, scale), device))
}

fn angles(positions: &[u32], (inv_freq, scale): (&[f32], f32), device: &Device) -> Rotary {
    let inv_freq = Tensor::<1>::from_data(inv_freq, (device, DType::F32));
    let positions = token_tensor(positions, device).into_dispatch();
    let (cos, sin) = Dispatch::device_angles(positions, inv_freq.into_dispatch(), scale);
    let [cos, sin] = [cos, sin].map(Tensor::from_dispatch);
    Rotary { cos, sin }
}

/// What a step starts with: rows of the embedding, `[rows, hidden]`, and the angles of the positions. The tokens, some of which
/// may be `chosen` ones of the step before, are left in `inputs`, at least one value for each row.
pub(crate) fn device_begin(
    weight: &Tensor<2>,
    step: &DecodeStep,
    [chosen, inputs]: [&Tensor<1, Int>; 2],
    (inv_freq, scale): (&Tensor<1>, f32),
) -> (Tensor<2>, Rotary) {
    let (x, cos, sin) = Dispatch::device_begin(
        weight.clone().into_dispatch(),
        step.values().clone().into_dispatch(),
        chosen.clone().into_dispatch(),
        inputs.clone().into_dispatch(),
        inv_freq.clone().into_dispatch(),
        step.tokens_at(),
        step.positions_at(),
        step.num_rows(),
        scale,
    );
    let [cos, sin] = [cos, sin].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(x), Rotary { cos, sin })
}

/// The loss of a training step on a GPU, outside of autodiff graphs.
#[backend_extension(Cube)]
pub(crate) trait LossOps: Backend {
    /// See [`super::cross_entropy_of_rows`].
    fn gpu_cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

/// See [`super::cross_entropy_of_rows`].
pub(super) fn cross_entropy_of_rows(
    logits: Tensor<2>,
    targets: &[u32],
    scale: f64,
) -> (Tensor<2>, Tensor<2>) {
    let targets = token_tensor(targets, &logits.device()).into_dispatch();
    let logits = logits.into_dispatch();
    let (known, gradient) = <Dispatch as LossOps>::gpu_cross_entropy(logits, targets, scale as f32);
    (
        Tensor::from_dispatch(known),
        Tensor::from_dispatch(gradient),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, TensorData};

    use super::*;
    use crate::kernels::tests::{check, random};
    use crate::kernels::{choice, cube, naive};
    use crate::sampling::Draw;

    #[test]
    fn rows_have_the_cross_entropy_of_the_twin() {
        let gpu = cube::first_gpu();
        for (rows, vocab) in [(1, 2), (3, 50), (7, 9001), (5, 10_000)] {
            let logits: Vec<f32> = (random([rows, vocab]) * 4.0).into_data().iter().collect();
            // The targets of the first rows are the largest logit, as large as one after, and as large as one before.
            let mut targets: Vec<u32> = (0..rows).map(|i| (i * 7 % vocab) as u32).collect();
            let mut logits = logits;
            for (row, target) in targets.iter_mut().enumerate().take(3) {
                let (first, last) = (row * vocab, (row + 1) * vocab - 1);
                logits[first] = 13.0;
                *target = 0;
                if row > 0 {
                    logits[last] = 13.0;
                }
                if row == 2 {
                    *target = (vocab - 1) as u32;
                }
            }
            let on = |device: &burn::tensor::Device| {
                let data = TensorData::new(logits.clone(), [rows, vocab]);
                Tensor::<2>::from_data(data, (device, DType::F32))
            };
            let (known, gradient) = cross_entropy_of_rows(on(&gpu), &targets, 0.25);
            let cpu = on(&burn::tensor::Device::flex());
            let (expected, expected_gradient) = naive::cross_entropy_of_rows(cpu, &targets, 0.25);
            let right: Vec<f32> = expected
                .clone()
                .narrow(1, 1, 1)
                .into_data()
                .iter()
                .collect();
            assert_eq!(right[0], 1.0);
            assert!(rows < 3 || right[1..3] == [1.0, 0.0]);
            check(known, expected);
            check(gradient, expected_gradient);
        }
    }

    /// What a decode step computes besides the layers.
    #[test]
    fn steps_on_a_gpu_embed_turn_and_choose() {
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
        let inputs = integers(&[-1, -1, -1, -1]);
        let (x, cos, sin) = Dispatch::device_begin(
            weight.clone().into_dispatch(),
            integers(&[7, 7, 49, 0, -2, 9, 0, 1000, 5]).into_dispatch(),
            integers(&[11, 3]).into_dispatch(),
            inputs.clone().into_dispatch(),
            frequencies.into_dispatch(),
            2,
            6,
            3,
            1.5,
        );
        let inputs: Vec<i32> = inputs.into_data().iter().collect();
        assert_eq!(inputs, [49, 0, 3, -1]);
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
        let draws = vec![Draw::default(); 4];
        let best = choice::draw_tokens(&on_gpu(logits, [4, vocab]), &draws).unwrap();
        assert_eq!(
            best.wait().unwrap(),
            [9_999, 0, 4_095, 4_321].map(Some::<u32>)
        );
    }

    #[test]
    fn angles_are_those_of_the_cpu() {
        let device = cube::first_gpu();
        // Where sines of large numbers are less exact, the kernel is not used, but shows which angle is whose.
        let (positions, error) = match has_exact_sines(&device) {
            true => ([0, 1, 77, 8_191, 131_071, 1_000_003], 1e-6),
            false => ([0, 1, 2, 3, 5, 7], 1e-3),
        };
        let inv_freq: Vec<f32> = (0..64)
            .map(|i| 1e4f32.powf(-f32::from(i as u8) / 64.0))
            .collect();
        let Rotary { cos, sin } = angles(&positions, (&inv_freq, 1.5), &device);
        assert_eq!((cos.dims(), sin.dims()), ([6, 1, 64], [6, 1, 64]));
        let [cos, sin] = [cos, sin].map(|x| x.into_data().try_into_vec::<f32>().unwrap());
        for (i, (cos, sin)) in cos.into_iter().zip(sin).enumerate() {
            let angle = positions[i / 64] as f32 * inv_freq[i % 64];
            let (s, c) = angle.sin_cos();
            assert!(
                (cos - 1.5 * c).abs() < error && (sin - 1.5 * s).abs() < error,
                "{angle}: {cos}, {sin}"
            );
        }
    }
}
