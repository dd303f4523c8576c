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

#[cfg(feature = "gpu")]
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use super::AdamWFactors;
#[cfg(feature = "gpu")]
use super::OptimizerOps;
use crate::dynamic_map::dynamic_map;

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// Levels of a map.
pub(crate) const LEVELS: usize = 256;

/// The levels of a map in ascending order, and what lies in the middle between two.
struct Map {
    levels: [f32; LEVELS],
    middles: Vec<f32>,
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(*dynamic_map()));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(unsigned_levels()));

impl Map {
    fn new(levels: [f32; LEVELS]) -> Self {
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
fn unsigned_levels() -> [f32; LEVELS] {
    let mut levels = [0.0; LEVELS];
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
    #[must_use]
    pub fn zeros(len: usize) -> Self {
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

/// Both moments of one parameter on a device: first those of the mean, then those of the variance.
#[derive(Clone, Debug)]
pub struct DeviceMoments {
    /// Four codes in a word, the first one in the lowest bits, zeros behind the last block's values: `[2 * blocks * 64]`.
    codes: Tensor<1, Int>,
    /// The scale of each block, f32: `[2 * blocks]`.
    absmax: Tensor<1>,
    /// Those of both maps, f32: `[2 * 256]`.
    #[cfg(feature = "gpu")]
    levels: Tensor<1>,
    /// Values of the parameter.
    len: usize,
}

impl DeviceMoments {
    /// Zeros for `len` values.
    #[must_use]
    pub fn zeros(len: usize, device: &Device) -> Self {
        let blocks = len.div_ceil(BLOCK);
        Self {
            codes: Tensor::zeros([2 * blocks * BLOCK / 4], (device, DType::U32)),
            absmax: Tensor::zeros([2 * blocks], (device, DType::F32)),
            #[cfg(feature = "gpu")]
            levels: levels_on(device),
            len,
        }
    }

    /// Moments of the host.
    #[must_use]
    pub fn from_host(moments: &ByteMoments, device: &Device) -> Self {
        let ByteMoments { mean, variance } = moments;
        let len = mean.codes.len();
        let (mut words, mut absmax) = (Vec::new(), Vec::<f32>::new());
        for moment in [mean, variance] {
            let mut codes = moment.codes.clone();
            codes.resize(len.next_multiple_of(BLOCK), 0);
            let (fours, _) = codes.as_chunks::<4>();
            words.extend(fours.iter().map(|four| u32::from_le_bytes(*four)));
            absmax.extend(&moment.absmax);
        }
        let (num_words, num_scales) = (words.len(), absmax.len());
        let words = TensorData::new(words, [num_words]);
        let absmax = TensorData::new(absmax, [num_scales]);
        Self {
            codes: Tensor::from_data(words, (device, DType::U32)),
            absmax: Tensor::from_data(absmax, (device, DType::F32)),
            #[cfg(feature = "gpu")]
            levels: levels_on(device),
            len,
        }
    }

    /// Number of values.
    #[must_use]
    pub fn num_values(&self) -> usize {
        self.len
    }

    /// What [`Self::from_host`] takes.
    #[must_use]
    pub fn to_host(&self) -> ByteMoments {
        let words: Vec<u32> = self.codes.to_data().iter::<u32>().collect();
        let absmax: Vec<f32> = self.absmax.to_data().iter::<f32>().collect();
        let moment = |half: usize| {
            let words = &words[half * words.len() / 2..][..words.len() / 2];
            let mut codes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            codes.truncate(self.len);
            Codes {
                codes,
                absmax: absmax[half * absmax.len() / 2..][..absmax.len() / 2].to_vec(),
            }
        };
        ByteMoments {
            mean: moment(0),
            variance: moment(1),
        }
    }
}

#[cfg(feature = "gpu")]
fn levels_on(device: &Device) -> Tensor<1> {
    let levels = TensorData::new([SIGNED.levels, UNSIGNED.levels].concat(), [2 * LEVELS]);
    Tensor::from_data(levels, (device, DType::F32))
}

/// One step of AdamW: the new value and moments. A GPU writes them in place, where nobody else holds the tensors; where it has no
/// kernel, the host computes them.
///
/// # Shapes
///
/// `value` and `gradient` `[n]` f32; `clip [1]`, with which the gradient is multiplied first
///
/// # Panics
///
/// If the lengths differ.
pub fn adamw(
    value: Tensor<1>,
    moments: DeviceMoments,
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    factors: AdamWFactors,
) -> (Tensor<1>, DeviceMoments) {
    let lengths = [gradient.dims()[0], moments.len];
    assert_eq!(lengths, [value.dims()[0]; 2], "adamw: lengths");
    #[cfg(feature = "gpu")]
    if value.dtype() == DType::F32
        && crate::kernels::cube::features::has_plane_operations(&value.device())
    {
        return on_gpu(value, moments, gradient, clip, factors);
    }
    let device = value.device();
    let read = |tensor: &Tensor<1>| -> Vec<f32> { tensor.to_data().iter::<f32>().collect() };
    let (mut values, mut host) = (read(&value), moments.to_host());
    adamw_on_host(
        &mut values,
        &read(gradient),
        read(clip)[0],
        &mut host,
        factors,
    );
    let data = TensorData::new(values, value.dims());
    let value = Tensor::from_data(data, (&device, DType::F32));
    (value, DeviceMoments::from_host(&host, &device))
}

#[cfg(feature = "gpu")]
fn on_gpu(
    value: Tensor<1>,
    moments: DeviceMoments,
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    factors: AdamWFactors,
) -> (Tensor<1>, DeviceMoments) {
    let DeviceMoments {
        codes,
        absmax,
        levels,
        len,
    } = moments;
    let (value, codes, absmax) = <Dispatch as OptimizerOps>::adamw_8bit(
        value.into_dispatch(),
        codes.into_dispatch(),
        absmax.into_dispatch(),
        gradient.clone().into_dispatch(),
        clip.clone().into_dispatch(),
        levels.clone().into_dispatch(),
        factors,
    );
    let moments = DeviceMoments {
        codes: Tensor::from_dispatch(codes),
        absmax: Tensor::from_dispatch(absmax),
        levels,
        len,
    };
    (Tensor::from_dispatch(value), moments)
}

/// [`adamw`] in the host's memory, in one pass over it.
pub fn adamw_on_host(
    values: &mut [f32],
    gradient: &[f32],
    clip: f32,
    moments: &mut ByteMoments,
    factors: AdamWFactors,
) {
    let ByteMoments { mean, variance } = moments;
    let mean = (mean.codes.par_chunks_mut(BLOCK)).zip(&mut mean.absmax);
    let variance = (variance.codes.par_chunks_mut(BLOCK)).zip(&mut variance.absmax);
    values
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(mean.zip(variance))
        .for_each(|((values, gradient), (mean, variance))| {
            factors.on_block((values, gradient, clip), mean, variance);
        });
}

impl AdamWFactors {
    fn on_block(
        self,
        (values, gradient, clip): (&mut [f32], &[f32], f32),
        (mean_codes, mean_scale): (&mut [u8], &mut f32),
        (variance_codes, variance_scale): (&mut [u8], &mut f32),
    ) {
        let (mut means, mut variances) = ([0f32; BLOCK], [0f32; BLOCK]);
        for (i, (value, gradient)) in values.iter_mut().zip(gradient).enumerate() {
            let mean = SIGNED.levels[usize::from(mean_codes[i])] * *mean_scale;
            let variance = UNSIGNED.levels[usize::from(variance_codes[i])] * *variance_scale;
            [*value, means[i], variances[i]] = self.step([*value, mean, variance], gradient * clip);
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
            let factors = AdamWFactors {
                beta: [0.9, 0.999],
                rest: [(1.0 - 0.9f64) as f32, (1.0 - 0.999f64) as f32],
                correction: (1.0 - 0.999f64.powi(step)).sqrt() as f32,
                eps: 1e-8,
                rate: (1e-2 / (1.0 - 0.9f64.powi(step))) as f32,
                decay: (1.0f64 - 1e-2 * 0.1) as f32,
            };
            adamw_on_host(&mut values, &gradient, 0.5, &mut moments, factors);
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

    #[test]
    fn moments_come_back_from_a_device() {
        for len in [1usize, 255, 256, 700] {
            let blocks = len.div_ceil(BLOCK);
            let moment = |first: usize| Codes {
                codes: (first..first + len).map(|i| (i % 251) as u8).collect(),
                absmax: (0..blocks).map(|i| (first + i) as f32).collect(),
            };
            let moments = ByteMoments {
                mean: moment(3),
                variance: moment(8),
            };
            let device = DeviceMoments::from_host(&moments, &Device::flex());
            assert_eq!(device.to_host(), moments);
        }
    }
}
