//! Tokens and logits that a GPU sends to the host.

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::cube::{NONE, PendingWords, queues, top_logits_of};
use crate::sampling::{Draw, TopLogits};

/// Token ids on their way from the device.
#[derive(Debug)]
pub struct PendingIds(PendingWords);

impl PendingIds {
    /// Waits for them. `None` where the device couldn't draw one.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub fn wait(self) -> Result<Vec<Option<u32>>, String> {
        let ids = self.0.wait()?.into_iter();
        Ok(ids.map(|id| (id != NONE).then_some(id)).collect())
    }
}

/// Whether [`device_read_ids`] returns at once, so that the device can go on meanwhile. Tests on a CPU's Vulkan device say so
/// of it, too, by the variable that turns on its other missing features.
pub fn device_queues_reads(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => {
            queues(device) || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
        }
        _ => false,
    }
}

/// Starts to copy token ids of a GPU to the host. What this thread gives the device to do afterwards doesn't delay them.
pub fn device_read_ids(ids: &Tensor<1, Int>) -> PendingIds {
    let ids = ids.clone().into_dispatch();
    PendingIds(<Dispatch as super::DeviceModelOps>::device_read_ids(ids))
}

/// The largest logits of some rows on their way from the device.
#[derive(Debug)]
pub struct PendingTop(PendingWords);

impl PendingTop {
    /// Waits for them.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub fn wait(self) -> Result<Vec<TopLogits>, String> {
        Ok(top_logits_of(&self.0.wait()?))
    }
}

/// Starts to find the largest logits of each row on a GPU, for samplers with these scales
/// ([`Sampler::scale`](crate::Sampler::scale)).
///
/// # Shapes
/// logits `[rows, vocab]`; a scale for each row.
pub fn device_top_logits(logits: Tensor<2>, scales: &[f32]) -> PendingTop {
    let rows = logits.dims()[0];
    assert_eq!(rows, scales.len(), "scales of the rows");
    let bits: Vec<i32> = scales.iter().map(|scale| scale.to_bits() as i32).collect();
    let data = TensorData::new(bits, [rows]);
    let on_device = Tensor::<1, Int>::from_data(data, (&logits.device(), DType::I32));
    let (logits, on_device) = (logits.into_dispatch(), on_device.into_dispatch());
    PendingTop(<Dispatch as super::DeviceModelOps>::device_top_logits(
        logits, on_device,
    ))
}

