//! Draws a token of each row of logits: what [`Sampler::sample`](crate::Sampler::sample) does with temperature, top-k, top-p
//! and min-p, with sums in f32 and from the largest logits, if these decide.

use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::choose::{
    INFINITY, LOWEST, NEG_INFINITY, NONE, OWN, PART, PART_WORDS, ROW_HEADER, ROW_TOP, ROW_WORDS,
    key_of, largest_of_cube, top_logits, value_of,
};
use super::units::{bound_of_top, of_all_units, places};
use lora_4bit::kernels::launch::{UNITS, empty};
use lora_4bit::kernels::sum_of_cube;

/// Entries of a row that a unit looks at.
const ENTRIES: usize = ROW_TOP / UNITS;
/// Entries that are compared with others together, so that their loads are.
const TOGETHER: usize = 8;

/// Token of each row of `logits [rows, vocab]`, -1 where others than the largest logits count; also written to `chosen`, as 0
/// there. `draws` has the words of [`Draw`](crate::Draw) from `at` on: the first one of `num_draws` rows, then the second.
pub(super) fn draw(
    logits: CubeTensor,
    draws: CubeTensor,
    (at, num_draws): (usize, usize),
    chosen: CubeTensor,
) -> CubeTensor {
    let (logits, draws) = (into_contiguous(logits), into_contiguous(draws));
    let [rows, vocab] = logits.meta.shape().dims();
    let ids = empty(&logits, [rows], DType::I32);
    let top = top_logits(logits.clone(), draws.clone(), at);
    if rows > 0 {
        // SAFETY: a cube for each row, of which `top` has all parts.
        unsafe {
            draw_of_row::launch_unchecked(
                &logits.client.clone(),
                CubeCount::Static(rows as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                logits.into_buffer_arg(),
                top.parts.into_buffer_arg(),
                top.words.into_buffer_arg(),
                draws.into_buffer_arg(),
                ids.clone().into_buffer_arg(),
                chosen.into_buffer_arg(),
                vocab,
                top.num_parts,
                at,
                num_draws,
            );
        }
    }
    ids
}

#[cube(launch_unchecked)]
fn draw_of_row(
    logits: &[f32],
    parts: &[u32],
    words: &[u32],
    draws: &[i32],
    ids: &mut [i32],
    chosen: &mut [i32],
    vocab: usize,
    num_parts: usize,
    at: usize,
    num_draws: usize,
) {
    let row = CUBE_POS_X as usize;
    let first = at + row;
    let scale = f32::reinterpret(draws[first]);
    let uniform = f32::reinterpret(draws[first + num_draws]);
    let mut top_k = draws[first + 2 * num_draws] as usize;
    let top_p = f32::reinterpret(draws[first + 3 * num_draws]);
    let min_p = f32::reinterpret(draws[first + 4 * num_draws]);
    if top_k >= vocab {
        top_k = 0usize;
    }
    let is_argmax = scale == 0.0;
    let has_limits = top_k > 0 || top_p < 1.0 || min_p > 0.0;
    let mut id = 0u32;
    if is_argmax {
        id = most_likely(words, row * ROW_WORDS);
    }
    if !is_argmax && has_limits {
        id = of_top(words, row * ROW_WORDS, scale, uniform, top_k, top_p, min_p);
    }
    if !is_argmax && !has_limits {
        id = of_all(logits, parts, row, vocab, num_parts, scale, uniform);
    }
    if UNIT_POS == 0 {
        ids[row] = id as i32;
        if id == NONE {
            id = 0u32;
        }
        chosen[row] = id as i32;
    }
}

/// The id of the largest logit of a row, the lowest of several.
#[cube]
fn most_likely(words: &[u32], from: usize) -> u32 {
    let mut best = f32::new(LOWEST);
    let mut id = i32::MAX.runtime();
    #[unroll]
    for i in 0..ENTRIES {
        let entry = from + ROW_HEADER + i * UNITS + UNIT_POS as usize;
        let other = words[entry];
        if other != NONE {
            let value = f32::reinterpret(words[entry + ROW_TOP]);
            if value > best || (value == best && (other as i32) < id) {
                best = value;
                id = other as i32;
            }
        }
    }
    let (_, id) = largest_of_cube(best, id);
    let mut found = id as u32;
    if id == i32::MAX {
        found = NONE;
    }
    found
}

/// Draws from the whole vocabulary: the token at which the running sum of weights passes `uniform` of all.
#[cube]
fn of_all(
    logits: &[f32],
    parts: &[u32],
    row: usize,
    vocab: usize,
    num_parts: usize,
    scale: f32,
    uniform: f32,
) -> u32 {
    let from = row * num_parts * PART_WORDS;
    let mut largest = 0u32;
    for part in 0..num_parts {
        let value = f32::reinterpret(parts[from + part * PART_WORDS + 1]);
        largest = max(largest, key_of(value, 0u32));
    }
    let max_value = value_of(largest);
    let mut total = 0.0f32;
    for part in 0..num_parts {
        total += weight_of_part(parts, from + part * PART_WORDS, max_value, scale);
    }
    let left = uniform * total;
    // The part in which the sum passes; the last one that has weight if rounding carries past all.
    let mut part = 0usize;
    let mut rest = 0.0f32;
    let mut passed = false;
    let mut sum = 0.0f32;
    for other in 0..num_parts {
        let weight = weight_of_part(parts, from + other * PART_WORDS, max_value, scale);
        if !passed && weight > 0.0 {
            part = other;
            rest = left - sum;
            passed = left < sum + weight;
        }
        sum += weight;
    }

    // Consecutive logits, so that sums run in the order of ids.
    let start = part * PART + UNIT_POS as usize * OWN;
    let mut weights = Array::<f32>::new(OWN);
    let mut own = 0.0f32;
    #[unroll]
    for i in 0..OWN {
        let id = start + i;
        let value = logits[row * vocab + min(id, vocab - 1)];
        weights[i] = 0.0;
        if id < vocab && key_of(value, 0u32) > 0 {
            weights[i] = ((value - max_value) * scale).exp();
        }
        own += weights[i];
    }
    let mut sum = sum_before(own);
    let mut found = 0u32;
    let mut last = 0u32;
    #[unroll]
    for i in 0..OWN {
        let id = (start + i) as u32;
        if weights[i] > 0.0 {
            if found == 0 && rest < sum + weights[i] {
                found = !id;
            }
            last = id + 1;
        }
        sum += weights[i];
    }
    let mut id = first_or_last(found, last);
    // Infinite logits have no sum.
    if largest <= NEG_INFINITY || largest >= INFINITY {
        id = NONE;
    }
    id
}

/// What the weights of a part add up to, as shares of the weight of the row's largest logit.
#[cube]
fn weight_of_part(parts: &[u32], at: usize, max_value: f32, scale: f32) -> f32 {
    let value = f32::reinterpret(parts[at + 1]);
    let mut weight = 0.0f32;
    if key_of(value, 0u32) > NEG_INFINITY {
        weight = f32::reinterpret(parts[at + 2]) * ((value - max_value) * scale).exp();
    }
    weight
}

/// Draws from what top-k, top-p and min-p keep of the largest logits; no token if smaller ones might be among it.
#[cube]
fn of_top(
    words: &[u32],
    from: usize,
    scale: f32,
    uniform: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
) -> u32 {
    let mut ids = Shared::<[u32]>::new_slice(ROW_TOP);
    let mut values = Shared::<[f32]>::new_slice(ROW_TOP);
    let mut weights = Shared::<[f32]>::new_slice(ROW_TOP);
    let mut kept = Shared::<[f32]>::new_slice(ROW_TOP);
    let mut shared = Shared::<[u32]>::new_slice(UNITS);
    let mut largest = 0u32;
    let mut count = 0u32;
    let mut keys = Array::<u32>::new(ENTRIES);
    #[unroll]
    for i in 0..ENTRIES {
        let entry = from + ROW_HEADER + i * UNITS + UNIT_POS as usize;
        keys[i] = 0;
        if words[entry] != NONE {
            let value = f32::reinterpret(words[entry + ROW_TOP]);
            // Zeros tie, whatever their sign.
            keys[i] = key_of(select(value == 0.0, 0.0f32, value), 0u32);
            largest = max(largest, keys[i]);
            count += 1;
        }
    }
    let largest = of_all_units(largest, &mut shared, false);
    let num = of_all_units(count, &mut shared, true) as usize;
    // Only what top-k keeps is compared with each other. Tokens that tie with the k-th stay.
    let mut bound = 1u32;
    if top_k > 0 {
        bound = max(
            bound,
            bound_of_top(&keys, &mut shared, ENTRIES, top_k as u32),
        );
    }
    let mut count = 0u32;
    #[unroll]
    for i in 0..ENTRIES {
        count += u32::cast_from(keys[i] >= bound);
    }
    let (mut at, num_kept) = places(count, &mut shared);
    #[unroll]
    for i in 0..ENTRIES {
        if keys[i] >= bound {
            let entry = from + ROW_HEADER + i * UNITS + UNIT_POS as usize;
            ids[at] = words[entry];
            values[at] = f32::reinterpret(words[entry + ROW_TOP]);
            at += 1;
        }
        // What is past the last entry weighs nothing, and comes behind all others.
        let entry = i * UNITS + UNIT_POS as usize;
        if entry >= num_kept {
            ids[entry] = NONE;
            values[entry] = f32::new(LOWEST);
        }
    }
    sync_cube();
    let blocks = num_kept.div_ceil(TOGETHER);
    let max_value = value_of(largest);
    #[unroll]
    for i in 0..ENTRIES {
        let entry = i * UNITS + UNIT_POS as usize;
        weights[entry] = 0.0;
        if entry < num_kept {
            weights[entry] = ((values[entry] - max_value) * scale).exp();
        }
    }
    sync_cube();

    // What is heavier than an entry decides whether top-p keeps it.
    let mut heavier = Array::<f32>::new(ENTRIES);
    let mut own = 0.0f32;
    #[unroll]
    for i in 0..ENTRIES {
        let entry = i * UNITS + UNIT_POS as usize;
        let (id, weight) = (ids[entry], weights[entry]);
        let mut sum = 0.0f32;
        for block in 0..blocks {
            #[unroll]
            for j in 0..TOGETHER {
                let other = block * TOGETHER + j;
                let other_weight = weights[other];
                let is_before =
                    other_weight > weight || (other_weight == weight && ids[other] < id);
                sum += select(is_before, other_weight, 0.0f32);
            }
        }
        heavier[i] = sum;
        own += weight;
    }
    let sum = sum_of_cube(own);
    let mut total = sum;
    let mut decides = top_k <= num;
    if top_k == 0 {
        total = f32::reinterpret(words[from + 1]);
        let bound = f32::reinterpret(words[from]);
        let reaches_min_p = min_p > 0.0 && ((bound - max_value) * scale).exp() < min_p;
        decides = reaches_min_p || (top_p < 1.0 && sum >= top_p * total);
    }
    // All others are impossible.
    if key_of(f32::reinterpret(words[from]), 0u32) <= NEG_INFINITY {
        decides = true;
    }
    if num == 0 || largest <= NEG_INFINITY || largest >= INFINITY {
        decides = false;
    }

    let mut own = 0.0f32;
    #[unroll]
    for i in 0..ENTRIES {
        let mut weight = weights[i * UNITS + UNIT_POS as usize];
        if (top_p < 1.0 && heavier[i] >= top_p * total) || weight < min_p {
            weight = 0.0;
        }
        kept[i * UNITS + UNIT_POS as usize] = weight;
        own += weight;
    }
    let left = uniform * sum_of_cube(own);
    sync_cube();
    let mut found = 0u32;
    let mut last = 0u32;
    #[unroll]
    for i in 0..ENTRIES {
        let entry = i * UNITS + UNIT_POS as usize;
        let (id, weight) = (ids[entry], kept[entry]);
        if weight > 0.0 {
            let mut sum = 0.0f32;
            for block in 0..blocks {
                #[unroll]
                for j in 0..TOGETHER {
                    let other = block * TOGETHER + j;
                    sum += select(ids[other] < id, kept[other], 0.0f32);
                }
            }
            if left < sum + weight {
                found = max(found, !id);
            }
            last = max(last, id + 1);
        }
    }
    let mut id = first_or_last(found, last);
    if !decides {
        id = NONE;
    }
    id
}

/// The sum of the values of the units before this one.
#[cube]
fn sum_before(value: f32) -> f32 {
    let mut sums = Shared::<[f32]>::new_slice(UNITS);
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let mut sum = plane_exclusive_sum(value);
    let of_plane = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        sums[plane] = of_plane;
    }
    sync_cube();
    for other in 0..planes {
        if other < plane {
            sum += sums[other];
        }
    }
    sum
}

/// The lowest id of which a unit has found the complement; otherwise the highest one before those that units have.
#[cube]
fn first_or_last(found: u32, last: u32) -> u32 {
    let mut shared = Shared::<[u32]>::new_slice(UNITS);
    let found = of_all_units(found, &mut shared, false);
    let last = of_all_units(last, &mut shared, false);
    let mut id = !found;
    if found == 0 {
        // None at all: 0 - 1.
        id = last - 1;
    }
    id
}
