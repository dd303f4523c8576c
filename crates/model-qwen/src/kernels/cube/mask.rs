//! Which tokens a row of logits may give.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use lora_4bit::kernels::launch::UNITS;

/// Logits of a row that a cube looks through.
const PART: usize = 4096;

/// Makes the logits `[rows, vocab]` of tokens that may not come negative infinity, in place. `entries` has `num` rows of the
/// logits, then the mask of each of them: its place in `masks`, where each has one bit per token, the lowest first, in whole words.
pub(super) fn mask(
    logits: CubeTensor,
    masks: CubeTensor,
    entries: CubeTensor,
    num: usize,
) -> CubeTensor {
    let [_, vocab] = logits.meta.shape().dims();
    // Rows may lie further apart than they are long.
    let strides = logits.meta.strides();
    assert_eq!(strides[1], 1, "logits of a row are neighbours");
    let stride = strides[0];
    if num > 0 {
        // SAFETY: a cube for each part of each of the rows, which are rows of the logits; units stay below the size of the
        // vocabulary, and each mask has a bit for all of it.
        unsafe {
            mask_rows::launch_unchecked(
                &logits.client.clone(),
                CubeCount::Static(vocab.div_ceil(PART) as u32, num as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                masks.into_buffer_arg(),
                entries.into_buffer_arg(),
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
    entries: &[u32],
    logits: &mut [f32],
    vocab: usize,
    stride: usize,
    num: usize,
    impossible: f32,
) {
    let entry = CUBE_POS_Y as usize;
    let row = entries[entry] as usize;
    let words = entries[num + entry] as usize * vocab.div_ceil(32usize);
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

/// Writes masks of `len` words to their places in `table`, in place. `masks` has `num` places, then the words of each mask.
pub(super) fn store_masks(
    table: CubeTensor,
    masks: CubeTensor,
    num: usize,
    len: usize,
) -> CubeTensor {
    // SAFETY: units stay below the words of a mask; places are places of the table.
    unsafe {
        store_words::launch_unchecked(
            &table.client.clone(),
            CubeCount::Static(len.div_ceil(UNITS) as u32, num as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            masks.into_buffer_arg(),
            table.clone().into_buffer_arg(),
            num,
            len,
        );
    }
    table
}

#[cube(launch_unchecked)]
fn store_words(masks: &[u32], table: &mut [u32], num: usize, len: usize) {
    let entry = CUBE_POS_Y as usize;
    let at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    if at < len {
        table[masks[entry] as usize * len + at] = masks[num + entry * len + at];
    }
}
