//! The kernels of weights in NF4.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::sum_of_planes;
use super::{CODES, Kind, LANES, LANES_BITS, UNITS};
use crate::nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE};

#[cube(launch_unchecked)]
pub(super) fn products(
    x: &[Vector<f32, Const<4>>],
    packed0: &[Vector<u32, Const<2>>],
    levels0: &[f32],
    codes0: &[u32],
    map0: &[f32],
    absmax0: &[f32],
    packed1: &[Vector<u32, Const<2>>],
    levels1: &[f32],
    codes1: &[u32],
    map1: &[f32],
    absmax1: &[f32],
    packed2: &[Vector<u32, Const<2>>],
    levels2: &[f32],
    codes2: &[u32],
    map2: &[f32],
    absmax2: &[f32],
    bias0: &[f32],
    bias1: &[f32],
    bias2: &[f32],
    residual: &[f32],
    y0: &mut [f32],
    y1: &mut [f32],
    y2: &mut [f32],
    rows0: usize,
    rows1: usize,
    rows2: usize,
    cubes0: usize,
    cubes1: usize,
    row_loads: usize,
    offset0: f32,
    offset1: f32,
    offset2: f32,
    #[comptime] kind: Kind,
) {
    let cube = CUBE_POS_X as usize;
    let mut sums = Array::<f32>::new(comptime!(kind.m * kind.rows));
    if cube < cubes0 {
        let row = row_of(cube, kind);
        dots(
            x, packed0, levels0, codes0, map0, absmax0, offset0, packed0, levels0, codes0, map0,
            absmax0, offset0, &mut sums, row, rows0, row_loads, kind,
        );
        write(&sums, bias0, residual, y0, row, rows0, 0usize, kind);
    }
    if comptime!(kind.num_weights > 1) {
        if cube >= cubes0 && cube < cubes0 + cubes1 {
            let row = row_of(cube - cubes0, kind);
            dots(
                x, packed1, levels1, codes1, map1, absmax1, offset1, packed1, levels1, codes1,
                map1, absmax1, offset1, &mut sums, row, rows1, row_loads, kind,
            );
            write(&sums, bias1, residual, y1, row, rows1, 1usize, kind);
        }
        if cube >= cubes0 + cubes1 {
            let row = row_of(cube - cubes0 - cubes1, kind);
            dots(
                x, packed2, levels2, codes2, map2, absmax2, offset2, packed2, levels2, codes2,
                map2, absmax2, offset2, &mut sums, row, rows2, row_loads, kind,
            );
            write(&sums, bias2, residual, y2, row, rows2, 2usize, kind);
        }
    }
}

#[cube(launch_unchecked)]
pub(super) fn gated(
    x: &[Vector<f32, Const<4>>],
    packed0: &[Vector<u32, Const<2>>],
    levels0: &[f32],
    codes0: &[u32],
    map0: &[f32],
    absmax0: &[f32],
    packed1: &[Vector<u32, Const<2>>],
    levels1: &[f32],
    codes1: &[u32],
    map1: &[f32],
    absmax1: &[f32],
    y: &mut [f32],
    rows: usize,
    row_loads: usize,
    offset0: f32,
    offset1: f32,
    #[comptime] kind: Kind,
) {
    let row = row_of(CUBE_POS_X as usize, kind);
    let mut sums = Array::<f32>::new(comptime!(2 * kind.m * kind.rows));
    dots(
        x, packed0, levels0, codes0, map0, absmax0, offset0, packed1, levels1, codes1, map1,
        absmax1, offset1, &mut sums, row, rows, row_loads, kind,
    );
    let up = comptime!(kind.m * kind.rows);
    #[unroll]
    for i in 0..up {
        sums[i] = sums[i] / (1.0 + (-sums[i]).exp()) * sums[up + i];
    }
    write(&sums, absmax0, absmax0, y, row, rows, 0usize, kind);
}

#[cube(launch_unchecked)]
pub(super) fn dequantize<W: Float>(
    packed: &[Vector<u32, Const<2>>],
    levels: &[f32],
    codes: &[u32],
    map: &[f32],
    absmax: &[f32],
    w: &mut [Vector<W, Const<4>>],
    loads: usize,
    offset: f32,
    #[comptime] is_double: bool,
    #[define(W)] _dtype: ElemType,
) {
    let mut table = Shared::<[f32]>::new_slice(comptime!(16 * LANES));
    fill(&mut table, levels);
    sync_cube();
    if ABSOLUTE_POS < loads {
        let scale = scale_of(
            ABSOLUTE_POS / comptime!(BLOCK_SIZE / CODES),
            codes,
            map,
            absmax,
            offset,
            is_double,
        );
        let values = decode(packed[ABSOLUTE_POS], &table);
        #[unroll]
        for i in 0..comptime!(CODES / 4) {
            w[ABSOLUTE_POS * comptime!(CODES / 4) + i] =
                Vector::cast_from(values[i] * Vector::new(scale));
        }
    }
}

