//! Tokens chosen on a GPU, and their way to the host.

use std::collections::HashMap;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};
use kv_paging::DecodeStep;
use tracing::trace_span;

use super::super::cube::abilities::supports;
use super::super::cube::choose::{NONE, top_logits_of};
use super::super::cube::int8_lm_head;
use super::super::cube::read::{PendingWords, queues};
use super::super::integers::ints;
use crate::sampling::{Draw, LogitChanges, TopLogits};

/// Choosing tokens on a GPU.
#[backend_extension(Cube)]
pub(crate) trait GpuChoiceOps: burn::backend::Backend {
    /// Index of the largest value of each row `[rows, vocab]`, the first of several; NaN never is: `[rows]`.
    fn gpu_argmax(logits: FloatTensor<Self>) -> IntTensor<Self>;
    /// The same; also written to the first elements of `chosen`, which all of its handles see.
    fn gpu_choose(logits: FloatTensor<Self>, chosen: IntTensor<Self>) -> IntTensor<Self>;
    /// A copy of lm_head `[vocab, hidden]` in int8: `[vocab * hidden / 4]`, and what describes its rows: `[vocab * 4]`.
    fn gpu_copy_lm_head(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>);
    /// [`GpuChoiceOps::gpu_choose`] for the logits of `norm(x)`, x `[rows, hidden]`, with this copy of lm_head. `x` is not
    /// rounded, as a product of three rows or more with tensor cores would.
    fn gpu_choose_by_int8(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        eps: f64,
        lm_head: FloatTensor<Self>,
        codes: IntTensor<Self>,
        factors: FloatTensor<Self>,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self>;
    /// Starts to copy token ids to the host.
    fn gpu_read_ids(ids: IntTensor<Self>) -> PendingWords;
    /// Starts to copy logits to the host.
    fn gpu_read_logits(logits: FloatTensor<Self>) -> PendingWords;
    /// Starts to find what is likely in each row of logits `[rows, vocab]` and to copy it to the host; scales `[rows]`, floats.
    fn gpu_top_logits(logits: FloatTensor<Self>, scales: IntTensor<Self>) -> PendingWords;
    /// Makes the logits `[rows, vocab]` of tokens that may not come negative infinity, in place: all handles see it. `entries` has
    /// `num` rows of the logits, then the place of the mask of each in `masks`, where a mask has a bit per token.
    fn gpu_mask(
        logits: FloatTensor<Self>,
        masks: IntTensor<Self>,
        entries: IntTensor<Self>,
        num: usize,
    ) -> FloatTensor<Self>;
    /// Writes `num` masks of `len` words to a table, in place: all handles see it. `masks` has their places, then their words.
    fn gpu_store_masks(
        table: IntTensor<Self>,
        masks: IntTensor<Self>,
        num: usize,
        len: usize,
    ) -> IntTensor<Self>;
    /// Changes logits `[rows, vocab]` in place as `changes` says, the words of [`LogitChanges`] of these rows: all handles see it.
    /// `inputs` has for each row the token before the one that is drawn.
    fn gpu_change(
        logits: FloatTensor<Self>,
        changes: IntTensor<Self>,
        inputs: IntTensor<Self>,
    ) -> FloatTensor<Self>;
    /// [`GpuChoiceOps::gpu_change`] of a copy.
    fn gpu_changed(
        logits: FloatTensor<Self>,
        changes: IntTensor<Self>,
        inputs: IntTensor<Self>,
    ) -> FloatTensor<Self>;
    /// Draws a token of each row of logits `[rows, vocab]` as `draws` says from `at` on, where it has the words of
    /// [`Draw`](crate::Draw): the first one of `num_draws` rows, then the second. -1 where the largest logits don't decide; also
    /// written to the first elements of `chosen`, as 0 there.
    fn gpu_draw(
        logits: FloatTensor<Self>,
        draws: IntTensor<Self>,
        at: usize,
        num_draws: usize,
        chosen: IntTensor<Self>,
    ) -> IntTensor<Self>;
}

/// Token ids on their way from the device.
#[derive(Debug)]
pub(crate) struct PendingIds(PendingWords);

impl PendingIds {
    /// Waits for them. `None` where the device couldn't draw one.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub(crate) fn wait(self) -> Result<Vec<Option<u32>>, String> {
        let ids = self.0.wait()?.into_iter();
        Ok(ids.map(|id| (id != NONE).then_some(id)).collect())
    }
}

