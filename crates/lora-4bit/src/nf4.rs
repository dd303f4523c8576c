//! NF4 ("4-bit NormalFloat") quantization on the host, bit for bit as bitsandbytes does it on the CPU.
//!
//! A matrix is flattened row-major and cut into blocks of [`BLOCK_SIZE`] values; a block may cross rows. Each block is
//! divided by its largest magnitude (`absmax`), and every value is replaced by the index of the nearest of the 16 levels
//! of [`NF4_CODE`]; a value exactly between two levels takes the lower one. Two indices share a byte, the first in the
//! high four bits.
//!
//! Double quantization stores the `absmax` values themselves in 8 bits: their mean (`offset`) is subtracted, and the
//! differences are quantized in blocks of [`NESTED_BLOCK_SIZE`] with the [`dynamic_map`](crate::dynamic_map).
//!
//! Source: `bitsandbytes/backends/default/ops.py` (`quantize_4bit`, `dequantize_4bit`) and `bitsandbytes/functional.py`
//! (`quantize_4bit`) of bitsandbytes 0.50; levels from QLoRA, appendix E (<https://arxiv.org/abs/2305.14314>).

use burn::tensor::DType;
use rayon::prelude::*;

use crate::dynamic_map::{dequantize_blockwise, dynamic_map, quantize_blockwise};

/// Number of weights that share one scale.
pub const BLOCK_SIZE: usize = 64;

/// Number of scales that share one second-level scale in double quantization.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// The 16 levels, quantiles of a normal distribution scaled to `[-1, 1]`, in ascending order.
pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The f32 midpoints between neighbouring levels: the code of `x` is how many of them lie strictly below `x`.
const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (NF4_CODE[i] + NF4_CODE[i + 1]) / 2.0;
        i += 1;
    }
    midpoints
};

/// The smallest divisor, which keeps an all-zero block from dividing by zero.
const MIN_ABSMAX: f32 = 1e-38;

/// Blocks per rayon job: 64 blocks are 16 KiB of f32, enough to hide the cost of scheduling.
const BLOCKS_PER_JOB: usize = 64;

/// A weight matrix in NF4, with everything that is needed to get its values back.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Data {
    /// Two codes a byte, first value in the high four bits; `ceil(rows * columns / 2)` bytes.
    pub packed: Vec<u8>,
    /// One scale for each block of [`BLOCK_SIZE`] values.
    pub absmax: Absmax,
    /// The level of each code: [`NF4_CODE`], or what a file says.
    pub quant_map: [f32; 16],
    /// Shape of the matrix, `[out, in]`.
    pub shape: [usize; 2],
    /// Type of the weight before quantization: BF16, F16 or F32. bitsandbytes casts dequantized values to it.
    pub dtype: DType,
}

/// The scales of an [`Nf4Data`], one for each block of [`BLOCK_SIZE`] weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// The scales themselves, `[blocks]`.
    Single(Vec<f32>),
    /// Scales in 8 bits: block `i` has scale `map[codes[i]] * nested_absmax[i / NESTED_BLOCK_SIZE] + offset`.
    Double {
        /// Index into `map`, `[blocks]`.
        codes: Vec<u8>,
        /// Level of each code.
        map: Box<[f32; 256]>,
        /// Second-level scales, `[ceil(blocks / NESTED_BLOCK_SIZE)]`.
        nested_absmax: Vec<f32>,
        /// Mean of the scales before quantization.
        offset: f32,
    },
}

impl Absmax {
    /// Number of blocks.
    pub fn len(&self) -> usize {
        match self {
            Self::Single(absmax) => absmax.len(),
            Self::Double { codes, .. } => codes.len(),
        }
    }

    /// Whether there is no block at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The scales in f32, `[blocks]`.
    pub fn dequantize(&self) -> Vec<f32> {
        match self {
            Self::Single(absmax) => absmax.clone(),
            Self::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => {
                let mut absmax = dequantize_blockwise(codes, map, nested_absmax, NESTED_BLOCK_SIZE);
                for scale in &mut absmax {
                    *scale += offset;
                }
                absmax
            }
        }
    }
}

