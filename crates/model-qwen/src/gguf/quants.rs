//! The tensor types of GGUF that are written, bit for bit as ggml computes them.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::merge::encode;

/// Values of a block of Q8_0 and Q4_0.
pub(super) const BLOCK_LEN: usize = 32;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// 16-bit floats with 8 bits of exponent.
    Bf16,
    /// Blocks of 32 values in 8 bits with a scale in f16: 8.5 bits a weight.
    #[cfg_attr(feature = "clap", value(name = "q8_0"))]
    Q8_0,
    /// Blocks of 32 values in 4 bits with a scale in f16: 4.5 bits a weight.
    #[cfg_attr(feature = "clap", value(name = "q4_0"))]
    Q4_0,
}

impl TensorType {
    /// The name that llama.cpp gives the type, such as `Q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
        }
    }

    /// `ggml_type`.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    /// `general.file_type`, of a model whose matrices mostly have this type.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }

    /// Whether values come in blocks of 32.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }

    /// The same type in safetensors files; `None` of a quantized type.
    pub(super) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::Bf16 => Some(Dtype::BF16),
            Self::Q8_0 | Self::Q4_0 => None,
        }
    }

    /// The largest value that it can hold. Of a quantized type, the largest one whose block has a scale in f16.
    pub(super) fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
            Self::Q8_0 => 127.0 * f16::MAX.to_f32(),
            Self::Q4_0 => 8.0 * f16::MAX.to_f32(),
        }
    }

    /// Bytes of `len` values; of a quantized type, whole blocks.
    pub fn num_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::F16 | Self::Bf16 => 2 * len,
            Self::Q8_0 => len / BLOCK_LEN * (2 + BLOCK_LEN),
            Self::Q4_0 => len / BLOCK_LEN * (2 + BLOCK_LEN / 2),
        }
    }

    /// Appends `values` to `bytes`. Of a quantized type, whole blocks.
    pub fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => encode(Dtype::F32, values, bytes),
            Self::F16 => encode(Dtype::F16, values, bytes),
            Self::Bf16 => encode(Dtype::BF16, values, bytes),
            Self::Q8_0 => blocks::<34>(values, bytes, q8_0),
            Self::Q4_0 => blocks::<18>(values, bytes, q4_0),
        }
    }
}

/// Encodes each block of values as `N` bytes.
fn blocks<const N: usize>(
    values: &[f32],
    bytes: &mut Vec<u8>,
    encode: impl Fn(&[f32; BLOCK_LEN], &mut [u8; N]) + Sync,
) {
    let (blocks, _) = values.as_chunks::<BLOCK_LEN>();
    let start = bytes.len();
    bytes.resize(start + N * blocks.len(), 0);
    let (encoded, _) = bytes[start..].as_chunks_mut::<N>();
    encoded
        .par_iter_mut()
        .zip(blocks)
        .with_min_len(1 << 10)
        .for_each(|(encoded, block)| encode(block, encoded));
}

/// `1 / d`, or 0.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `quantize_row_q8_0_ref`: halves are rounded away from zero.
fn q8_0(block: &[f32; BLOCK_LEN], out: &mut [u8; 34]) {
    let largest = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (code, value) in out[2..].iter_mut().zip(block) {
        *code = (value * id).round() as i8 as u8;
    }
}

/// `quantize_row_q4_0_ref`: the value with the largest magnitude becomes -8.
fn q4_0(block: &[f32; BLOCK_LEN], out: &mut [u8; 18]) {
    let first_largest = |max: f32, &value: &f32| match max.abs() < value.abs() {
        true => value,
        false => max,
    };
    let largest = block.iter().fold(0.0f32, first_largest);
    let d = largest / -8.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    let code = |value: f32| ((value * id + 8.5) as i8).min(15) as u8;
    let (low, high) = block.split_at(BLOCK_LEN / 2);
    for (byte, (low, high)) in out[2..].iter_mut().zip(low.iter().zip(high)) {
        *byte = code(*low) | code(*high) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: TensorType, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        kind.encode(values, &mut bytes);
        assert_eq!(bytes.len(), kind.num_bytes(values.len()));
        bytes
    }

    #[test]
    fn halves_of_q8_0_are_rounded_away_from_zero() {
        let mut values = [0.0; BLOCK_LEN];
        values[..6].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, 2.5, -2.5]);
        let bytes = encoded(TensorType::Q8_0, &values);
        assert_eq!(bytes[..2], f16::ONE.to_le_bytes());
        let codes: Vec<i8> = bytes[2..8].iter().map(|code| *code as i8).collect();
        assert_eq!(codes, [127, 1, -1, 2, 3, -3]);
    }

    #[test]
    fn the_first_largest_value_of_q4_0_becomes_the_lowest_code() {
        let mut values = [0.0; BLOCK_LEN];
        // Twice the same magnitude: the first one counts, and the other one is cut to 15.
        values[..4].copy_from_slice(&[-8.0, 8.0, 0.5, -0.5]);
        values[16..18].copy_from_slice(&[7.4, 1.0]);
        let bytes = encoded(TensorType::Q4_0, &values);
        assert_eq!(bytes[..2], f16::ONE.to_le_bytes());
        let codes = |byte: u8| (byte & 15, byte >> 4);
        assert_eq!(codes(bytes[2]), (0, 15));
        assert_eq!(codes(bytes[3]), (15, 9));
        assert_eq!(codes(bytes[4]), (9, 8));
        assert_eq!(codes(bytes[5]), (8, 8));
    }

    #[test]
    fn a_block_of_zeros_has_scale_zero() {
        let q8 = encoded(TensorType::Q8_0, &[0.0; BLOCK_LEN]);
        assert!(q8.iter().all(|byte| *byte == 0));
        let q4 = encoded(TensorType::Q4_0, &[0.0; 2 * BLOCK_LEN]);
        assert_eq!(q4[2..18], [0x88; 16]);
    }
}
