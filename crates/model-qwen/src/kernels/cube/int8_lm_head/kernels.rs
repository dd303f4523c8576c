//! The kernels of a head in 8 bits.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::choose::{key_of, value_of};
use super::super::units::{max_of_cube, places};
use lora_4bit::kernels::launch::UNITS;
use lora_4bit::kernels::sum_of_cube;

/// Rows of lm_head that a plane multiplies at once.
pub(super) const ROWS: usize = 4;
/// Rows of lm_head that a cube looks through for those that are multiplied as they are.
pub(super) const PART: usize = 1024;
/// Bounds that a unit looks at.
const OWN: usize = PART / UNITS;
/// The largest integer of `x`: its upper part times 128 and its lower one are signed bytes.
const LARGEST: f32 = 16_000.0;
/// Rounding of sums in f32, relative to the lengths of both factors; generously.
const ROUNDING: f32 = 2e-5;
/// Lengths are rounded up by this much.
const LENGTHEN: f32 = 1.0 + 1e-3;

/// What `bound_rows` is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    /// Rows of `x`.
    pub(super) m: usize,
    /// Loads of each row at once.
    pub(super) unroll: usize,
    /// Whether the last ones may lie past its end.
    pub(super) is_ragged: bool,
}

/// Rounds each row to bytes.
#[cube(launch_unchecked)]
pub(super) fn copy_rows<W: Float>(
    weight: &[W],
    codes: &mut [u32],
    factors: &mut [f32],
    vocab: usize,
    hidden: usize,
    stride: usize,
    #[define(W)] _dtype: ElemType,
) {
    let row = (CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X) as usize;
    let unit = UNIT_POS as usize;
    if row < vocab {
        let mut largest = 0.0f32;
        let mut i = unit;
        while i < hidden {
            largest = max(largest, f32::cast_from(weight[row * stride + i]).abs());
            i += UNITS;
        }
        let scale = max(max_of_cube(largest) / 127.0, SMALLEST);
        sync_cube();
        let mut errors = 0.0f32;
        let mut squares = 0.0f32;
        let mut word = unit;
        while word < hidden / 4 {
            let mut packed = 0u32;
            #[unroll]
            for byte in 0..4usize {
                let value = f32::cast_from(weight[row * stride + word * 4 + byte]);
                let code = (value / scale).round();
                let difference = value - code * scale;
                errors += difference * difference;
                squares += value * value;
                packed |= (i32::cast_from(code) as u32 & 255u32) << (byte as u32 * 8u32);
            }
            codes[row * (hidden / 4) + word] = packed;
            word += UNITS;
        }
        let norm = sum_of_cube(squares).sqrt() * LENGTHEN;
        sync_cube();
        let error = sum_of_cube(errors).sqrt() * LENGTHEN;
        if unit == 0 {
            factors[row * 4] = scale;
            factors[row * 4 + 1] = error + norm * ROUNDING;
            // A copy is at most so much longer than its row.
            factors[row * 4 + 2] = norm + error;
            factors[row * 4 + 3] = 0.0;
        }
    }
}

/// No scale is smaller, so that it has an inverse.
const SMALLEST: f32 = 1e-30;

