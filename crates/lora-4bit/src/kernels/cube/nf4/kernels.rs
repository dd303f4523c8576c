//! The kernels of products with weights in NF4.

use cubecl::prelude::*;

use super::super::output::Output;
use super::super::planes::{UNITS, sum_of_planes};
use super::memory::Memory;
use super::shape::{Kind, LOADS_PER_BLOCK};
use super::weight::{Weight, decode, fill, turned};
use crate::kernels::plan::CODES;

#[cube(launch_unchecked)]
pub(super) fn products(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    w0: &Weight,
    w1: &Weight,
    w2: &Weight,
    residual: &[f32],
    out0: &mut Output,
    out1: &mut Output,
    out2: &mut Output,
    cubes0: usize,
    cubes1: usize,
    row_loads: usize,
    eps: f32,
    #[comptime] kind: Kind,
) {
    let cube = CUBE_POS_X as usize;
    let mut memory = Memory::new(kind);
    if cube < cubes0 {
        one_product(
            x,
            norm,
            w0,
            residual,
            out0,
            &mut memory,
            cube,
            row_loads,
            eps,
            0usize,
            kind,
        );
    }
    if comptime!(kind.num_weights > 1) {
        if cube >= cubes0 && cube < cubes0 + cubes1 {
            let cube = cube - cubes0;
            one_product(
                x,
                norm,
                w1,
                residual,
                out1,
                &mut memory,
                cube,
                row_loads,
                eps,
                1usize,
                kind,
            );
        }
        if cube >= cubes0 + cubes1 {
            let cube = cube - cubes0 - cubes1;
            one_product(
                x,
                norm,
                w2,
                residual,
                out2,
                &mut memory,
                cube,
                row_loads,
                eps,
                2usize,
                kind,
            );
        }
    }
}

/// The product with the weight of a number, and what is added to it.
#[cube]
fn one_product(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    w: &Weight,
    residual: &[f32],
    out: &mut Output,
    memory: &mut Memory,
    cube: usize,
    row_loads: usize,
    eps: f32,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let (bias, y, rows) = (&out.bias, &mut out.y, out.rows);
    multiply(
        x, norm, w, w, bias, residual, y, memory, cube, rows, row_loads, eps, number, kind,
    );
}

#[cube(launch_unchecked)]
pub(super) fn gated(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    gate: &Weight,
    up: &Weight,
    y: &mut [f32],
    rows: usize,
    row_loads: usize,
    eps: f32,
    #[comptime] kind: Kind,
) {
    let cube = CUBE_POS_X as usize;
    let mut memory = Memory::new(kind);
    // There is neither a bias nor a residual.
    let none = &gate.absmax;
    multiply(
        x,
        norm,
        gate,
        up,
        none,
        none,
        y,
        &mut memory,
        cube,
        rows,
        row_loads,
        eps,
        0usize,
        kind,
    );
}

/// What a unit loads of a weight, or of two, in a round.
#[derive(CubeType)]
struct Batch {
    /// `[unroll, rows]`.
    packed: Array<Vector<u32, Const<2>>>,
    other_packed: Array<Vector<u32, Const<2>>>,
    /// Scales of one block of each row: the unit's plane has all that it needs.
    scales: Array<f32>,
    other_scales: Array<f32>,
}

#[cube]
impl Batch {
    fn new(#[comptime] kind: Kind) -> Self {
        Batch {
            packed: Array::new(comptime!(kind.unroll * kind.rows)),
            other_packed: Array::new(comptime!(kind.unroll * kind.rows)),
            scales: Array::new(kind.rows),
            other_scales: Array::new(kind.rows),
        }
    }

