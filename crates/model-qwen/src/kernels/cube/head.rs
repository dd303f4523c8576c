//! The most likely token of a few rows without reading all of the head, as [`lora_4bit::row_bounds`] does it on a CPU.
//!
//! A copy of the head in 8 bits gives each logit up to an error that is known. Only the rows of the head that can have the
//! largest logit are then multiplied as they are: by Cauchy and Schwarz the difference between a row and its copy, times `x`,
//! is at most the product of both lengths.

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::choose::{argmax_rows, key_of, places, value_of};
use super::{UNITS, empty_of, sum_of_cube};

/// Rows of `x`, at most: with more, reading all of the head costs less.
pub(in super::super) const MAX_ROWS: usize = 4;
/// Codes of a load.
const CODES: usize = 16;
/// Values of a row in the registers of a cube.
const MAX_HIDDEN: usize = 8192;
/// Rows of the head that a plane multiplies at once.
const ROWS: usize = 4;
/// Loads of each of them that are in flight together, at most.
const MAX_UNROLL: usize = 3;
/// Rows of the head that a cube looks through for those that are multiplied as they are.
const PART: usize = 1024;
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
struct Kind {
    /// Rows of `x`.
    m: usize,
    /// Loads of each row at once.
    unroll: usize,
    /// Whether the last ones may lie past its end.
    is_ragged: bool,
}

/// Whether a head of this shape and type can be copied.
pub(super) fn supports([vocab, hidden]: [usize; 2], dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
        && hidden.is_multiple_of(CODES)
        && (1..=MAX_HIDDEN).contains(&hidden)
        && vocab > 0
}

/// The same matrix with each row in one piece.
fn in_rows(weight: CubeTensor) -> CubeTensor {
    match weight.meta.is_tiled() || weight.meta.strides()[1] != 1 {
        true => into_contiguous(weight),
        false => weight,
    }
}