/// The first row of the weight that a plane of a cube computes.
#[cube]
fn row_of(cube: usize, #[comptime] kind: Kind) -> usize {
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let group = cube * (planes / comptime!(kind.planes)) + plane / comptime!(kind.planes);
    group * comptime!(kind.rows)
}

/// Writes the level of each code, once for each unit of a plane.
#[cube]
fn fill(table: &mut Shared<[f32]>, levels: &[f32]) {
    let mut i = UNIT_POS as usize;
    while i < comptime!(16 * LANES) {
        table[i] = levels[i / LANES];
        i += UNITS as usize;
    }
}

/// The levels of 16 codes. In a byte, the first code is in the high bits.
#[cube]
fn decode(packed: Vector<u32, Const<2>>, table: &Shared<[f32]>) -> Array<Vector<f32, Const<4>>> {
    let lane = UNIT_POS_PLANE % comptime!(LANES as u32);
    let mut values = Array::<Vector<f32, Const<4>>>::new(comptime!(CODES / 4));
    #[unroll]
    for i in 0..comptime!(CODES / 4) {
        let word = packed.extract(comptime!(i / 2));
        let mut four = Vector::<f32, Const<4>>::new(0.0);
        #[unroll]
        for j in 0..4usize {
            let shift = comptime!((8 * (i % 2 * 2 + j / 2) + 4 * (1 - j % 2)) as u32);
            // `code * LANES + lane`: the code is moved to where it is multiplied already.
            let code = if comptime!(shift >= LANES_BITS) {
                word >> comptime!(shift - LANES_BITS)
            } else {
                word << comptime!(LANES_BITS - shift)
            };
            four.insert(
                j,
                table[((code & comptime!(15u32 << LANES_BITS)) | lane) as usize],
            );
        }
        values[i] = four;
    }
    values
}

/// The scale of a block.
#[cube]
fn scale_of(
    block: usize,
    codes: &[u32],
    map: &[f32],
    absmax: &[f32],
    offset: f32,
    #[comptime] is_double: bool,
) -> f32 {
    if comptime!(is_double) {
        let code = (codes[block / 4] >> ((block % 4) as u32 * 8u32)) & 255u32;
        map[code as usize] * absmax[block / NESTED_BLOCK_SIZE] + offset
    } else {
        absmax[block]
    }
}

