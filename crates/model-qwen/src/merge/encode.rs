//! Floats to the bytes of a file.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

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
    use lora_4bit::bnb::decode_floats;

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
            let (_, decoded) = decode_floats(dtype, &bytes).unwrap();
            for (value, back) in values.iter().zip(decoded) {
                assert!((value - back).abs() <= largest * value.abs().max(1.0));
            }
        }
    }
}