    /// Loads the part of a round of the rows from `first` on.
    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        w: &Weight,
        other: &Weight,
        first: usize,
        num_rows: usize,
        round: usize,
        row_loads: usize,
        #[comptime] kind: Kind,
    ) {
        let (rows, lanes, is_double) = comptime!((kind.rows, kind.lanes, kind.is_double));
        let lane = UNIT_POS as usize % lanes;
        let part = UNIT_POS as usize / lanes % comptime!(kind.planes);
        let start = (round * comptime!(kind.planes) + part) * comptime!(kind.segment());
        #[unroll]
        for load in 0..comptime!(kind.unroll) {
            let mut at = start + load * lanes + lane;
            if comptime!(kind.is_ragged) {
                at = min(at, row_loads - 1);
            }
            #[unroll]
            for row in 0..rows {
                // A row past the last one is computed for nothing.
                let from = min(first + row, num_rows - 1) * row_loads + at;
                self.packed[load * rows + row] = w.packed[from];
                if comptime!(kind.is_pair) {
                    self.other_packed[load * rows + row] = other.packed[from];
                }
            }
        }
        let last = comptime!(kind.segment() / LOADS_PER_BLOCK - 1);
        let block = start / LOADS_PER_BLOCK + min(lane, last);
        let row_blocks = row_loads / LOADS_PER_BLOCK;
        #[unroll]
        for row in 0..rows {
            let from = min(first + row, num_rows - 1) * row_blocks + min(block, row_blocks - 1);
            self.scales[row] = w.scale(from, is_double);
            if comptime!(kind.is_pair) {
                self.other_scales[row] = other.scale(from, is_double);
            }
        }
    }

    /// Adds the products with `x` to `[m, rows]` sums; for a pair of weights `[2, m, rows]`.
    fn multiply(&mut self, memory: &mut Memory, sums: &mut Array<f32>, #[comptime] kind: Kind) {
        let (m, rows, lanes) = comptime!((kind.m, kind.rows, kind.lanes));
        let (num, of_one) = comptime!((kind.num_sums(), kind.m * kind.rows));
        let lane = UNIT_POS as usize % lanes;
        let part = UNIT_POS as usize / lanes % comptime!(kind.planes);
        // Neighbours take their four vectors of `x` in other orders, so that they read from different banks.
        let turn = lane / 2 % 4;
        #[unroll]
        for load in 0..comptime!(kind.unroll) {
            let mut products = Array::<Vector<f32, Const<4>>>::new(num);
            #[unroll]
            for row in 0..rows {
                let at = comptime!(load * kind.rows + row);
                self.packed[at] = turned(self.packed[at], turn);
                if comptime!(kind.is_pair) {
                    self.other_packed[at] = turned(self.other_packed[at], turn);
                }
            }
            #[unroll]
            for j in 0..comptime!(CODES / 4) {
                let at = comptime!(load * kind.lanes * 4)
                    + part * comptime!(kind.segment() * 4)
                    + lane * 4
                    + (j + turn) % 4;
                let mut values = Array::<Vector<f32, Const<4>>>::new(m);
                #[unroll]
                for r in 0..m {
                    values[r] = memory.x[at + comptime!(r * kind.round_vectors())];
                }
                #[unroll]
                for row in 0..rows {
                    let weights = decode(self.packed[load * rows + row], &memory.levels, j);
                    #[unroll]
                    for r in 0..m {
                        let to = comptime!(r * kind.rows + row);
                        add_product(&mut products, to, values[r], weights, j);
                    }
                    if comptime!(kind.is_pair) {
                        let packed = self.other_packed[load * rows + row];
                        let weights = decode(packed, &memory.other_levels, j);
                        #[unroll]
                        for r in 0..m {
                            let to = comptime!((kind.m + r) * kind.rows + row);
                            add_product(&mut products, to, values[r], weights, j);
                        }
                    }
                }
            }
            let owner =
                (lane / LOADS_PER_BLOCK + comptime!(load * kind.lanes / LOADS_PER_BLOCK)) as u32;
            #[unroll]
            for row in 0..rows {
                let scale = plane_shuffle(self.scales[row], owner);
                #[unroll]
                for r in 0..m {
                    sums[r * rows + row] += add_up(products[r * rows + row]) * scale;
                }
                if comptime!(kind.is_pair) {
                    let scale = plane_shuffle(self.other_scales[row], owner);
                    #[unroll]
                    for r in 0..m {
                        let product = add_up(products[of_one + r * rows + row]);
                        sums[of_one + r * rows + row] += product * scale;
                    }
                }
            }
        }
    }
}

