//! AdamW's moments in 8 bits, block by block as bitsandbytes keeps them.
//!
//! A block of 256 values has the scale of its largest magnitude. The mean has the signed dynamic map, the variance the
//! unsigned one. A step reads a block, computes in f32, moves the parameters, and rounds the new moments to the nearest
//! levels.
//!
//! Source: 8-bit Optimizers via Block-wise Quantization (<https://arxiv.org/abs/2110.02861>), `create_dynamic_map` in
//! `bitsandbytes/functional.py` and `optimizer_update_8bit_blockwise_pytorch` in `backends/triton/kernels_optim.py` of
//! bitsandbytes 0.50.

use std::sync::LazyLock;

use lora_4bit::dynamic_map::dynamic_map;
use rayon::prelude::*;

use super::Pass;

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// Parameters of fewer values keep moments in f32, as in bitsandbytes (`min_8bit_size`).
pub const MIN_VALUES: usize = 4096;

/// The levels of a map in ascending order, and what lies in the middle between two.
struct Map {
    levels: [f32; 256],
    middles: Vec<f32>,
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(*dynamic_map()));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(unsigned_levels()));

impl Map {
    fn new(levels: [f32; 256]) -> Self {
        let pairs = levels.windows(2);
        Self {
            middles: pairs.map(|pair| 0.5 * (pair[0] + pair[1])).collect(),
            levels,
        }
    }

    /// The code of the nearest level; of the lower one in the middle between two.
    fn code(&self, value: f32) -> u8 {
        self.middles.partition_point(|middle| *middle < value) as u8
    }
}

/// The 256 levels of the unsigned dynamic map, from 0 to 1.
fn unsigned_levels() -> [f32; 256] {
    let mut levels = [0.0; 256];
    let mut places = levels.iter_mut();
    let mut push = |value| {
        if let Some(place) = places.next() {
            *place = value;
        }
    };
    push(0.0);
    push(1.0);
    for exponent in 0..7 {
        let count = 2usize << exponent;
        let boundary = |i: usize| {
            // As `torch.linspace` rounds.
            let step = (1.0f32 - 0.1) / count as f32;
            match i < count.div_ceil(2) {
                true => step.mul_add(i as f32, 0.1),
                false => (-step).mul_add((count - i) as f32, 1.0),
            }
        };
        let scale = 10f64.powi(exponent - 6) as f32;
        for i in 0..count {
            push(scale * ((boundary(i) + boundary(i + 1)) / 2.0));
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
}

/// One moment of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    /// One for each value.
    pub codes: Vec<u8>,
    /// The scale of each block.
    pub absmax: Vec<f32>,
}

/// Running means of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ByteMoments {
    /// Of the gradients.
    pub mean: Codes,
    /// Of the squared gradients.
    pub variance: Codes,
}

impl ByteMoments {
    /// Zeros for `len` values.
    pub(super) fn zeros(len: usize) -> Self {
        let codes = || Codes {
            codes: vec![0; len],
            absmax: vec![0.0; len.div_ceil(BLOCK)],
        };
        Self {
            mean: codes(),
            variance: codes(),
        }
    }
}

impl Pass {
    /// Moves `values` by one step, and the moments with them.
    pub(super) fn on_bytes(
        &self,
        values: &mut [f32],
        gradient: &[f32],
        clip: f32,
        moments: &mut ByteMoments,
    ) {
        let ByteMoments { mean, variance } = moments;
        let mean = (mean.codes.par_chunks_mut(BLOCK)).zip(&mut mean.absmax);
        let variance = (variance.codes.par_chunks_mut(BLOCK)).zip(&mut variance.absmax);
        values
            .par_chunks_mut(BLOCK)
            .zip(gradient.par_chunks(BLOCK))
            .zip(mean.zip(variance))
            .for_each(|((values, gradient), (mean, variance))| {
                self.on_block((values, gradient, clip), mean, variance);
            });
    }

    fn on_block(
        &self,
        (values, gradient, clip): (&mut [f32], &[f32], f32),
        (mean_codes, mean_scale): (&mut [u8], &mut f32),
        (variance_codes, variance_scale): (&mut [u8], &mut f32),
    ) {
        let beta = self.beta.map(|beta| beta as f32);
        let rest = self.beta.map(|beta| (1.0 - beta) as f32);
        let [correction, eps] = [self.correction, self.eps].map(|value| value as f32);
        let [rate, decay] = [self.rate, self.decay].map(|value| value as f32);
        let (mut means, mut variances) = ([0f32; BLOCK], [0f32; BLOCK]);
        for (i, (value, gradient)) in values.iter_mut().zip(gradient).enumerate() {
            let gradient = gradient * clip;
            let mean = SIGNED.levels[usize::from(mean_codes[i])] * *mean_scale;
            let variance = UNSIGNED.levels[usize::from(variance_codes[i])] * *variance_scale;
            means[i] = mean * beta[0] + gradient * rest[0];
            variances[i] = variance * beta[1] + gradient * gradient * rest[1];
            let denominator = variances[i].sqrt() / correction + eps;
            *value = *value * decay - means[i] / denominator * rate;
        }
        let len = values.len();
        round(&SIGNED, &means[..len], mean_codes, mean_scale);
        round(&UNSIGNED, &variances[..len], variance_codes, variance_scale);
    }
}

/// The codes of a block and its scale.
fn round(map: &Map, values: &[f32], codes: &mut [u8], scale: &mut f32) {
    let largest = values
        .iter()
        .fold(0.0f32, |max, value| max.max(value.abs()));
    *scale = if largest == 0.0 { 1.0 } else { largest };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.code(value / *scale);
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
        let data = file.tensor(name).unwrap();
        let (values, _) = data.data().as_chunks::<4>();
        values.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// Three steps of bitsandbytes, see `xtask/golden/methods.py`.
    #[test]
    fn steps_are_those_of_bitsandbytes() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../data/golden/methods/adamw_8bit.safetensors"
        );
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(SIGNED.levels, *floats(&file, "signed"));
        assert_eq!(UNSIGNED.levels, *floats(&file, "unsigned"));
        let mut values = floats(&file, "start");
        let mut moments = ByteMoments::zeros(values.len());
        for step in 1..=3 {
            let gradient = floats(&file, &format!("gradient_{step}"));
            let pass = Pass {
                beta: [0.9, 0.999],
                correction: (1.0 - 0.999f64.powi(step)).sqrt(),
                eps: 1e-8,
                rate: 1e-2 / (1.0 - 0.9f64.powi(step)),
                decay: 1.0 - 1e-2 * 0.1,
            };
            pass.on_bytes(&mut values, &gradient, 0.5, &mut moments);
            let expected = floats(&file, &format!("values_{step}"));
            let difference = |(a, b): (&f32, &f32)| (a - b).abs();
            let differences: Vec<f32> = values.iter().zip(&expected).map(difference).collect();
            let worst = differences.iter().copied().fold(0.0, f32::max);
            assert!(worst < 1e-6, "step {step}: {worst}");
        }
        for (name, codes, absmax) in [
            ("mean", &moments.mean.codes, &moments.mean.absmax),
            (
                "variance",
                &moments.variance.codes,
                &moments.variance.absmax,
            ),
        ] {
            assert_eq!(codes[..], *file.tensor(name).unwrap().data(), "{name}");
            let expected = floats(&file, &format!("{name}_absmax"));
            assert!(
                absmax
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| (a - b).abs() <= 1e-6 * b)
            );
        }
    }
}
