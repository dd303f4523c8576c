//! What is likely among the logits of each row: the most likely token, or what sampling needs to know.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{UNITS, empty_of};
use crate::sampling::TopLogits;

/// Logits of a row that a cube looks through.
const PART: usize = 4096;

/// Largest logits of a part that are looked for; all but the smallest of them are given to the host.
const TOP: usize = 64;
/// Words that describe a part: the smallest of these, the largest, and the sum of the weights.
const HEADER: usize = 3;
/// Words of a part: its description, then ids and values.
const PART_WORDS: usize = HEADER + 2 * TOP;
/// In place of an id.
const NONE: u32 = u32::MAX;

/// The most likely token of each row, also written to `chosen`.
pub(super) fn argmax(logits: CubeTensor, chosen: CubeTensor) -> CubeTensor {
    let logits = into_contiguous(logits);
    let [rows, vocab] = logits.meta.shape().dims();
    let parts = vocab.div_ceil(PART);
    let values = empty_of(&logits, [rows, parts], DType::F32);
    let ids = empty_of(&logits, [rows, parts], DType::I32);
    let best = empty_of(&logits, [rows], DType::I32);
    let client = logits.client.clone();
    // SAFETY: a cube for each part of each row, then one for each row.
    unsafe {
        argmax_parts::launch_unchecked(
            &client,
            CubeCount::Static(parts as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            logits.into_buffer_arg(),
            values.clone().into_buffer_arg(),
            ids.clone().into_buffer_arg(),
            vocab,
        );
        argmax_rows::launch_unchecked(
            &client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            values.into_buffer_arg(),
            ids.into_buffer_arg(),
            best.clone().into_buffer_arg(),
            chosen.into_buffer_arg(),
            parts,
        );
    }
    best
}

/// The largest logits of the parts of each row, and what `exp((logit - largest) * scale)` adds up to, in words: see
/// [`top_logits_of`].
pub(super) fn top_logits(logits: CubeTensor, scales: CubeTensor) -> CubeTensor {
    let (logits, scales) = (into_contiguous(logits), into_contiguous(scales));
    let [rows, vocab] = logits.meta.shape().dims();
    let parts = vocab.div_ceil(PART);
    let words = empty_of(&logits, [rows * parts * PART_WORDS], DType::U32);
    if rows > 0 {
        // SAFETY: a cube for each part of each row; units stay below the size of the vocabulary.
        unsafe {
            top_of_part::launch_unchecked(
                &logits.client.clone(),
                CubeCount::Static(parts as u32, rows as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                logits.into_buffer_arg(),
                scales.into_buffer_arg(),
                words.clone().into_buffer_arg(),
                vocab,
            );
        }
    }
    words
}

/// Reads what [`top_logits`] wrote of rows of `vocab` logits.
pub(in super::super) fn top_logits_of(
    words: &[u32],
    vocab: usize,
    scales: &[f32],
) -> Vec<TopLogits> {
    let row_words = vocab.div_ceil(PART) * PART_WORDS;
    let rows = words.chunks_exact(row_words).zip(scales);
    rows.map(|(row, &scale)| {
        let parts = || row.chunks_exact(PART_WORDS);
        let most = |at: usize| {
            let values = parts().map(|part| f32::from_bits(part[at]));
            values.fold(f32::NEG_INFINITY, f32::max)
        };
        let (bound, largest) = (most(0), most(1));
        let total = parts().map(|part| {
            let [max, sum] = [1, 2].map(|i| f64::from(f32::from_bits(part[i])));
            match max > f64::NEG_INFINITY {
                true => sum * ((max - f64::from(largest)) * f64::from(scale)).exp(),
                false => 0.0,
            }
        });
        let total = total.sum();
        let entries = parts().flat_map(|part| {
            let (ids, values) = part[HEADER..].split_at(TOP);
            let entries = ids.iter().zip(values).take_while(|(id, _)| **id != NONE);
            entries.map(|(&id, &value)| (id, f32::from_bits(value)))
        });
        let mut entries: Vec<(u32, f32)> = entries.filter(|(_, logit)| *logit > bound).collect();
        entries.sort_unstable_by_key(|(id, _)| *id);
        TopLogits {
            entries,
            bound,
            total,
        }
    })
    .collect()
}

/// Logits that a unit looks at.
const OWN: usize = PART / UNITS;

/// Finds the [`TOP`] largest logits of a part bit by bit: the largest key that at least so many reach.
#[cube(launch_unchecked)]
fn top_of_part(logits: &[f32], scales: &[f32], words: &mut [u32], vocab: usize) {
    let row = CUBE_POS_Y as usize;
    let start = CUBE_POS_X as usize * PART;
    let unit = UNIT_POS as usize;
    let mut shared = Shared::<[u32]>::new_slice(UNITS);
    let mut sums = Shared::<[f32]>::new_slice(UNITS);

    // The keys of NaN and of what lies past the end are below all.
    let mut values = Array::<f32>::new(OWN);
    let mut keys = Array::<u32>::new(OWN);
    let mut largest = 0u32;
    #[unroll]
    for i in 0..OWN {
        let id = start + i * UNITS + unit;
        let value = logits[row * vocab + min(id, vocab - 1)];
        let mut key = key_of(value, 0u32);
        if id >= vocab {
            key = 0u32;
        }
        values[i] = value;
        keys[i] = key;
        largest = max(largest, key);
    }
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let largest = plane_max(largest);
    if UNIT_POS_PLANE == 0 {
        shared[plane] = largest;
    }
    sync_cube();
    let mut largest = 0u32;
    for other in 0..planes {
        largest = max(largest, shared[other]);
    }
    sync_cube();

    let mut bound = 0u32;
    let mut bit = 0x8000_0000u32.runtime();
    while bit > 0 {
        let candidate = bound | bit;
        let mut count = 0u32;
        #[unroll]
        for i in 0..OWN {
            count += u32::cast_from(keys[i] >= candidate);
        }
        let count = plane_sum(count);
        if UNIT_POS_PLANE == 0 {
            shared[plane] = count;
        }
        sync_cube();
        let mut total = 0u32;
        for other in 0..planes {
            total += shared[other];
        }
        if total >= TOP as u32 {
            bound = candidate;
        }
        sync_cube();
        bit >>= 1u32;
    }

    // Where each unit writes what it has above the bound.
    let mut count = 0u32;
    #[unroll]
    for i in 0..OWN {
        count += u32::cast_from(keys[i] > bound);
    }
    let mut at = plane_exclusive_sum(count) as usize;
    let count = plane_sum(count);
    let max_value = value_of(largest);
    let scale = scales[row];
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..OWN {
        if keys[i] > 0 {
            sum += ((values[i] - max_value) * scale).exp();
        }
    }
    let sum = plane_sum(sum);
    if UNIT_POS_PLANE == 0 {
        shared[plane] = count;
        sums[plane] = sum;
    }
    sync_cube();
    for other in 0..plane {
        at += shared[other] as usize;
    }
    let to = (row * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * PART_WORDS;
    #[unroll]
    for i in 0..OWN {
        if keys[i] > bound {
            words[to + HEADER + at] = (start + i * UNITS + unit) as u32;
            words[to + HEADER + TOP + at] = u32::reinterpret(values[i]);
            at += 1;
        }
    }
    let mut num = 0usize;
    let mut total = 0.0f32;
    for other in 0..planes {
        num += shared[other] as usize;
        total += sums[other];
    }
    if unit >= num && unit < TOP {
        words[to + HEADER + unit] = NONE;
    }
    if unit == 0 {
        words[to] = u32::reinterpret(value_of(bound));
        words[to + 1] = u32::reinterpret(max_value);
        words[to + 2] = u32::reinterpret(total);
    }
}

/// A key in the order of the values; `nan` for what is not a number.
#[cube]
pub(super) fn key_of(value: f32, nan: u32) -> u32 {
    let bits = u32::reinterpret(value);
    let mut key = bits | 0x8000_0000u32;
    if bits >= 0x8000_0000u32 {
        key = !bits;
    }
    // Beyond infinity.
    if (bits & 0x7fff_ffffu32) > 0x7f80_0000u32 {
        key = nan;
    }
    key
}

/// The value of a key.
#[cube]
pub(super) fn value_of(key: u32) -> f32 {
    let mut bits = key & 0x7fff_ffffu32;
    if key < 0x8000_0000u32 {
        bits = !key;
    }
    if key == 0u32 {
        // Negative infinity.
        bits = 0xff80_0000u32;
    }
    f32::reinterpret(bits)
}

/// The largest value of a part of a row, and its index in the row.
#[cube(launch_unchecked)]
fn argmax_parts(logits: &[f32], values: &mut [f32], ids: &mut [i32], vocab: usize) {
    let start = CUBE_POS_X as usize * PART;
    let end = min(start + PART, vocab);
    let row = CUBE_POS_Y as usize * vocab;
    let mut best = f32::new(LOWEST);
    let mut id = start as i32;
    let mut i = start + UNIT_POS as usize;
    while i < end {
        let value = logits[row + i];
        if value > best {
            best = value;
            id = i as i32;
        }
        i += UNITS;
    }
    let (best, id) = largest_of_cube(best, id);
    if UNIT_POS == 0 {
        let part = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize;
        values[part] = best;
        ids[part] = id;
    }
}

/// The largest value of the parts of each row.
#[cube(launch_unchecked)]
pub(super) fn argmax_rows(
    values: &[f32],
    ids: &[i32],
    best_ids: &mut [i32],
    chosen: &mut [i32],
    parts: usize,
) {
    let row = CUBE_POS_X as usize;
    let mut best = f32::new(LOWEST);
    let mut id = ids[row * parts];
    let mut i = UNIT_POS as usize;
    while i < parts {
        let value = values[row * parts + i];
        if value > best {
            best = value;
            id = ids[row * parts + i];
        }
        i += UNITS;
    }
    let (_, id) = largest_of_cube(best, id);
    if UNIT_POS == 0 {
        best_ids[row] = id;
        chosen[row] = id;
    }
}

/// Lower than any logit.
const LOWEST: f32 = -3.4e38;

/// The largest value of all units with its index, the lowest index of several; right in the first unit.
#[cube]
fn largest_of_cube(value: f32, id: i32) -> (f32, i32) {
    let mut values = Shared::<[f32]>::new_slice(UNITS);
    let mut ids = Shared::<[i32]>::new_slice(UNITS);
    let unit = UNIT_POS as usize;
    values[unit] = value;
    ids[unit] = id;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = values[unit + half];
            let other_id = ids[unit + half];
            let wins = other > values[unit] || (other == values[unit] && other_id < ids[unit]);
            if wins {
                values[unit] = other;
                ids[unit] = other_id;
            }
        }
        sync_cube();
        half /= 2;
    }
    (values[0], ids[0])
}