/// Normalises each row of `x`, and splits it in integers for the bytes of lm_head: 16 upper parts, then the lower ones. Of
/// each row `ranges` has what the integers are multiplied with, its length, and the length of what they lack.
#[cube(launch_unchecked)]
pub(super) fn split_rows(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    normed: &mut [Vector<f32, Const<4>>],
    ints: &mut [u32],
    ranges: &mut [f32],
    least: &mut [u32],
    hidden: f32,
    eps: f32,
    #[comptime] vectors: usize,
) {
    let row = CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let loads = comptime!(vectors.div_ceil(UNITS));
    let mut values = Array::<Vector<f32, Const<4>>>::new(loads);
    let mut squares = 0.0f32;
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        values[load] = Vector::new(0.0);
        if i < vectors {
            values[load] = x[row * vectors + i];
        }
        squares += sum_of_squares(values[load]);
    }
    let factor = (sum_of_cube(squares) / hidden + eps).inverse_sqrt();
    sync_cube();
    let mut largest = 0.0f32;
    let mut squares = 0.0f32;
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        if i < vectors {
            let value = values[load] * Vector::new(factor) * norm[i];
            normed[row * vectors + i] = value;
            values[load] = value;
            #[unroll]
            for j in 0..4usize {
                largest = max(largest, value.extract(j).abs());
            }
            squares += sum_of_squares(value);
        }
    }
    let length = sum_of_cube(squares).sqrt() * LENGTHEN;
    let scale = max(max_of_cube(largest) / LARGEST, SMALLEST);
    #[unroll]
    for load in 0..loads {
        let i = load * UNITS + unit;
        if i < vectors {
            let mut high = 0u32;
            let mut low = 0u32;
            #[unroll]
            for j in 0..4usize {
                let whole = i32::cast_from((values[load].extract(j) / scale).round());
                let upper = (whole + 64i32) >> 7i32;
                let shift = comptime!(j as u32 * 8);
                high |= (upper as u32 & 255u32) << shift;
                low |= ((whole - upper * 128i32) as u32 & 255u32) << shift;
            }
            let at = (row * vectors + i / 4 * 4) * 2 + i % 4;
            ints[at] = high;
            ints[at + 4] = low;
        }
    }
    if unit == 0 {
        ranges[row * 4] = scale;
        ranges[row * 4 + 1] = length;
        // Each value lacks half of a step at most, and what the division rounds.
        ranges[row * 4 + 2] = 0.51 * scale * hidden.sqrt();
        ranges[row * 4 + 3] = 0.0;
        least[row] = 0u32;
    }
}

#[cube]
fn sum_of_squares(values: Vector<f32, Const<4>>) -> f32 {
    let squares = values * values;
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..4usize {
        sum += squares.extract(i);
    }
    sum
}

/// Bounds each logit from above, and the largest one from below. A plane takes [`ROWS`] rows of lm_head.
#[cube(launch_unchecked)]
pub(super) fn bound_rows(
    codes: &[Vector<i32, Const<4>>],
    factors: &[Vector<f32, Const<4>>],
    ints: &[Vector<i32, Const<4>>],
    ranges: &[Vector<f32, Const<4>>],
    uppers: &mut [f32],
    least: &mut [Atomic<u32>],
    vocab: usize,
    blocks: usize,
    #[comptime] kind: Kind,
) {
    let (m, unroll) = comptime!((kind.m, kind.unroll));
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let first = (CUBE_POS_X as usize * planes + plane) * ROWS;
    let lanes = PLANE_DIM as usize;
    let mut highs = Array::<i32>::new(comptime!(m * ROWS));
    let mut lows = Array::<i32>::new(comptime!(m * ROWS));
    #[unroll]
    for i in 0..comptime!(m * ROWS) {
        highs[i] = 0i32;
        lows[i] = 0i32;
    }
    let mut scales = Array::<Vector<f32, Const<4>>>::new(ROWS);
    #[unroll]
    for row in 0..ROWS {
        scales[row] = factors[min(first + row, vocab - 1)];
    }
    let mut block = UNIT_POS_PLANE as usize;
    while block < blocks {
        let mut loads = Array::<Vector<i32, Const<4>>>::new(comptime!(unroll * ROWS));
        #[unroll]
        for load in 0..unroll {
            let at = within(block + load * lanes, blocks, kind);
            #[unroll]
            for row in 0..ROWS {
                // A row past the last one is bounded for nothing.
                loads[load * ROWS + row] = codes[min(first + row, vocab - 1) * blocks + at];
            }
        }
        #[unroll]
        for load in 0..unroll {
            let at = within(block + load * lanes, blocks, kind);
            #[unroll]
            for r in 0..m {
                let mut high = ints[(r * blocks + at) * 2];
                let mut low = ints[(r * blocks + at) * 2 + 1];
                if comptime!(kind.is_ragged) {
                    let exists = i32::cast_from(block + load * lanes < blocks);
                    high *= Vector::new(exists);
                    low *= Vector::new(exists);
                }
                #[unroll]
                for row in 0..ROWS {
                    let to = comptime!(r * ROWS + row);
                    #[unroll]
                    for word in 0..4usize {
                        let bytes = loads[load * ROWS + row].extract(word);
                        highs[to] = dp4a(bytes, high.extract(word), highs[to]);
                        lows[to] = dp4a(bytes, low.extract(word), lows[to]);
                    }
                }
            }
        }
        block += unroll * lanes;
    }
    let mut keys = Shared::<[u32]>::new_slice(comptime!(m * UNITS / 4));
    #[unroll]
    for r in 0..m {
        let range = ranges[r];
        // The largest that a logit is at least.
        let mut lower = 0u32;
        #[unroll]
        for row in 0..ROWS {
            let i = comptime!(r * ROWS + row);
            let dot = plane_sum(f32::cast_from(highs[i]) * 128.0 + f32::cast_from(lows[i]));
            let id = first + row;
            let factor = scales[row];
            let value = dot * range.extract(0usize) * factor.extract(0usize);
            let error = range.extract(1usize) * factor.extract(1usize)
                + range.extract(2usize) * factor.extract(2usize);
            if UNIT_POS_PLANE == 0 && id < vocab {
                uppers[r * vocab + id] = value + error;
            }
            lower = max(lower, key_of(value - error, 0u32));
        }
        if UNIT_POS_PLANE == 0 {
            keys[r * planes + plane] = lower;
        }
    }
    sync_cube();
    let row = UNIT_POS as usize;
    if row < m {
        let mut largest = 0u32;
        for plane in 0..planes {
            largest = max(largest, keys[row * planes + plane]);
        }
        least[row].fetch_max(largest);
    }
}

