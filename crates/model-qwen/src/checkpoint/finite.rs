//! Looks for what is no number among the values of a file, at the speed of memory.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

/// Bytes that a thread looks at at a time.
const PART: usize = 1 << 20;
/// Bytes between two looks at the result.
const STEP: usize = 4096;

/// The place of the first infinity or NaN in the little-endian floats of a file. Other types have none.
pub(super) fn first_not_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    let first = match dtype {
        Dtype::BF16 => first_of::<2>(bytes, |value| is_full(u16::from_le_bytes(value), 0x7f80)),
        Dtype::F16 => first_of::<2>(bytes, |value| is_full(u16::from_le_bytes(value), 0x7c00)),
        Dtype::F32 => first_of::<4>(bytes, |value| {
            let exponent = 0x7f80_0000;
            u32::from_le_bytes(value) & exponent == exponent
        }),
        _ => None,
    };
    first.map(|at| at * 8 / dtype.bitsize())
}

/// The first finite value that f16 would round to an infinity, or that is larger than its largest number.
pub(super) fn first_too_large(dtype: Dtype, bytes: &[u8]) -> Option<f32> {
    let largest = f16::MAX.to_f32();
    match dtype {
        Dtype::BF16 => {
            let largest = bf16::from_f32(largest).to_bits() - 1;
            let at = first_of::<2>(bytes, |value| u16::from_le_bytes(value) & 0x7fff > largest)?;
            Some(bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32())
        }
        Dtype::F32 => {
            let largest = largest.to_bits();
            let at = first_of::<4>(bytes, |value| {
                u32::from_le_bytes(value) & 0x7fff_ffff > largest
            })?;
            let value = bytes[at..].first_chunk::<4>()?;
            Some(f32::from_le_bytes(*value))
        }
        _ => None,
    }
}

/// Whether all bits of the exponent are set.
fn is_full(bits: u16, exponent: u16) -> bool {
    bits & exponent == exponent
}

/// The place in bytes of the first value that is `bad`.
fn first_of<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    let parts = bytes.par_chunks(PART).enumerate();
    parts.find_map_first(|(part, bytes)| {
        let steps = bytes.chunks(STEP).enumerate();
        let (step, values) = steps
            .map(|(step, bytes)| (step, bytes.as_chunks::<N>().0))
            // Without an early end, so that many values are compared at once.
            .find(|(_, values)| values.iter().fold(false, |any, value| any | bad(*value)))?;
        let at = values.iter().position(|value| bad(*value))?;
        Some(part * PART + step * STEP + at * N)
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn the_first_value_that_is_no_number_is_found() {
        let len = 700_000;
        for (place, value) in [
            (None, f32::MAX),
            (Some(0), f32::NAN),
            (Some(len - 1), f32::INFINITY),
            (Some(600_001), f32::NEG_INFINITY),
        ] {
            let mut values = vec![-1.5f32; len];
            for i in place.into_iter().flat_map(|place| [place, len - 1]) {
                values[i] = value;
            }
            let bytes =
                |one: fn(f32) -> Vec<u8>| values.iter().flat_map(|v| one(*v)).collect::<Vec<u8>>();
            for (dtype, bytes) in [
                (Dtype::F32, bytes(|v| v.to_le_bytes().to_vec())),
                (
                    Dtype::BF16,
                    bytes(|v| bf16::from_f32(v).to_le_bytes().to_vec()),
                ),
                (
                    Dtype::F16,
                    bytes(|v| f16::from_f32(v).to_le_bytes().to_vec()),
                ),
            ] {
                assert_eq!(first_not_finite(dtype, &bytes), place, "{dtype:?}");
            }
        }
        assert_eq!(first_not_finite(Dtype::F16, &f16::MAX.to_le_bytes()), None);
        assert_eq!(first_not_finite(Dtype::U8, &[0xff; 8]), None);
    }

    #[test]
    fn what_f16_cannot_hold_is_found() {
        for (value, is_too_large) in [
            (65504.0f32, false),
            (-65504.0, false),
            (65280.0, false),
            (65536.0, true),
            (-99840.0, true),
            (f32::MAX, true),
        ] {
            let expected = is_too_large.then_some(value);
            let values = [1.0, value, -2.0];
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(first_too_large(Dtype::F32, &bytes), expected, "{value}");
            let rounded = bf16::from_f32(value);
            // The nearest number of bf16 may be another one.
            if rounded.to_f32() == value {
                let bytes = [bf16::ONE, rounded].map(bf16::to_le_bytes).concat();
                assert_eq!(first_too_large(Dtype::BF16, &bytes), expected, "{value}");
            }
        }
    }
}