/// `x · wᵀ` for the plane's rows of the weight, in all its units: `[m, rows]`; for a pair of weights `[2, m, rows]`.
#[cube]
fn dots(
    x: &[Vector<f32, Const<4>>],
    packed: &[Vector<u32, Const<2>>],
    levels: &[f32],
    codes: &[u32],
    map: &[f32],
    absmax: &[f32],
    offset: f32,
    other_packed: &[Vector<u32, Const<2>>],
    other_levels: &[f32],
    other_codes: &[u32],
    other_map: &[f32],
    other_absmax: &[f32],
    other_offset: f32,
    results: &mut Array<f32>,
    first: usize,
    num_rows: usize,
    row_loads: usize,
    #[comptime] kind: Kind,
) {
    let mut table = Shared::<[f32]>::new_slice(comptime!(16 * LANES));
    let mut other_table = Shared::<[f32]>::new_slice(comptime!(16 * LANES));
    // The planes of a row take turns.
    let lanes = PLANE_DIM as usize * comptime!(kind.planes);
    let part = (UNIT_POS / PLANE_DIM) as usize % comptime!(kind.planes);
    let m = comptime!(kind.m);
    let rows = comptime!(kind.rows);
    let unroll = comptime!(kind.unroll);
    let of_one = comptime!(kind.m * kind.rows);
    let num = comptime!(kind.num_sums());
    let mut sums = Array::<f32>::new(num);
    #[unroll]
    for i in 0..num {
        sums[i] = 0.0f32;
    }
    let mut is_first = true;
    let mut i = part * PLANE_DIM as usize + UNIT_POS_PLANE as usize;
    // All units take part in every round, since they wait for each other in the first.
    let rounds = row_loads.div_ceil(unroll * lanes);
    for _ in 0..rounds {
        let mut loaded = Array::<Vector<u32, Const<2>>>::new(comptime!(kind.unroll * kind.rows));
        let mut scales = Array::<f32>::new(comptime!(kind.unroll * kind.rows));
        let mut other_loaded =
            Array::<Vector<u32, Const<2>>>::new(comptime!(kind.unroll * kind.rows));
        let mut other_scales = Array::<f32>::new(comptime!(kind.unroll * kind.rows));
        #[unroll]
        for load in 0..unroll {
            #[unroll]
            for row in 0..rows {
                // A row past the last one is computed for nothing.
                let start = min(first + row, num_rows - 1) * row_loads;
                let at = start + min(i + load * lanes, row_loads - 1);
                let block = at / comptime!(BLOCK_SIZE / CODES);
                let to = comptime!(load * kind.rows + row);
                loaded[to] = packed[at];
                let is_double = comptime!(kind.is_double);
                scales[to] = scale_of(block, codes, map, absmax, offset, is_double);
                if comptime!(kind.is_pair) {
                    other_loaded[to] = other_packed[at];
                    other_scales[to] = scale_of(
                        block,
                        other_codes,
                        other_map,
                        other_absmax,
                        other_offset,
                        is_double,
                    );
                }
            }
        }
        // The levels come while the first loads are under way.
        if is_first {
            fill(&mut table, levels);
            if comptime!(kind.is_pair) {
                fill(&mut other_table, other_levels);
            }
            sync_cube();
            is_first = false;
        }
        #[unroll]
        for load in 0..unroll {
            let at = min(i + load * lanes, row_loads - 1);
            let mut exists = 1.0f32;
            if comptime!(kind.is_ragged) {
                exists = f32::cast_from(i + load * lanes < row_loads);
            }
            let mut values = Array::<Vector<f32, Const<4>>>::new(comptime!(kind.m * CODES / 4));
            #[unroll]
            for r in 0..m {
                #[unroll]
                for j in 0..comptime!(CODES / 4) {
                    let from = (r * row_loads + at) * comptime!(CODES / 4) + j;
                    values[comptime!(r * (CODES / 4) + j)] = x[from];
                }
            }
            #[unroll]
            for row in 0..rows {
                let from = comptime!(load * kind.rows + row);
                let weights = decode(loaded[from], &table);
                let scale = scales[from] * exists;
                #[unroll]
                for r in 0..m {
                    sums[r * rows + row] += dot(&values, &weights, r) * scale;
                }
                if comptime!(kind.is_pair) {
                    let weights = decode(other_loaded[from], &other_table);
                    let scale = other_scales[from] * exists;
                    #[unroll]
                    for r in 0..m {
                        sums[of_one + r * rows + row] += dot(&values, &weights, r) * scale;
                    }
                }
            }
        }
        i += unroll * lanes;
    }
    #[unroll]
    for i in 0..num {
        results[i] = plane_sum(sums[i]);
    }
    let (num, planes) = comptime!((kind.num_sums(), kind.planes));
    sum_of_planes(results, num, planes);
}

/// The product of 16 values of a row of `x` with as many of the weight.
#[cube]
fn dot(
    values: &Array<Vector<f32, Const<4>>>,
    weights: &Array<Vector<f32, Const<4>>>,
    #[comptime] row: usize,
) -> f32 {
    let mut sums = Vector::<f32, Const<4>>::new(0.0);
    #[unroll]
    for j in 0..comptime!(CODES / 4) {
        sums += values[comptime!(row * (CODES / 4) + j)] * weights[j];
    }
    sums.extract(0usize) + sums.extract(1usize) + sums.extract(2usize) + sums.extract(3usize)
}

/// Writes the plane's rows of the result, with what is added to them.
#[cube]
fn write(
    sums: &Array<f32>,
    bias: &[f32],
    residual: &[f32],
    y: &mut [f32],
    first: usize,
    num_rows: usize,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let part = (UNIT_POS / PLANE_DIM) as usize % comptime!(kind.planes);
    if UNIT_POS_PLANE == 0 && part == 0 {
        #[unroll]
        for row in 0..comptime!(kind.rows) {
            let to = first + row;
            if to < num_rows {
                #[unroll]
                for r in 0..comptime!(kind.m) {
                    let mut sum = sums[comptime!(r * kind.rows + row)];
                    if comptime!(kind.has_bias[number]) {
                        sum += bias[to];
                    }
                    if comptime!(kind.has_residual) {
                        sum += residual[r * num_rows + to];
                    }
                    y[r * num_rows + to] = sum;
                }
            }
        }
    }
}
