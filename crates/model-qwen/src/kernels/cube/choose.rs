//! What is likely among the logits of each row: the most likely token, or what sampling needs to know.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::units::{bound_of_top, of_all_units, places};
use crate::sampling::TopLogits;
use lora_4bit::kernels::launch::{UNITS, empty};
use lora_4bit::kernels::sum_of_cube;

/// Logits of a row that a cube looks through.
pub(super) const PART: usize = 4096;

/// Largest logits of a part that are looked for; all but the smallest of them are kept.
const TOP: usize = 64;
/// Words that describe a part: the smallest of these, the largest, and the sum of the weights.
const HEADER: usize = 3;
/// Words of a part: its description, then ids and values.
pub(super) const PART_WORDS: usize = HEADER + 2 * TOP;

/// Largest logits of a row that are looked for among those of its parts; all but the smallest of them are given to the host.
pub(super) const ROW_TOP: usize = 512;
/// Words that describe a row: what no other logit is larger than, and the sum of the weights.
pub(super) const ROW_HEADER: usize = 2;
/// Words of a row: its description, then ids and values.
pub(super) const ROW_WORDS: usize = ROW_HEADER + 2 * ROW_TOP;

/// In place of an id.
pub(in super::super) const NONE: u32 = u32::MAX;

/// The most likely token of each row, also written to `chosen`.
pub(super) fn argmax(logits: CubeTensor, chosen: CubeTensor) -> CubeTensor {
    let logits = into_contiguous(logits);
    let [rows, vocab] = logits.meta.shape().dims();
    let parts = vocab.div_ceil(PART);
    let values = empty(&logits, [rows, parts], DType::F32);
    let ids = empty(&logits, [rows, parts], DType::I32);
    // SAFETY: a cube for each part of each row.
    unsafe {
        argmax_parts::launch_unchecked(
            &logits.client.clone(),
            CubeCount::Static(parts as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            logits.into_buffer_arg(),
            values.clone().into_buffer_arg(),
            ids.clone().into_buffer_arg(),
            vocab,
        );
    }
    argmax_of_parts(values, ids, chosen)
}

/// The id of the largest of the values of each row's parts, both `[rows, parts]`: `[rows]`, also written to `chosen`.
pub(super) fn argmax_of_parts(
    values: CubeTensor,
    ids: CubeTensor,
    chosen: CubeTensor,
) -> CubeTensor {
    let [rows, parts] = values.meta.shape().dims();
    let best = empty(&values, [rows], DType::I32);
    // SAFETY: a cube for each row, of `parts` values.
    unsafe {
        argmax_rows::launch_unchecked(
            &values.client.clone(),
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

/// The largest logits of each row `[rows, vocab]`, and what `exp((logit - largest) * scale)` adds up to, in words: see
/// [`top_logits_of`]. The scales are floats in `scales` from `scales_at` on.
pub(super) fn top_logits(logits: CubeTensor, scales: CubeTensor, scales_at: usize) -> Top {
    let [rows, vocab] = logits.meta.shape().dims();
    let num_parts = vocab.div_ceil(PART);
    let parts = empty(&logits, [rows * num_parts * PART_WORDS], DType::U32);
    let words = empty(&logits, [rows * ROW_WORDS], DType::U32);
    let client = logits.client.clone();
    if rows > 0 {
        // SAFETY: a cube for each part of each row, then one for each row; units stay below the size of the vocabulary.
        unsafe {
            top_of_part::launch_unchecked(
                &client,
                CubeCount::Static(num_parts as u32, rows as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                into_contiguous(logits).into_buffer_arg(),
                scales.clone().into_buffer_arg(),
                parts.clone().into_buffer_arg(),
                vocab,
                scales_at,
            );
            top_of_row::launch_unchecked(
                &client,
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                parts.clone().into_buffer_arg(),
                scales.into_buffer_arg(),
                words.clone().into_buffer_arg(),
                num_parts,
                scales_at,
                (num_parts * TOP).div_ceil(UNITS),
            );
        }
    }
    Top {
        words,
        parts,
        num_parts,
    }
}

/// What [`top_logits`] finds.
pub(super) struct Top {
    /// Of each row.
    pub(super) words: CubeTensor,
    /// Of each row's parts.
    pub(super) parts: CubeTensor,
    pub(super) num_parts: usize,
}

/// Reads what [`top_logits`] wrote.
pub(in super::super) fn top_logits_of(words: &[u32]) -> Vec<TopLogits> {
    let rows = words.chunks_exact(ROW_WORDS);
    rows.map(|row| {
        let (ids, values) = row[ROW_HEADER..].split_at(ROW_TOP);
        let entries = ids.iter().zip(values).take_while(|(id, _)| **id != NONE);
        let mut entries: Vec<(u32, f32)> = entries
            .map(|(&id, &value)| (id, f32::from_bits(value)))
            .collect();
        entries.sort_unstable_by_key(|(id, _)| *id);
        TopLogits {
            entries,
            bound: f32::from_bits(row[0]),
            total: f64::from(f32::from_bits(row[1])),
        }
    })
    .collect()
}

/// Logits that a unit looks at.
pub(super) const OWN: usize = PART / UNITS;

/// Finds the [`TOP`] largest logits of a part.
#[cube(launch_unchecked)]
fn top_of_part(logits: &[f32], scales: &[i32], words: &mut [u32], vocab: usize, scales_at: usize) {
    let row = CUBE_POS_Y as usize;
    let start = CUBE_POS_X as usize * PART;
    let unit = UNIT_POS as usize;
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
    let mut shared = Shared::<[u32]>::new_slice(UNITS);
    let largest = of_all_units(largest, &mut shared, false);
    let bound = bound_of_top(&keys, &mut shared, OWN, TOP as u32);
    let scale = f32::reinterpret(scales[scales_at + row]);
    let max_value = value_of(largest);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..OWN {
        if keys[i] > 0 {
            sum += ((values[i] - max_value) * scale).exp();
        }
    }
    let total = sum_of_cube(sum);
    let to = (row * CUBE_COUNT_X as usize + CUBE_POS_X as usize) * PART_WORDS;
    let mut count = 0u32;
    #[unroll]
    for i in 0..OWN {
        count += u32::cast_from(keys[i] > bound);
    }
    let (mut at, num) = places(count, &mut shared);
    #[unroll]
    for i in 0..OWN {
        if keys[i] > bound {
            words[to + HEADER + at] = (start + i * UNITS + unit) as u32;
            words[to + HEADER + TOP + at] = u32::reinterpret(values[i]);
            at += 1;
        }
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

/// The key of negative infinity.
pub(super) const NEG_INFINITY: u32 = !0xff80_0000;

/// The key of infinity.
pub(super) const INFINITY: u32 = 0x7f80_0000 | 0x8000_0000;

/// Finds the [`ROW_TOP`] largest logits of a row among those of its parts.
#[cube(launch_unchecked)]
fn top_of_row(
    parts: &[u32],
    scales: &[i32],
    words: &mut [u32],
    num_parts: usize,
    scales_at: usize,
    #[comptime] own: usize,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let from = row * num_parts * PART_WORDS;
    // No logit that its part doesn't have is larger than this.
    let mut least = 0u32;
    let mut largest = 0u32;
    let mut part = unit;
    while part < num_parts {
        let at = from + part * PART_WORDS;
        least = max(least, key_of(f32::reinterpret(parts[at]), 0u32));
        largest = max(largest, key_of(f32::reinterpret(parts[at + 1]), 0u32));
        part += UNITS;
    }
    let mut shared = Shared::<[u32]>::new_slice(UNITS);
    let least = of_all_units(least, &mut shared, false);
    let largest = of_all_units(largest, &mut shared, false);
    let scale = f32::reinterpret(scales[scales_at + row]);
    let max_value = value_of(largest);
    let mut sum = 0.0f32;
    let mut part = unit;
    while part < num_parts {
        let at = from + part * PART_WORDS;
        let value = f32::reinterpret(parts[at + 1]);
        // A part without numbers has no weight.
        if key_of(value, 0u32) > NEG_INFINITY {
            sum += f32::reinterpret(parts[at + 2]) * ((value - max_value) * scale).exp();
        }
        part += UNITS;
    }
    let total = sum_of_cube(sum);

    let mut keys = Array::<u32>::new(own);
    #[unroll]
    for i in 0..own {
        let candidate = i * UNITS + unit;
        keys[i] = 0u32;
        if candidate < num_parts * TOP {
            let entry = entry_of(from, candidate);
            if parts[entry] != NONE {
                let key = key_of(f32::reinterpret(parts[entry + TOP]), 0u32);
                // A smaller one may be less than one that its part doesn't have.
                if key > least {
                    keys[i] = key;
                }
            }
        }
    }
    let bound = max(bound_of_top(&keys, &mut shared, own, ROW_TOP as u32), least);
    let mut count = 0u32;
    #[unroll]
    for i in 0..own {
        count += u32::cast_from(keys[i] > bound);
    }
    let (mut at, num) = places(count, &mut shared);
    let to = row * ROW_WORDS;
    #[unroll]
    for i in 0..own {
        if keys[i] > bound {
            let entry = entry_of(from, i * UNITS + unit);
            words[to + ROW_HEADER + at] = parts[entry];
            words[to + ROW_HEADER + ROW_TOP + at] = parts[entry + TOP];
            at += 1;
        }
    }
    let mut i = unit;
    while i < ROW_TOP {
        if i >= num {
            words[to + ROW_HEADER + i] = NONE;
        }
        i += UNITS;
    }
    if unit == 0 {
        words[to] = u32::reinterpret(value_of(bound));
        words[to + 1] = u32::reinterpret(total);
    }
}

/// Where the parts of a row have the id of one of their largest logits.
#[cube]
fn entry_of(from: usize, candidate: usize) -> usize {
    from + candidate / TOP * PART_WORDS + HEADER + candidate % TOP
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
fn argmax_rows(
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
pub(super) const LOWEST: f32 = -3.4e38;

/// The largest value of all units with its index, the lowest index of several; right in the first unit.
#[cube]
pub(super) fn largest_of_cube(value: f32, id: i32) -> (f32, i32) {
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
