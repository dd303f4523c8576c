//! Blockwise 8-bit quantization with the signed dynamic map, which bitsandbytes uses for the scales of NF4 weights.
//!
//! A level is a power of ten times a fraction of 0 to 6 bits: small magnitudes get few levels with a wide range, large
//! ones many levels. Values are divided by the largest magnitude of their block and replaced by the index of a level.
//!
//! Source: 8-bit Optimizers via Block-wise Quantization (<https://arxiv.org/abs/2110.02861>), `create_dynamic_map` in
//! `bitsandbytes/functional.py`, and `quantize_cpu_impl` and `dequantizeBlockwise8bitCpu` in `csrc/cpu_ops.cpp` of
//! bitsandbytes 0.50.

use std::sync::LazyLock;

/// Number of steps into which bitsandbytes cuts `[-1, 1]` before it looks a level up.
const NUM_STEPS: usize = 65_536;

static DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(build_dynamic_map);

/// The 256 levels of the signed dynamic map in ascending order, from -0.993 to 1.
pub fn dynamic_map() -> &'static [f32; 256] {
    &DYNAMIC_MAP
}

fn build_dynamic_map() -> [f32; 256] {
    let mut map = [0.0; 256];
    let mut len = 0;
    let mut push = |value| {
        map[len] = value;
        len += 1;
    };
    for exponent in 0..7 {
        let num_levels = 1 << exponent;
        let scale = 10f64.powi(exponent - 6) as f32;
        for i in 0..num_levels {
            let middle = (tenth_to_one(i, num_levels) + tenth_to_one(i + 1, num_levels)) / 2.0;
            push(scale * middle);
            push(-scale * middle);
        }
    }
    push(0.0);
    push(1.0);
    map.sort_by(f32::total_cmp);
    map
}

/// Boundary `i` of `num_levels` equal intervals of `[0.1, 1]`, rounded as `torch.linspace` does with fused multiply-add.
fn tenth_to_one(i: usize, num_levels: usize) -> f32 {
    let step = (1.0f32 - 0.1) / num_levels as f32;
    if i < num_levels.div_ceil(2) {
        step.mul_add(i as f32, 0.1)
    } else {
        (-step).mul_add((num_levels - i) as f32, 1.0)
    }
}

/// Quantizes `values` in blocks: returns one code for each value and one scale for each block.
///
/// bitsandbytes on the CPU does not take the nearest level of a value but that of the nearest of 65,536 steps of
/// `[-1, 1]`, which differs for small magnitudes; this does the same. A block of zeros gets code 0 and scale 0.
pub fn quantize_blockwise(
    values: &[f32],
    map: &[f32; 256],
    block_size: usize,
) -> (Vec<u8>, Vec<f32>) {
    let midpoints: Vec<f32> = map
        .windows(2)
        .map(|pair| 0.5 * (pair[0] + pair[1]))
        .collect();
    let last_step = (NUM_STEPS - 1) as f32;
    let code_of = |x: f32| {
        let step = ((x.clamp(-1.0, 1.0) + 1.0) * 0.5 * last_step + 0.5) as u16;
        let x = -1.0 + (2.0 * f32::from(step)) / last_step;
        midpoints.partition_point(|midpoint| *midpoint < x) as u8
    };
    let mut codes = Vec::with_capacity(values.len());
    let mut absmax = Vec::with_capacity(values.len().div_ceil(block_size));
    for block in values.chunks(block_size) {
        let scale = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
        absmax.push(scale);
        if scale == 0.0 {
            codes.resize(codes.len() + block.len(), 0);
        } else {
            let inverse = 1.0 / scale;
            codes.extend(block.iter().map(|value| code_of(value * inverse)));
        }
    }
    (codes, absmax)
}

/// The values of `codes`: the level of each, times the scale of its block.
pub fn dequantize_blockwise(
    codes: &[u8],
    map: &[f32; 256],
    absmax: &[f32],
    block_size: usize,
) -> Vec<f32> {
    codes
        .chunks(block_size)
        .zip(absmax)
        .flat_map(|(block, scale)| {
            block
                .iter()
                .map(move |code| map[usize::from(*code)] * scale)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_is_sorted_and_spans_seven_decades() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(map[255], 1.0);
        assert_eq!(map[127], 0.0);
        assert_eq!(map.iter().filter(|level| **level > 0.0).count(), 128);
        assert!(map[128] < 1e-6);
    }

    #[test]
    fn zero_block_has_code_and_scale_zero() {
        let (codes, absmax) = quantize_blockwise(&[0.0; 300], dynamic_map(), 256);
        assert_eq!((codes, absmax), (vec![0; 300], vec![0.0; 2]));
    }

    #[test]
    fn largest_magnitude_is_kept() {
        let (codes, absmax) = quantize_blockwise(&[3.0, -1.0, 0.5], dynamic_map(), 256);
        let values = dequantize_blockwise(&codes, dynamic_map(), &absmax, 256);
        assert_eq!(values[0], 3.0);
        assert!((values[1] + 1.0).abs() < 0.02 && (values[2] - 0.5).abs() < 0.02);
    }
}
