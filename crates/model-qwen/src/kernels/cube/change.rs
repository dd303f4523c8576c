//! What the parameters of sampling change of logits before tokens are drawn from them.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::sampling::LogitChanges;
use lora_4bit::kernels::launch::UNITS;

/// Changes logits `[rows, vocab]` in place as `changes` says, which has [`LogitChanges::words`] of the rows; `inputs` has for each
/// row the token before the one that is drawn.
pub(super) fn change(logits: CubeTensor, changes: CubeTensor, inputs: CubeTensor) -> CubeTensor {
    let [rows, vocab] = logits.meta.shape().dims();
    // Rows may lie further apart than they are long.
    let strides = logits.meta.strides();
    assert_eq!(strides[1], 1, "logits of a row are neighbours");
    let stride = strides[0];
    if rows > 0 {
        // SAFETY: a cube for each row, of which `changes` and `inputs` know; ids are compared with the size of the vocabulary.
        unsafe {
            change_rows::launch_unchecked(
                &logits.client.clone(),
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                changes.into_buffer_arg(),
                inputs.into_buffer_arg(),
                logits.clone().into_buffer_arg(),
                vocab,
                stride,
                f32::MAX,
                // Not every shading language has a literal for it.
                f32::NEG_INFINITY,
            );
        }
    }
    logits
}

/// Where the lists begin.
const HEADER: usize = LogitChanges::HEADER;

#[cube(launch_unchecked)]
fn change_rows(
    changes: &[i32],
    inputs: &[i32],
    logits: &mut [f32],
    vocab: usize,
    stride: usize,
    largest: f32,
    impossible: f32,
) {
    let row = CUBE_POS_X as usize;
    let at = changes[row] as usize;
    let input = inputs[row];
    let mut num = 0usize;
    let mut num_pairs = 0usize;
    let mut num_biases = 0usize;
    let mut counts_input = false;
    if at > 0 {
        num = changes[at] as usize;
        num_pairs = changes[at + 1] as usize;
        num_biases = changes[at + 2] as usize * num;
        counts_input = changes[at + 3] != 0i32;
    }
    let ids = at + HEADER;
    let counts = ids + num;
    let biases = counts + num;
    let pairs = biases + num_biases;
    let mut is_listed = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        is_listed[0] = 0u32;
    }
    sync_cube();
    let mut i = UNIT_POS as usize;
    while i < num {
        let id = changes[ids + i];
        let mut count = changes[counts + i];
        if counts_input && id == input {
            count = max(count, 0i32) + 1i32;
            is_listed[0] = 1u32;
        }
        if (id as usize) < vocab {
            let place = row * stride + id as usize;
            let mut value = at_most(logits[place], largest);
            if num_biases > 0 {
                value = at_most(value + f32::reinterpret(changes[biases + i]), largest);
            }
            for pair in 0..num_pairs {
                if changes[pairs + 2 * pair] == input && changes[pairs + 2 * pair + 1] == id {
                    value = impossible;
                }
            }
            logits[place] = at_most(penalized(value, changes, at, count), largest);
        }
        i += UNITS;
    }
    sync_cube();
    if UNIT_POS == 0 && counts_input && is_listed[0] == 0u32 && (input as usize) < vocab {
        let place = row * stride + input as usize;
        let value = at_most(logits[place], largest);
        logits[place] = at_most(penalized(value, changes, at, 1i32), largest);
    }
}

/// A logit after the penalties of a token that is `count` times in the output, with the changes of its row from `at` on.
#[cube]
fn penalized(logit: f32, changes: &[i32], at: usize, count: i32) -> f32 {
    let mut value = logit;
    if count >= 0i32 {
        let repetition = f32::reinterpret(changes[at + 4]);
        if logit > 0.0 {
            value = logit / repetition;
        } else {
            value = logit * repetition;
        }
    }
    if count > 0i32 {
        let presence = f32::reinterpret(changes[at + 5]);
        let frequency = f32::reinterpret(changes[at + 6]);
        value = value - frequency * count as f32 - presence;
    }
    value
}

/// The smaller one; what is not a number stays so.
#[cube]
fn at_most(value: f32, largest: f32) -> f32 {
    let mut result = value;
    if value > largest {
        result = largest;
    }
    result
}