/// A copy of `weight [vocab, hidden]` in signed bytes, four in a word, and for each row four numbers: what its bytes are
/// multiplied with, the length of the difference to its copy with what rounding may add, its own length, and zero.
pub(super) fn copy(weight: CubeTensor) -> (CubeTensor, CubeTensor) {
    let weight = in_rows(weight);
    let [vocab, hidden] = weight.meta.shape().dims();
    let codes = empty_of(&weight, [vocab * hidden / 4], DType::I32);
    let factors = empty_of(&weight, [vocab * 4], DType::F32);
    let (stride, dtype) = (weight.meta.strides()[0], dtype_to_elem_type(weight.dtype));
    let columns = vocab.div_ceil(65_535);
    // SAFETY: a cube for each row, which has `hidden` values; further cubes end at once.
    unsafe {
        copy_rows::launch_unchecked(
            &weight.client.clone(),
            CubeCount::Static(vocab.div_ceil(columns) as u32, columns as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            weight.into_buffer_arg(),
            codes.clone().into_buffer_arg(),
            factors.clone().into_buffer_arg(),
            vocab,
            hidden,
            stride,
            dtype,
        );
    }
    (codes, factors)
}

/// The token with the largest logit of `norm(x) · weightᵀ` for each row of `x [rows, hidden]`, also written to `chosen`.
pub(super) fn argmax(
    x: CubeTensor,
    (norm, eps): (CubeTensor, f32),
    weight: CubeTensor,
    (codes, factors): (CubeTensor, CubeTensor),
    chosen: CubeTensor,
) -> CubeTensor {
    let (x, norm, weight) = (into_contiguous(x), into_contiguous(norm), in_rows(weight));
    let ([rows, hidden], vocab) = (x.meta.shape().dims(), weight.meta.shape()[0]);
    let stride = weight.meta.strides()[0];
    assert!((1..=MAX_ROWS).contains(&rows), "{rows} rows");
    let (client, dtype) = (x.client.clone(), dtype_to_elem_type(weight.dtype));
    let hardware = &client.properties().hardware;
    let lanes = hardware.plane_size_max as usize;
    let blocks = hidden / CODES;
    let loads = blocks.div_ceil(lanes);
    // As few rounds as the registers allow, all alike.
    let unroll = loads.div_ceil(loads.div_ceil(MAX_UNROLL));
    let kind = Kind {
        m: rows,
        unroll,
        is_ragged: !blocks.is_multiple_of(lanes * unroll),
    };
    let vector = client
        .io_optimized_vector_sizes(weight.dtype.size())
        .filter(|size| hidden.is_multiple_of(*size) && stride.is_multiple_of(*size))
        .max()
        .unwrap_or(1);
    let parts = vocab.div_ceil(PART);
    let normed = empty_of(&x, [rows, hidden], DType::F32);
    let ints = empty_of(&x, [rows * hidden / 2], DType::I32);
    let ranges = empty_of(&x, [rows * 4], DType::F32);
    let least = empty_of(&x, [rows], DType::U32);
    let uppers = empty_of(&x, [rows * vocab], DType::F32);
    let values = empty_of(&x, [rows * parts], DType::F32);
    let ids = empty_of(&x, [rows * parts], DType::I32);
    let best = empty_of(&x, [rows], DType::I32);
    let cubes = vocab.div_ceil(UNITS / lanes * ROWS);
    // SAFETY: rows and loads past the last ones are clamped to them, and a list holds as many rows as a part.
    unsafe {
        split_rows::launch_unchecked(
            &client,
            CubeCount::Static(rows as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            x.into_buffer_arg(),
            norm.into_buffer_arg(),
            normed.clone().into_buffer_arg(),
            ints.clone().into_buffer_arg(),
            ranges.clone().into_buffer_arg(),
            least.clone().into_buffer_arg(),
            hidden as f32,
            eps,
            hidden / 4,
        );
        bound_rows::launch_unchecked(
            &client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            codes.into_buffer_arg(),
            factors.into_buffer_arg(),
            ints.into_buffer_arg(),
            ranges.into_buffer_arg(),
            uppers.clone().into_buffer_arg(),
            least.clone().into_buffer_arg(),
            vocab,
            blocks,
            kind,
        );
        exact_rows::launch_unchecked(
            &client,
            CubeCount::Static(parts as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            vector,
            normed.into_buffer_arg(),
            weight.into_buffer_arg(),
            uppers.into_buffer_arg(),
            least.into_buffer_arg(),
            values.clone().into_buffer_arg(),
            ids.clone().into_buffer_arg(),
            vocab,
            hidden / vector,
            stride / vector,
            dtype,
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

/// Rounds each row to bytes.
#[cube(launch_unchecked)]
fn copy_rows<W: Float>(
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
            factors[row * 4 + 2] = norm;
            factors[row * 4 + 3] = 0.0;
        }
    }
}

/// No scale is smaller, so that it has an inverse.
const SMALLEST: f32 = 1e-30;

/// The largest value of all units of a cube, for each of them.
#[cube]
fn max_of_cube(value: f32) -> f32 {
    // A plane has at least four units.
    let mut values = Shared::<[f32]>::new_slice(comptime!(UNITS / 4));
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let value = plane_max(value);
    if UNIT_POS_PLANE == 0 {
        values[(UNIT_POS / PLANE_DIM) as usize] = value;
    }
    sync_cube();
    let mut largest = values[0];
    for plane in 1..planes {
        largest = max(largest, values[plane]);
    }
    largest
}

/// Normalises each row of `x`, and splits it in integers for the bytes of the head: 16 upper parts, then the lower ones. Of
/// each row `ranges` has what the integers are multiplied with, its length, and the length of what they lack.
#[cube(launch_unchecked)]
fn split_rows(
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
        // Each value lacks half of a step at most.
        ranges[row * 4 + 2] = 0.5 * scale * hidden.sqrt() * LENGTHEN;
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

/// Bounds each logit from above, and the largest one from below. A plane takes [`ROWS`] rows of the head.
#[cube(launch_unchecked)]
fn bound_rows(
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

/// The largest logit of a part of the head, and its row, among those whose bound reaches what the largest one is at least.
#[cube(launch_unchecked)]
fn exact_rows<W: Float, N: Size>(
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