impl Nf4Data {
    /// Quantizes a matrix of `shape` `[out, in]`, given row-major in f32, with the standard levels.
    ///
    /// `dtype` is the type of the original weight; bf16 and f16 values are exact in f32, so their codes are those that
    /// bitsandbytes computes from the 16-bit tensor. A NaN makes its block decode to NaN, as in bitsandbytes.
    ///
    /// # Panics
    ///
    /// If `weight` does not hold `out * in` values.
    pub fn quantize(weight: &[f32], shape: [usize; 2], dtype: DType, double_quant: bool) -> Self {
        assert_eq!(
            weight.len(),
            shape[0] * shape[1],
            "a weight of shape {shape:?} holds another number of values"
        );
        let num_blocks = weight.len().div_ceil(BLOCK_SIZE);
        let mut packed = vec![0; weight.len().div_ceil(2)];
        let mut absmax = vec![0.0; num_blocks];
        packed
            .par_chunks_mut(BLOCKS_PER_JOB * BLOCK_SIZE / 2)
            .zip(absmax.par_chunks_mut(BLOCKS_PER_JOB))
            .zip(weight.par_chunks(BLOCKS_PER_JOB * BLOCK_SIZE))
            .for_each(|((packed, absmax), weight)| {
                packed
                    .chunks_mut(BLOCK_SIZE / 2)
                    .zip(absmax)
                    .zip(weight.chunks(BLOCK_SIZE))
                    .for_each(|((packed, absmax), block)| *absmax = quantize_block(block, packed));
            });
        let absmax = if double_quant {
            quantize_absmax(&absmax)
        } else {
            Absmax::Single(absmax)
        };
        Self {
            packed,
            absmax,
            quant_map: NF4_CODE,
            shape,
            dtype,
        }
    }

    /// The weight in f32, row-major, `[out * in]`.
    ///
    /// bitsandbytes rounds these values to [`dtype`](Self::dtype) afterwards.
    pub fn dequantize(&self) -> Vec<f32> {
        let absmax = self.absmax.dequantize();
        let mut weight = vec![0.0; self.shape[0] * self.shape[1]];
        weight
            .par_chunks_mut(BLOCKS_PER_JOB * BLOCK_SIZE)
            .zip(self.packed.par_chunks(BLOCKS_PER_JOB * BLOCK_SIZE / 2))
            .zip(absmax.par_chunks(BLOCKS_PER_JOB))
            .for_each(|((weight, packed), absmax)| {
                weight
                    .chunks_mut(BLOCK_SIZE)
                    .zip(packed.chunks(BLOCK_SIZE / 2))
                    .zip(absmax)
                    .for_each(|((block, packed), scale)| {
                        for (pair, byte) in block.chunks_mut(2).zip(packed) {
                            let codes = [byte >> 4, byte & 0xF];
                            for (value, code) in pair.iter_mut().zip(codes) {
                                *value = self.quant_map[usize::from(code)] * scale;
                            }
                        }
                    });
            });
        weight
    }
}

/// Quantizes the scales `[blocks]` to 8 bits around their mean.
///
/// The mean is summed in f64. torch sums in f32 in an order that depends on the machine, so its offset can differ in
/// the last bit; [`quantize_absmax_with_offset`] takes the offset as given.
pub fn quantize_absmax(absmax: &[f32]) -> Absmax {
    let sum: f64 = absmax.iter().copied().map(f64::from).sum();
    let offset = if absmax.is_empty() {
        0.0
    } else {
        (sum / absmax.len() as f64) as f32
    };
    quantize_absmax_with_offset(absmax, offset)
}

/// Quantizes the scales `[blocks]` to 8 bits around `offset`.
pub fn quantize_absmax_with_offset(absmax: &[f32], offset: f32) -> Absmax {
    let map = dynamic_map();
    let centred: Vec<f32> = absmax.iter().map(|scale| scale - offset).collect();
    let (codes, nested_absmax) = quantize_blockwise(&centred, map, NESTED_BLOCK_SIZE);
    Absmax::Double {
        codes,
        map: Box::new(*map),
        nested_absmax,
        offset,
    }
}

