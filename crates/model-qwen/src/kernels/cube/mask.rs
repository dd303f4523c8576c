//! Which tokens a row of logits may give.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::UNITS;

/// Logits of a row that a cube looks through.
const PART: usize = 4096;

/// Makes the logits `[rows, vocab]` of tokens that may not come negative infinity, in place. `masks` has `num` rows of the
/// logits, then for each of them one bit per token, the lowest first, in whole words.
pub(super) fn mask(logits: CubeTensor, masks: CubeTensor, num: usize) -> CubeTensor {
    let [_, vocab] = logits.meta.shape().dims();
    // Rows may lie further apart than they are long.
    let strides = logits.meta.strides();
    assert_eq!(strides[1], 1, "logits of a row are neighbours");
    let stride = strides[0];
    if num > 0 {
        // SAFETY: a cube for each part of each of the rows, which are rows of the logits; units stay below the size of the
        // vocabulary, and each row has a bit for all of it.
        unsafe {
            mask_rows::launch_unchecked(
                &logits.client.clone(),
                CubeCount::Static(vocab.div_ceil(PART) as u32, num as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                masks.into_buffer_arg(),
                logits.clone().into_buffer_arg(),
                vocab,
                stride,
                num,
                // Not every shading language has a literal for it.
                f32::NEG_INFINITY,
            );
        }
    }
    logits
}

#[cube(launch_unchecked)]
fn mask_rows(
    masks: &[u32],
    logits: &mut [f32],
    vocab: usize,
    stride: usize,
    num: usize,
    impossible: f32,
) {
    let entry = CUBE_POS_Y as usize;
    let row = masks[entry] as usize;
    let words = num + entry * vocab.div_ceil(32usize);
    let start = CUBE_POS_X as usize * PART;
    let end = min(start + PART, vocab);
    let mut id = start + UNIT_POS as usize;
    while id < end {
        let word = masks[words + id / 32];
        if (word >> (id % 32) as u32) & 1u32 == 0u32 {
            logits[row * stride + id] = impossible;
        }
        id += UNITS;
    }
}