/// All logits of some rows on their way from the device.
#[derive(Debug)]
pub(crate) struct PendingLogits {
    rows: Vec<usize>,
    words: PendingWords,
}

impl PendingLogits {
    /// Waits for them: those of each row.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub(crate) fn wait(self) -> Result<HashMap<usize, Vec<f32>>, String> {
        let _span = trace_span!("read_logits", rows = self.rows.len()).entered();
        let words = self.words.wait()?;
        let rows = words.chunks_exact(words.len() / self.rows.len().max(1));
        let floats =
            |row: &[u32]| -> Vec<f32> { row.iter().copied().map(f32::from_bits).collect() };
        Ok(self.rows.into_iter().zip(rows.map(floats)).collect())
    }
}

/// Starts to copy the logits of these rows of a step to the host.
///
/// # Shapes
/// logits `[rows, vocab]`.
pub(crate) fn read_logits(logits: Tensor<2>, rows: Vec<usize>) -> PendingLogits {
    let words = Dispatch::gpu_read_logits(logits.into_dispatch());
    PendingLogits { rows, words }
}

/// The largest logits of some rows on their way from the device.
#[derive(Debug)]
pub(crate) struct PendingLargest(PendingWords);

impl PendingLargest {
    /// Waits for them.
    ///
    /// # Errors
    /// What the device says, if it couldn't compute them.
    pub(crate) fn wait(self) -> Result<Vec<TopLogits>, String> {
        Ok(top_logits_of(&self.0.wait()?))
    }
}

/// Whether a device goes on computing while the host reads tokens. Tests on a CPU's Vulkan device say so of it, too, by the
/// variable that turns on its other missing features.
pub(crate) fn queues_reads(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => {
            queues(device) || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
        }
        _ => false,
    }
}

/// Starts to copy token ids to the host. What this thread gives the device to do afterwards doesn't delay the ids.
pub(crate) fn read_ids(ids: &Tensor<1, Int>) -> PendingIds {
    PendingIds(Dispatch::gpu_read_ids(ids.clone().into_dispatch()))
}

/// Changes logits of a step in place and for all handles, as `changes` says. `inputs` has the tokens of the step.
///
/// # Shapes
/// logits `[rows, vocab]`; changes: the words of [`LogitChanges`]; inputs `[rows]` or more.
pub(crate) fn change_logits(logits: &Tensor<2>, changes: &Tensor<1, Int>, inputs: &Tensor<1, Int>) {
    let [changes, inputs] = [changes, inputs].map(|x| x.clone().into_dispatch());
    let _ = Dispatch::gpu_change(logits.clone().into_dispatch(), changes, inputs);
}

/// Starts to draw a token of each row of logits, which stay as they are, for draws after tokens that the host knows. `None` where
/// the device has no kernels for it.
///
/// # Shapes
/// logits `[rows, vocab]`; a draw for each row.
pub(crate) fn draw_tokens(logits: &Tensor<2>, draws: &[Draw]) -> Option<PendingIds> {
    let ([rows, _], device) = (logits.dims(), logits.device());
    assert_eq!(rows, draws.len(), "draws of the rows");
    if !supports(logits) {
        return None;
    }
    if draws.iter().all(Draw::is_argmax) {
        return Some(read_ids(&argmax(logits.clone())));
    }
    let words: Vec<[i32; Draw::WORDS]> = draws.iter().map(Draw::words).collect();
    let words = (0..Draw::WORDS).flat_map(|i| words.iter().map(move |words| words[i]));
    let words = ints(words.collect(), &device);
    let chosen = Tensor::<1, Int>::zeros([rows], (&device, DType::I32));
    let mut logits = logits.clone().into_dispatch();
    if draws.iter().any(|draw| draw.changes.is_some()) {
        let changes = changes_of(
            draws.iter().map(|draw| draw.changes.as_ref()),
            rows,
            &device,
        );
        // No change asks for the token before.
        let inputs = chosen.clone().into_dispatch();
        logits = Dispatch::gpu_changed(logits, changes.into_dispatch(), inputs);
    }
    let [words, chosen] = [words, chosen].map(Tensor::into_dispatch);
    let ids = Dispatch::gpu_draw(logits, words, 0, rows, chosen);
    Some(PendingIds(Dispatch::gpu_read_ids(ids)))
}

