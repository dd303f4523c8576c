//! Floats from and to the bytes of a file.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

/// Values of a float tensor in f32.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let pairs = bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::BF16 => pairs.map(|x| bf16::from_le_bytes(*x).to_f32()).collect(),
        Dtype::F16 => pairs.map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
        _ => {
            let fours = bytes.as_chunks::<4>().0.iter();
            fours.map(|x| f32::from_le_bytes(*x)).collect()
        }
    }
}

/// Appends values to `bytes`, rounded to the nearest value of `dtype`, ties to even.
pub(crate) fn encode(dtype: Dtype, values: &[f32], bytes: &mut Vec<u8>) {
    match dtype {
        Dtype::BF16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytes.extend(rounded.iter().flat_map(|value| value.to_le_bytes()));
        }
        Dtype::F16 => {
            let mut rounded = vec![f16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            bytes.extend(rounded.iter().flat_map(|value| value.to_le_bytes()));
        }
        _ => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let values = [0.0, -1.5, 65504.0, 1e-3, -0.0];
        for (dtype, largest) in [
            (Dtype::F32, 0.0),
            (Dtype::F16, 1e-6),
            (Dtype::BF16, 1.0 / 256.0),
        ] {
            let mut bytes = Vec::new();
            encode(dtype, &values, &mut bytes);
            assert_eq!(bytes.len(), values.len() * dtype.bitsize() / 8);
            for (value, back) in values.iter().zip(decode(dtype, &bytes)) {
                assert!((value - back).abs() <= largest * value.abs().max(1.0));
            }
        }
    }
}