/// Quantizes at most [`BLOCK_SIZE`] values into `packed` and returns their scale.
fn quantize_block(block: &[f32], packed: &mut [u8]) -> f32 {
    let absmax = largest_magnitude(block);
    let mut scaled = [0.0; BLOCK_SIZE];
    let absmax = if block.len() == BLOCK_SIZE {
        let inverse = 1.0 / absmax.max(MIN_ABSMAX);
        for (scaled, value) in scaled.iter_mut().zip(block) {
            *scaled = (value * inverse).clamp(-1.0, 1.0);
        }
        absmax
    } else {
        // bitsandbytes divides in a partial last block, and stores the divisor.
        let absmax = absmax.max(MIN_ABSMAX);
        for (scaled, value) in scaled.iter_mut().zip(block) {
            *scaled = (value / absmax).clamp(-1.0, 1.0);
        }
        absmax
    };
    let codes = scaled.map(nearest_code);
    for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    absmax
}

/// The largest magnitude; NaN if there is one, as in bitsandbytes.
///
/// Without their sign, the bits of f32 values are ordered as the values are, with NaN above all. Sixteen independent
/// maxima let the compiler do many values at once.
fn largest_magnitude(block: &[f32]) -> f32 {
    let mut lanes = [0u32; 16];
    for chunk in block.chunks(lanes.len()) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(value.abs().to_bits());
        }
    }
    f32::from_bits(lanes.into_iter().fold(0, u32::max))
}

/// Index of the level nearest to `x`; the lower one on a tie, the last one for NaN.
///
/// Without branches, so that the compiler can do many values at once.
#[expect(
    clippy::neg_cmp_op_on_partial_ord,
    reason = "a NaN counts as above every midpoint, as in torch.bucketize"
)]
#[inline(always)]
fn nearest_code(x: f32) -> u32 {
    MIDPOINTS
        .iter()
        .map(|midpoint| u32::from(!(*midpoint >= x)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_take_the_lower_level() {
        for (i, midpoint) in MIDPOINTS.into_iter().enumerate() {
            assert_eq!(nearest_code(midpoint), i as u32);
            assert_eq!(nearest_code(midpoint.next_up()), i as u32 + 1);
        }
    }

    #[test]
    fn nan_spoils_its_block_only() {
        let mut weight = vec![1.0; 128];
        weight[70] = f32::NAN;
        let values = Nf4Data::quantize(&weight, [2, 64], DType::F32, false).dequantize();
        assert!(values[..64].iter().all(|value| *value == 1.0));
        assert!(values[64..].iter().all(|value| value.is_nan()));
    }

    #[test]
    fn zero_block_is_code_seven_and_decodes_to_zero() {
        let data = Nf4Data::quantize(&[0.0; 128], [2, 64], DType::F32, false);
        assert_eq!(data.packed, vec![0x77; 64]);
        assert_eq!(data.absmax, Absmax::Single(vec![0.0; 2]));
        assert_eq!(data.dequantize(), vec![0.0; 128]);
    }

    #[test]
    fn odd_number_of_values_keeps_the_last() {
        let data = Nf4Data::quantize(&[1.0, -0.5, 2.0], [1, 3], DType::F32, true);
        assert_eq!(data.packed.len(), 2);
        assert_eq!(data.packed[1] & 0xF, 7, "the padding is zero");
        assert_eq!(data.dequantize()[2], 2.0);
    }

    #[test]
    fn empty_matrix_is_empty() {
        let data = Nf4Data::quantize(&[], [0, 64], DType::BF16, true);
        assert!(data.packed.is_empty() && data.absmax.is_empty());
        assert!(data.dequantize().is_empty());
    }

    #[test]
    fn error_is_at_most_half_the_widest_gap() {
        let weight: Vec<f32> = (0..640)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0)
            .collect();
        for double_quant in [false, true] {
            let data = Nf4Data::quantize(&weight, [10, 64], DType::F32, double_quant);
            let slack = if double_quant { 1.05 } else { 1.0 };
            for (value, block) in data.dequantize().iter().zip(weight.iter()) {
                assert!(
                    (value - block).abs() <= 0.152 * 2.0 * slack,
                    "{value} for {block}"
                );
            }
        }
    }
}