/// The words of [`LogitChanges`] on a device.
pub(crate) fn changes_of<'a>(
    rows: impl IntoIterator<Item = Option<&'a LogitChanges>>,
    room: usize,
    device: &Device,
) -> Tensor<1, Int> {
    ints(LogitChanges::words(rows, room), device)
}

/// Starts to find the largest logits of each row, for samplers with these scales
/// ([`Sampler::scale`](crate::Sampler::scale)). `None` where the device has no kernels for it.
///
/// # Shapes
/// logits `[rows, vocab]`; a scale for each row.
pub(crate) fn largest_logits(logits: &Tensor<2>, scales: &[f32]) -> Option<PendingLargest> {
    let [rows, _] = logits.dims();
    assert_eq!(rows, scales.len(), "scales of the rows");
    if !supports(logits) {
        return None;
    }
    let bits: Vec<i32> = scales.iter().map(|scale| scale.to_bits() as i32).collect();
    let scales = ints(bits, &logits.device());
    let (logits, scales) = (logits.clone().into_dispatch(), scales.into_dispatch());
    Some(PendingLargest(Dispatch::gpu_top_logits(logits, scales)))
}

/// Index of the largest value of each row, the first of several; NaN never is.
///
/// # Shapes
/// logits `[rows, vocab]`; result `[rows]`.
fn argmax(logits: Tensor<2>) -> Tensor<1, Int> {
    Tensor::from_dispatch(Dispatch::gpu_argmax(logits.into_dispatch()))
}

/// [`argmax`] that also writes to the first elements of `chosen`, where the next step finds its tokens.
pub(crate) fn argmax_into(logits: Tensor<2>, chosen: &Tensor<1, Int>) -> Tensor<1, Int> {
    let chosen = chosen.clone().into_dispatch();
    Tensor::from_dispatch(Dispatch::gpu_choose(logits.into_dispatch(), chosen))
}

/// Draws a token of each row of a step as the step says, see [`GpuChoiceOps::gpu_draw`].
pub(crate) fn draw_step(
    logits: Tensor<2>,
    step: &DecodeStep,
    chosen: &Tensor<1, Int>,
) -> Tensor<1, Int> {
    Tensor::from_dispatch(Dispatch::gpu_draw(
        logits.into_dispatch(),
        step.values().clone().into_dispatch(),
        step.choices_at(),
        step.num_rows(),
        chosen.clone().into_dispatch(),
    ))
}

/// An int8 copy of lm_head on a GPU, and what describes its rows.
#[derive(Debug)]
pub(crate) struct GpuInt8LmHead {
    /// `[vocab * hidden / 4]`.
    codes: Tensor<1, Int>,
    /// `[vocab * 4]`.
    factors: Tensor<1>,
}

impl GpuInt8LmHead {
    /// The copy of `weight [vocab, hidden]`. `None` where there are no kernels for it.
    pub(crate) fn new(weight: &Tensor<2>) -> Option<Self> {
        if !int8_lm_head::can_copy(weight) {
            return None;
        }
        let (codes, factors) = Dispatch::gpu_copy_lm_head(weight.clone().into_dispatch());
        Some(Self {
            codes: Tensor::from_dispatch(codes),
            factors: Tensor::from_dispatch(factors),
        })
    }

    /// Bytes of memory of the copy of `weight [vocab, hidden]`; 0 where there are no kernels for it.
    pub(crate) fn bytes_of(weight: &Tensor<2>) -> usize {
        let [vocab, hidden] = weight.dims();
        match int8_lm_head::can_copy(weight) {
            true => vocab * (hidden + 16),
            false => 0,
        }
    }