/// Multiplies the rows of a cube, with what is done before and after.
///
/// In a round, each plane multiplies some neighbouring loads of its rows. The cube first copies the values of `x` that go with
/// them to shared memory.
#[cube]
fn multiply(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    w: &Weight,
    other: &Weight,
    bias: &[f32],
    residual: &[f32],
    y: &mut [f32],
    memory: &mut Memory,
    cube: usize,
    num_rows: usize,
    row_loads: usize,
    eps: f32,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let (m, num) = comptime!((kind.m, kind.num_sums()));
    let group = UNIT_POS as usize / comptime!(kind.lanes * kind.planes);
    let first = cube * comptime!(kind.rows_per_cube()) + group * comptime!(kind.rows);
    let row_vectors = row_loads * comptime!(CODES / 4);
    let mut sums = Array::<f32>::new(num);
    clear(&mut sums, num);
    // Squares of the rows of `x`.
    let mut squares = Array::<f32>::new(m);
    clear(&mut squares, m);
    let rounds = row_loads.div_ceil(comptime!(kind.segment() * kind.planes));
    for round in 0..rounds {
        let mut batch = Batch::new(kind);
        batch.load(w, other, first, num_rows, round, row_loads, kind);
        // The rest comes while these loads are under way.
        if round == 0 {
            fill(&mut memory.levels, &w.levels);
            if comptime!(kind.is_pair) {
                fill(&mut memory.other_levels, &other.levels);
            }
        } else {
            // Nobody reads the values of the round before.
            sync_cube();
        }
        stage_x(
            x,
            norm,
            &mut memory.x,
            &mut squares,
            round,
            row_vectors,
            kind,
        );
        sync_cube();
        batch.multiply(memory, &mut sums, kind);
    }
    #[unroll]
    for i in 0..num {
        sums[i] = plane_sum(sums[i]);
    }
    sum_of_planes(&mut sums, &mut memory.sums, num, comptime!(kind.planes));
    if comptime!(kind.has_norm) {
        norm_factors(&mut squares, &mut memory.sums, row_loads, eps, kind);
        #[unroll]
        for i in 0..num {
            sums[i] *= squares[comptime!(i / kind.rows % kind.m)];
        }
    }
    if comptime!(kind.is_pair) {
        let up = comptime!(kind.m * kind.rows);
        #[unroll]
        for i in 0..up {
            sums[i] = sums[i] / (1.0 + (-sums[i]).exp()) * sums[up + i];
        }
    }
    write(&sums, bias, residual, y, first, num_rows, number, kind);
}

#[cube]
fn clear(values: &mut Array<f32>, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        values[i] = 0.0f32;
    }
}

/// Makes the norm's factor of each row of what the units have seen of its squares.
#[cube]
fn norm_factors(
    squares: &mut Array<f32>,
    parts: &mut Shared<[f32]>,
    row_loads: usize,
    eps: f32,
    #[comptime] kind: Kind,
) {
    let m = comptime!(kind.m);
    #[unroll]
    for r in 0..m {
        squares[r] = plane_sum(squares[r]);
    }
    // All planes of the cube have copied parts of `x`.
    sum_of_planes(squares, parts, m, comptime!(UNITS as usize / kind.lanes));
    let k = (row_loads * CODES) as f32;
    #[unroll]
    for r in 0..m {
        squares[r] = (squares[r] / k + eps).inverse_sqrt();
    }
}

/// Adds a product of four values to a sum, or begins with it.
#[cube]
fn add_product(
    sums: &mut Array<Vector<f32, Const<4>>>,
    #[comptime] to: usize,
    a: Vector<f32, Const<4>>,
    b: Vector<f32, Const<4>>,
    #[comptime] number: usize,
) {
    if comptime!(number == 0) {
        sums[to] = a * b;
    } else {
        sums[to] += a * b;
    }
}

/// Copies the values of `x` of a round, times the weight of the norm, to shared memory; zeros past the end of a row. Adds
/// what this unit has seen of each row's squares.
#[cube]
fn stage_x(
    x: &[Vector<f32, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    stage: &mut Shared<[Vector<f32, Const<4>>]>,
    squares: &mut Array<f32>,
    round: usize,
    row_vectors: usize,
    #[comptime] kind: Kind,
) {
    let round_vectors = comptime!(kind.round_vectors());
    #[unroll]
    for i in 0..comptime!(kind.round_vectors().div_ceil(UNITS as usize)) {
        let to = UNIT_POS as usize + comptime!(i * UNITS as usize);
        if to < round_vectors {
            let from = round * round_vectors + to;
            let at = min(from, row_vectors - 1);
            let exists = f32::cast_from(from < row_vectors);
            #[unroll]
            for r in 0..comptime!(kind.m) {
                let mut value = x[r * row_vectors + at];
                if comptime!(kind.is_ragged) {
                    value *= Vector::new(exists);
                }
                if comptime!(kind.has_norm) {
                    squares[r] += add_up(value * value);
                    value *= norm[at];
                }
                stage[to + comptime!(r * kind.round_vectors())] = value;
            }
        }
    }
}

/// Sum of the values of a vector.
#[cube]
fn add_up(vector: Vector<f32, Const<4>>) -> f32 {
    vector.extract(0usize)
        + vector.extract(1usize)
        + vector.extract(2usize)
        + vector.extract(3usize)
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
    let place = UNIT_POS as usize % comptime!(kind.lanes * kind.planes);
    if place == 0 {
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
