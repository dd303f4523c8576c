//! Looks for what is no number among the values of a file, at the speed of memory.

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
}