    /// Whether [`GpuInt8LmHead::argmax`] takes so many rows at once.
    pub(crate) fn takes(rows: usize) -> bool {
        rows <= int8_lm_head::MAX_ROWS
    }

    /// Bytes of memory.
    pub(crate) fn num_bytes(&self) -> usize {
        4 * (self.codes.dims()[0] + self.factors.dims()[0])
    }

    /// The token with the largest logit of each row of `norm(x) · weightᵀ`, x `[rows, hidden]`: `[rows]`, also written to the
    /// first elements of `chosen`.
    pub(crate) fn argmax(
        &self,
        x: Tensor<2>,
        (norm, eps): (&Tensor<1>, f64),
        weight: &Tensor<2>,
        chosen: &Tensor<1, Int>,
    ) -> Tensor<1, Int> {
        Tensor::from_dispatch(Dispatch::gpu_choose_by_int8(
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use burn::tensor::{Distribution, TensorData};

    use super::super::super::first_gpu;
    use super::super::masks::mask_logits;
    use super::*;
    use crate::constraint::{ConstraintFactory, Grammar};
    use crate::sampling::{Ahead, RowMask, Sampler, SamplingParams};

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let uniform = Distribution::Uniform(-3.0, 3.0);
        Tensor::random(shape, uniform, (&Device::flex(), DType::F32))
    }

    /// Tokens of each sampler, one row each.
    const STEPS: u64 = 40;

    pub(in super::super) fn random_logits(len: usize, seed: u64) -> Vec<f32> {
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
        let guessed = vec![0; rows.len()];
        let draws: Vec<Draw> = (0..rows.len())
            .map(|row| sampler.draw(Ahead::Tokens(&guessed[..row]), &[]).unwrap())
            .collect();
        let found = draw_tokens(&logits, &draws).unwrap().wait().unwrap();
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

    /// Draws each row of logits under a grammar, as the host does from all logits.
    #[test]
    fn a_gpu_draws_constrained_tokens_as_the_sampler_does() {
        let dir = crate::bundled_model_dir().unwrap();
        let tokenizer = crate::Tokenizer::from_dir(&dir).unwrap();
        let vocab = tokenizer.vocab_size();
        let factory = ConstraintFactory::new(&tokenizer, vocab, &[2]).unwrap();
        let grammars = [Some("[0-9]+"), None, Some("a|b|c"), Some(".*"), Some("x")];
        let grammars = grammars.map(|regex| {
            let regex = Grammar::Regex(regex?.to_owned());
            Some(factory.compile(&regex, None).unwrap())
        });
        let at = |temperature: f32, top_k, top_p| SamplingParams {
            temperature,
            top_k,
            top_p,
            ..SamplingParams::default()
        };
        let always = [
            at(0.0, 0, 1.0),
            at(1.0, 0, 1.0),
            at(1.5, 20, 1.0),
            at(0.8, 3, 0.7),
            at(0.2, 0, 0.8),
            SamplingParams {
                min_p: 0.05,
                ..at(0.5, 0, 1.0)
            },
        ];
        for params in always {
            let samplers = (0..20).map(|row| {
                let params = SamplingParams {
                    seed: Some(row as u64),
                    ..params.clone()
                };
                Sampler::new(&params, &[], vocab).constrained(grammars[row % 5].clone())
            });
            let mut samplers: Vec<Sampler> = samplers.collect();
            let rows: Vec<Vec<f32>> = (0..20).map(|seed| random_logits(vocab, seed)).collect();
            let data = TensorData::new(rows.concat(), [20, vocab]);
            let logits = Tensor::<2>::from_data(data, (&first_gpu(), DType::F32));
            let masks: Vec<RowMask> = (samplers.iter_mut().enumerate())
                .filter_map(|(row, sampler)| {
                    let mask = sampler.mask()?;
                    Some(RowMask { row, mask })
                })
                .collect();
            assert_eq!(masks.len(), 16);
            assert!(mask_logits(&logits, &masks));
            let draws = samplers
                .iter_mut()
                .map(|sampler| sampler.draw(Ahead::NONE, &[]).unwrap());
            let found = draw_tokens(&logits, &draws.collect::<Vec<Draw>>()).unwrap();
            let expected = samplers.iter_mut().zip(rows).map(|(sampler, mut row)| {
                // Each answer is the sampler's, none is left to the host.
                Some(sampler.sample(&mut row, &[]).id)
            });
            let expected: Vec<Option<u32>> = expected.collect();
            assert_eq!(found.wait().unwrap(), expected, "{params:?}");
        }
    }

    /// Parameters that change logits: by penalties, biases and bad words.
    fn changing_params() -> [SamplingParams; 6] {
        let base = SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        };
        [
            SamplingParams {
                repetition_penalty: 1.3,
                ..base.clone()
            },
            SamplingParams {
                presence_penalty: 0.7,
                frequency_penalty: -0.4,
                ..base.clone()
            },
            SamplingParams {
                repetition_penalty: 0.8,
                frequency_penalty: 1.1,
                logit_bias: vec![(3, 2.5), (60, -100.0), (69, 1.0)],
                ..base.clone()
            },
            SamplingParams {
                logit_bias: vec![(61, 9.0)],
                bad_words: vec![vec![61], vec![2, 9], vec![7, 1, 11], vec![8, 11]],
                ..base.clone()
            },
            SamplingParams {
                repetition_penalty: 1.1,
                bad_words: vec![vec![1, 9], vec![2, 9], vec![2, 2], vec![1, 2, 50]],
                ..base.clone()
            },
            base,
        ]
    }

    /// Tokens that are banned beside such parameters.
    const BANNED: [u32; 2] = [5, 68];

    /// What changes of logits after tokens that the host knows, after guessed ones and after one that only the device knows is what
    /// the sampler changes.
    #[test]
    fn changes_on_a_gpu_are_those_of_the_sampler() {
        let gpu = first_gpu();
        // In the output already, in the prompt only, in neither, with a bias; the first one of two that may not follow each other.
        let last = [2, 30, 44, 60, 1];
        for vocab in [70, 9001, 151_936] {
            for params in changing_params() {
                let mut sampler = Sampler::new(&params, &[2, 3, 3, 30, 66], vocab);
                [7, 2, 1, 1].iter().for_each(|&id| sampler.observe(id));
                // More than the units of a cube.
                (0..600).for_each(|i| sampler.observe((100 + 7 * i) % vocab as u32));
                [7, 1].iter().for_each(|&id| sampler.observe(id));
                let mut rows: Vec<Vec<f32>> = (0..12).map(|s| random_logits(vocab, s)).collect();
                for row in &mut rows {
                    (row[2], row[3], row[7]) = (f32::INFINITY, f32::NAN, f32::NEG_INFINITY);
                }
                let guessed = [2, 44, 2];
                let mut draws = Vec::new();
                let mut expected = Vec::new();
                for (i, row) in rows.iter().enumerate() {
                    let banned = if i % 2 == 0 { &BANNED[..] } else { &[] };
                    let (ahead, after) = match i {
                        0..4 => (Ahead::Tokens(&guessed[..i]), &guessed[..i]),
                        4..9 => (Ahead::Drawn, &last[i - 4..][..1]),
                        _ => (Ahead::NONE, &[][..]),
                    };
                    draws.push(sampler.draw(ahead, banned).unwrap().changes);
                    let mut after_those = sampler.clone();
                    after.iter().for_each(|&id| after_those.observe(id));
                    let mut row = row.clone();
                    after_those.sample(&mut row, banned);
                    expected.push(row);
                }
                let inputs: Vec<i32> = (0..12)
                    .map(|i| {
                        if (4..9).contains(&i) {
                            last[i - 4] as i32
                        } else {
                            2
                        }
                    })
                    .collect();
                // Rows without a change stay.
                draws[11] = None;
                expected[11].clone_from(&rows[11]);
                let inputs = TensorData::new(inputs, [12]);
                let inputs = Tensor::<1, Int>::from_data(inputs, (&gpu, DType::I32));
                let changes = changes_of(draws.iter().map(Option::as_ref), 20, &gpu);
                let data = TensorData::new(rows.concat(), [12, vocab]);
                let logits = Tensor::<2>::from_data(data, (&gpu, DType::F32));
                change_logits(&logits, &changes, &inputs);
                let found: Vec<f32> = logits.into_data().iter().collect();
                for (row, (found, expected)) in found.chunks(vocab).zip(&expected).enumerate() {
                    for (id, (found, expected)) in found.iter().zip(expected).enumerate() {
                        // As the sampler reads them.
                        let read = |x: f32| {
                            if x.is_nan() {
                                f32::NEG_INFINITY
                            } else {
                                x.min(f32::MAX)
                            }
                        };
                        let (found, expected) = (read(*found), read(*expected));
                        assert!(
                            found == expected
                                || (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                            "{params:?}, {vocab} tokens, row {row}, token {id}: {found}, expected {expected}"
                        );
                    }
                }
            }
        }
    }

    /// A device draws from changed logits what the sampler draws, and leaves the logits of the step as they are.
    #[test]
    fn a_gpu_draws_from_changed_logits_as_the_sampler_does() {
        let gpu = first_gpu();
        let vocab = 9001;
        for params in changing_params() {
            for (temperature, top_k) in [(0.0, 0), (0.8, 20), (1.0, 0)] {
                let rows: Vec<Vec<f32>> = (0..20).map(|s| random_logits(vocab, s)).collect();
                let best = |row: &Vec<f32>| {
                    let ids = 0..vocab;
                    ids.max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32
                };
                let mut samplers: Vec<Sampler> = (rows.iter().enumerate())
                    .map(|(i, row)| {
                        let params = SamplingParams {
                            temperature,
                            top_k,
                            seed: Some(i as u64),
                            ..params.clone()
                        };
                        let mut sampler = Sampler::new(&params, &[best(row), 3], vocab);
                        (0..i).for_each(|_| sampler.observe(best(row)));
                        sampler
                    })
                    .collect();
                let banned: Vec<Vec<u32>> = (rows.iter().enumerate())
                    .map(|(i, row)| {
                        if i % 5 == 0 {
                            vec![best(row), 77]
                        } else {
                            Vec::new()
                        }
                    })
                    .collect();
                let data = TensorData::new(rows.concat(), [20, vocab]);
                let logits = Tensor::<2>::from_data(data.clone(), (&gpu, DType::F32));
                let draws = samplers.iter_mut().zip(&banned);
                let draws =
                    draws.map(|(sampler, banned)| sampler.draw(Ahead::NONE, banned).unwrap());
                let draws: Vec<Draw> = draws.collect();
                let found = draw_tokens(&logits, &draws).unwrap().wait().unwrap();
                let expected = samplers.iter_mut().zip(rows).zip(&banned);
                let expected: Vec<Option<u32>> = expected
                    .map(|((sampler, mut row), banned)| Some(sampler.sample(&mut row, banned).id))
                    .collect();
                assert_eq!(found, expected, "{params:?} at {temperature}, {top_k}");
                assert_eq!(logits.into_data(), data);
            }
        }
    }

    /// The largest logits of each row, with a row of few distinct values and one that holds NaN and infinities.
    #[test]
    fn a_gpu_finds_the_largest_logits() {
        let gpu = first_gpu();
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
        let found = largest_logits(&logits, &scales).unwrap().wait().unwrap();
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

    /// The most likely tokens by the int8 copy of lm_head are those of all logits.
    #[test]
    fn an_int8_copy_on_a_gpu_gives_the_most_likely_tokens() {
        let gpu = first_gpu();
        let floats = |data: TensorData| data.iter::<f32>().collect::<Vec<f32>>();
        // Of the others not all know bf16.
        let dtypes = match gpu.as_dispatch() {
            DispatchDevice::Cube(device) if queues(device) => vec![DType::F32, DType::BF16],
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
                let copy = GpuInt8LmHead::new(&head).unwrap();
                assert_eq!(copy.num_bytes(), GpuInt8LmHead::bytes_of(&head));
                let chosen = copy.argmax(x.clone(), (&norm, 1e-6), &head, &places);
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
}