/// Starts to draw a token of each row of logits on a GPU.
///
/// # Shapes
/// logits `[rows, vocab]`; a draw for each row.
pub fn device_draw(logits: Tensor<2>, draws: &[Draw]) -> PendingIds {
    let rows = logits.dims()[0];
    assert_eq!(rows, draws.len(), "draws of the rows");
    let words: Vec<[i32; Draw::WORDS]> = draws.iter().map(Draw::words).collect();
    let words = (0..Draw::WORDS).flat_map(|i| words.iter().map(move |words| words[i]));
    let words = TensorData::new(words.collect::<Vec<i32>>(), [Draw::WORDS * rows]);
    let device = logits.device();
    let words = Tensor::<1, Int>::from_data(words, (&device, DType::I32)).into_dispatch();
    let chosen = Tensor::<1, Int>::zeros([rows], (&device, DType::I32)).into_dispatch();
    let logits = logits.into_dispatch();
    let ids = <Dispatch as super::DeviceModelOps>::device_draw(logits, words, 0, rows, chosen);
    PendingIds(<Dispatch as super::DeviceModelOps>::device_read_ids(ids))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::cube::first_gpu;
    use super::*;
    use crate::sampling::{Sampler, SamplingParams};

    /// Tokens of each sampler, one row each.
    const STEPS: u64 = 40;

    fn random_logits(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        // Few of many are likely, too.
        let spread = if len > 100_000 { 10.0 } else { 5.0 };
        (0..len)
            .map(|_| spread * (uniform() + uniform() + uniform() - 1.5))
            .collect()
    }

    /// Compares the tokens that a device draws from some rows of logits with those of the sampler; how many it draws.
    #[track_caller]
    fn compare(params: &SamplingParams, rows: &[Vec<f32>]) -> usize {
        let gpu = first_gpu();
        let vocab = rows[0].len();
        let data = TensorData::new(rows.concat(), [rows.len(), vocab]);
        let logits = Tensor::<2>::from_data(data, (&gpu, DType::F32));
        let params = SamplingParams {
            seed: Some(5),
            ..params.clone()
        };
        let mut sampler = Sampler::new(&params, &[], vocab);
        // As if each row were a step further.
        let draws: Vec<Draw> = (0..rows.len())
            .map(|row| sampler.draw(row).unwrap())
            .collect();
        let found = device_draw(logits, &draws).wait().unwrap();
        assert_eq!(found.len(), rows.len());
        for (row, found) in rows.iter().zip(&found) {
            let expected = sampler.sample(&mut row.clone(), &[]).id;
            if let Some(found) = found {
                assert_eq!(*found, expected, "{params:?}, {vocab} tokens");
            }
        }
        found.iter().flatten().count()
    }

    #[test]
    fn a_gpu_draws_the_tokens_of_the_sampler() {
        let params = SamplingParams::default();
        let at = |temperature| SamplingParams {
            temperature,
            ..params.clone()
        };
        let (top_k, top_p, min_p) = (20, 0.8, 0.05);
        let always = [
            at(0.0),
            at(0.7),
            at(2.0),
            SamplingParams { top_k, ..at(0.8) },
            SamplingParams {
                top_k,
                top_p,
                min_p,
                ..at(0.8)
            },
            SamplingParams { min_p, ..at(0.5) },
            SamplingParams {
                top_p: 0.9,
                ..at(0.2)
            },
            // More than there are is no limit.
            SamplingParams {
                top_k: 200_000,
                ..at(0.9)
            },
        ];
        for vocab in [70, 1000, 9000, 151_936] {
            let seeds = 0..if vocab < 100_000 { STEPS } else { 4 };
            let rows: Vec<Vec<f32>> = seeds.map(|seed| random_logits(vocab, seed)).collect();
            for params in &always {
                assert_eq!(compare(params, &rows), rows.len(), "{params:?}, {vocab}");
            }
            // Tokens that tie. Where top-p ends among them, rounding decides.
            let coarse = |row: &Vec<f32>| row.iter().map(|logit| logit.round()).collect();
            let coarse: Vec<Vec<f32>> = rows.iter().map(coarse).collect();
            for params in always.iter().filter(|params| params.top_p >= 1.0) {
                compare(params, &coarse);
            }
        }
    }

    #[test]
    fn a_gpu_draws_nothing_where_small_logits_count() {
        let params = SamplingParams {
            temperature: 2.0,
            ..SamplingParams::default()
        };
        let rows: Vec<Vec<f32>> = (0..STEPS).map(|seed| random_logits(9000, seed)).collect();
        for params in [
            SamplingParams {
                top_k: 600,
                ..params.clone()
            },
            SamplingParams {
                top_p: 0.99,
                ..params.clone()
            },
        ] {
            assert_eq!(compare(&params, &rows), 0, "{params:?}");
        }
    }

    #[test]
    fn a_gpu_knows_what_is_not_a_number_and_what_is_impossible() {
        let greedy = SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        };
        let limited = SamplingParams {
            top_k: 3,
            ..SamplingParams::default()
        };
        for params in [&SamplingParams::default(), &limited, &greedy] {
            let row = random_logits(9000, 1);
            let mut rows = vec![row; 6];
            rows[0][..8990].fill(f32::NAN);
            rows[1][5..].fill(f32::NEG_INFINITY);
            rows[2].fill(f32::NEG_INFINITY);
            rows[3].fill(f32::NAN);
            rows[4][77] = f32::INFINITY;
            rows[5].fill(f32::NEG_INFINITY);
            rows[5][8000] = -4.0;
            let found = compare(params, &rows);
            assert!(found >= 2, "{found} of {params:?}");
        }
    }
}