/// A load of a row that exists, in place of one past its end.
#[cube]
fn within(block: usize, blocks: usize, #[comptime] kind: Kind) -> usize {
    if comptime!(kind.is_ragged) {
        min(block, blocks - 1)
    } else {
        block
    }
}

/// The largest logit of a part of lm_head, and its row, among those whose bound reaches what the largest one is at least.
#[cube(launch_unchecked)]
pub(super) fn exact_rows<W: Float, N: Size>(
    x: &[Vector<f32, N>],
    weight: &[Vector<W, N>],
    uppers: &[f32],
    least: &[u32],
    values: &mut [f32],
    ids: &mut [i32],
    vocab: usize,
    vectors: usize,
    stride: usize,
    #[define(W)] _dtype: ElemType,
) {
    let (part, row) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let lane = UNIT_POS_PLANE as usize;
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let mut list = Shared::<[u32]>::new_slice(PART);
    let mut counts = Shared::<[u32]>::new_slice(comptime!(UNITS / 4));
    let least = least[row];
    let mut found = Array::<u32>::new(OWN);
    let mut count = 0u32;
    #[unroll]
    for i in 0..OWN {
        let id = part * PART + i * UNITS + UNIT_POS as usize;
        // What is not a number is looked at, too.
        let key = key_of(uppers[row * vocab + min(id, vocab - 1)], NOT_A_NUMBER);
        found[i] = u32::cast_from(id < vocab && key >= least);
        count += found[i];
    }
    let (mut at, num) = places(count, &mut counts);
    #[unroll]
    for i in 0..OWN {
        if found[i] == 1u32 {
            list[at] = (part * PART + i * UNITS) as u32 + UNIT_POS;
            at += 1;
        }
    }
    sync_cube();
    let mut best = 0u32;
    let mut best_id = u32::MAX.runtime();
    let mut i = plane;
    while i < num {
        let id = list[i];
        let mut sums = Vector::<f32, N>::new(0.0);
        let mut at = lane;
        while at < vectors {
            let values = Vector::<f32, N>::cast_from(weight[id as usize * stride + at]);
            sums += values * x[row * vectors + at];
            at += PLANE_DIM as usize;
        }
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..sums.vector_size() {
            sum += sums.extract(j);
        }
        let key = key_of(plane_sum(sum), 0u32);
        // The first of equal ones, whichever plane has it.
        if key > best || (key == best && id < best_id) {
            best = key;
            best_id = id;
        }
        i += planes;
    }
    // The lists are read by now.
    sync_cube();
    if lane == 0 {
        counts[plane] = best;
        list[plane] = best_id;
    }
    sync_cube();
    if UNIT_POS == 0 {
        for other in 0..planes {
            let (key, id) = (counts[other], list[other]);
            if key > best || (key == best && id < best_id) {
                best = key;
                best_id = id;
            }
        }
        let to = row * CUBE_COUNT_X as usize + part;
        values[to] = value_of(best);
        // Some row, where no logit is a number.
        ids[to] = min(best_id, (vocab - 1) as u32) as i32;
    }
}

/// The key of what is not a number, above all others.
const NOT_A_NUMBER: u32 = u32::MAX;
