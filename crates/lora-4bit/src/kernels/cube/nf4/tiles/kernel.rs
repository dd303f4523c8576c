//! The kernel of products with weights in NF4 on tensor cores.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::super::output::Output;
use super::super::weight::Weight;
use super::pairs::{decode, fill};
use super::{CHUNKS, COPIES, Kind, PLANE, TILE};
use crate::nf4::BLOCK_SIZE;

/// Pairs of values in a block.
const PAIRS: usize = BLOCK_SIZE / 2;

#[cube(launch_unchecked)]
pub(super) fn products<W: Float, X: Float>(
    x: &[Vector<X, Const<2>>],
    w0: &Weight,
    w1: &Weight,
    w2: &Weight,
    residual: &[f32],
    out0: &mut Output,
    out1: &mut Output,
    out2: &mut Output,
    tiles0: usize,
    tiles1: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] kind: Kind,
    #[define(W, X)] _dtypes: [ElemType; 2],
) {
    let tile = CUBE_POS_X as usize;
    let mut memory = Memory::<W>::new(kind);
    if tile < tiles0 {
        one_product::<W, X>(
            x,
            w0,
            residual,
            out0,
            &mut memory,
            tile,
            num_x,
            row_steps,
            0usize,
            kind,
        );
    }
    if comptime!(kind.num_weights > 1) {
        if tile >= tiles0 && tile < tiles0 + tiles1 {
            let tile = tile - tiles0;
            one_product::<W, X>(
                x,
                w1,
                residual,
                out1,
                &mut memory,
                tile,
                num_x,
                row_steps,
                1usize,
                kind,
            );
        }
        if tile >= tiles0 + tiles1 {
            let tile = tile - tiles0 - tiles1;
            one_product::<W, X>(
                x,
                w2,
                residual,
                out2,
                &mut memory,
                tile,
                num_x,
                row_steps,
                2usize,
                kind,
            );
        }
    }
}

/// The product with the weight of a number, and what is added to it.
#[cube]
fn one_product<W: Float, X: Float>(
    x: &[Vector<X, Const<2>>],
    w: &Weight,
    residual: &[f32],
    out: &mut Output,
    memory: &mut Memory<W>,
    tile: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let (bias, y, rows) = (&out.bias, &mut out.y, out.rows);
    multiply::<W, X, f32>(
        x, w, w, bias, residual, y, memory, tile, rows, num_x, row_steps, number, kind,
    );
}

#[cube(launch_unchecked)]
pub(super) fn gated<W: Float, X: Float>(
    x: &[Vector<X, Const<2>>],
    gate: &Weight,
    up: &Weight,
    y: &mut [W],
    rows: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] kind: Kind,
    #[define(W, X)] _dtypes: [ElemType; 2],
) {
    let tile = CUBE_POS_X as usize;
    let mut memory = Memory::<W>::new(kind);
    // There is neither a bias nor a residual.
    let none = &gate.absmax;
    multiply::<W, X, W>(
        x,
        gate,
        up,
        none,
        none,
        y,
        &mut memory,
        tile,
        rows,
        num_x,
        row_steps,
        0usize,
        kind,
    );
}

/// What the units of a cube share.
#[derive(CubeType)]
struct Memory<W: Float> {
    /// The values of the two codes of each byte, some times.
    pairs: Shared<[Vector<W, Const<2>>]>,
    other_pairs: Shared<[Vector<W, Const<2>>]>,
    /// Rows of `x`.
    x: Shared<[Vector<W, Const<8>>]>,
    /// Sums of each plane.
    sums: Shared<[f32]>,
}

#[cube]
impl<W: Float> Memory<W> {
    fn new(#[comptime] kind: Kind) -> Self {
        let len = 256 * COPIES;
        Memory::<W> {
            pairs: Shared::new_slice(len),
            other_pairs: Shared::new_slice(comptime!(if kind.is_pair { len } else { 1 })),
            x: Shared::new_aligned_slice(comptime!(kind.x_rows * kind.stage_stride()), 128usize),
            sums: Shared::new_slice(comptime!(kind.units() * kind.sums() * kind.weights())),
        }
    }
}

/// What a unit loads of a weight, or of two, in a round: its 16 codes of each block, of two rows.
#[derive(CubeType)]
struct Batch {
    /// `[unroll, 2]`.
    packed: Array<Vector<u32, Const<2>>>,
    other_packed: Array<Vector<u32, Const<2>>>,
    /// The scales of one block: the four units of a row have those of all.
    scales: Array<f32>,
    other_scales: Array<f32>,
}

#[cube]
impl Batch {
    fn new(#[comptime] kind: Kind) -> Self {
        Batch {
            packed: Array::new(comptime!(kind.unroll * 2)),
            other_packed: Array::new(comptime!(kind.unroll * 2)),
            scales: Array::new(2usize),
            other_scales: Array::new(2usize),
        }
    }

    /// Loads the plane's part of a round.
    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        w: &Weight,
        other: &Weight,
        first: usize,
        num_rows: usize,
        round: usize,
        row_steps: usize,
        #[comptime] kind: Kind,
    ) {
        let lane = UNIT_POS as usize % PLANE;
        let part = UNIT_POS as usize / PLANE;
        let start = (round * comptime!(kind.planes) + part) * comptime!(kind.unroll);
        #[unroll]
        for half in 0..2usize {
            // A row past the last one is computed for nothing.
            let row = min(first + lane / 4 + half * 8, num_rows - 1) * row_steps;
            #[unroll]
            for i in 0..comptime!(kind.unroll) {
                let mut step = start + i;
                if comptime!(kind.is_ragged) {
                    step = min(step, row_steps - 1);
                }
                let from = (row + step) * 4 + lane % 4;
                self.packed[i * 2 + half] = w.packed[from];
                if comptime!(kind.is_pair) {
                    self.other_packed[i * 2 + half] = other.packed[from];
                }
            }
            let step = min(
                start + min(lane % 4, comptime!(kind.unroll - 1)),
                row_steps - 1,
            );
            self.scales[half] = w.scale(row + step, comptime!(kind.is_double));
            if comptime!(kind.is_pair) {
                self.other_scales[half] = other.scale(row + step, comptime!(kind.is_double));
            }
        }
    }

    /// Takes the values of another one.
    fn take(&mut self, other: &Batch, #[comptime] kind: Kind) {
        #[unroll]
        for i in 0..comptime!(kind.unroll * 2) {
            self.packed[i] = other.packed[i];
            if comptime!(kind.is_pair) {
                self.other_packed[i] = other.other_packed[i];
            }
        }
        #[unroll]
        for half in 0..2usize {
            self.scales[half] = other.scales[half];
            if comptime!(kind.is_pair) {
                self.other_scales[half] = other.other_scales[half];
            }
        }
    }

    /// Adds the products with `x` to the unit's sums.
    fn multiply<W: Float>(
        &self,
        memory: &mut Memory<W>,
        sums: &mut Array<f32>,
        round: usize,
        #[comptime] kind: Kind,
    ) {
        let instruction = MmaDefinition::<W, W, f32>::new(16usize, 8usize, 16usize);
        let lane = UNIT_POS as usize % PLANE;
        let part = UNIT_POS as usize / PLANE;
        let (x_tiles, weights) = comptime!((kind.x_tiles(), kind.weights()));
        let mut start = part * comptime!(kind.unroll);
        if comptime!(kind.is_resident) {
            start += round * comptime!(kind.planes * kind.unroll);
        }
        #[unroll]
        for i in 0..comptime!(kind.unroll) {
            let mut products = Sequence::<Array<Vector<f32, Const<2>>>>::new();
            #[unroll]
            for _ in 0..comptime!(kind.weights() * kind.x_tiles()) {
                let mut product = Array::<Vector<f32, Const<2>>>::new(2usize);
                product[0] = Vector::new(0.0);
                product[1] = Vector::new(0.0);
                products.push(product);
            }
            #[unroll]
            for half in 0..2usize {
                // Two instructions' values of each weight.
                let mut left = Sequence::<Array<Vector<W, Const<2>>>>::new();
                #[unroll]
                for word in 0..2usize {
                    left.push(decode::<W>(&self.packed, &memory.pairs, i, half, word));
                }
                if comptime!(kind.is_pair) {
                    #[unroll]
                    for word in 0..2usize {
                        let packed = &self.other_packed;
                        left.push(decode::<W>(packed, &memory.other_pairs, i, half, word));
                    }
                }
                #[unroll]
                for tile in 0..x_tiles {
                    let row = min(tile * 8 + lane % 8, comptime!(kind.x_rows - 1));
                    let at = row * comptime!(kind.stage_stride())
                        + (start + i) * CHUNKS
                        + half * 4
                        + lane / 8;
                    let right = instruction.load_matrix::<Vector<W, Const<8>>, Const<2>>(
                        &memory.x[at..at + 1],
                        MatrixIdent::B,
                        4usize,
                        false,
                    );
                    #[unroll]
                    for word in 0..2usize {
                        let mut columns = Array::<Vector<W, Const<2>>>::new(2usize);
                        columns[0] = right[word * 2];
                        columns[1] = right[word * 2 + 1];
                        #[unroll]
                        for w in 0..weights {
                            let product = &mut products[w * x_tiles + tile];
                            instruction.execute_inplace(&left[w * 2 + word], &columns, product);
                        }
                    }
                }
            }
            let owner = (lane / 4 * 4 + i) as u32;
            #[unroll]
            for half in 0..2usize {
                let scale = plane_shuffle(self.scales[half], owner);
                add_scaled(sums, &products, scale, 0usize, half, kind);
                if comptime!(kind.is_pair) {
                    let scale = plane_shuffle(self.other_scales[half], owner);
                    add_scaled(sums, &products, scale, 1usize, half, kind);
                }
            }
        }
    }
}

/// Adds the products of a block, of one of the unit's two rows, to its sums.
#[cube]
fn add_scaled(
    sums: &mut Array<f32>,
    products: &Sequence<Array<Vector<f32, Const<2>>>>,
    scale: f32,
    #[comptime] weight: usize,
    #[comptime] half: usize,
    #[comptime] kind: Kind,
) {
    #[unroll]
    for tile in 0..comptime!(kind.x_tiles()) {
        let product = &products[comptime!(weight * kind.x_tiles() + tile)];
        #[unroll]
        for column in 0..2usize {
            let to = comptime!(weight * kind.sums() + tile * 4 + half * 2 + column);
            sums[to] += product[half].extract(column) * scale;
        }
    }
}

/// Copies blocks of `x` from `start` on to shared memory; zeros past the end of a row.
///
/// Of four neighbouring values of `x` that a unit has codes of, the first two go to one load of eight values, the others to
/// the next: a load has two values of each of the four units.
#[cube]
fn stage_x<W: Float, X: Float>(
    x: &[Vector<X, Const<2>>],
    stage: &mut Shared<[Vector<W, Const<8>>]>,
    start: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] kind: Kind,
) {
    let row_chunks = comptime!(kind.stage_steps * CHUNKS);
    let mut i = UNIT_POS as usize;
    while i < comptime!(kind.stage_steps * CHUNKS * kind.x_rows) {
        let (row, chunk) = (i / row_chunks, i % row_chunks);
        let step = start + chunk / CHUNKS;
        let pair = min(step, row_steps - 1) * PAIRS + chunk % CHUNKS;
        let from = min(row, num_x - 1) * row_steps * PAIRS + pair;
        let mut values = Vector::<f32, Const<8>>::new(0.0);
        #[unroll]
        for unit in 0..4usize {
            let two = Vector::<f32, Const<2>>::cast_from(x[from + unit * 8]);
            values.insert(unit * 2, two.extract(0usize));
            values.insert(unit * 2 + 1, two.extract(1usize));
        }
        if comptime!(kind.is_ragged) {
            values *= Vector::new(f32::cast_from(step < row_steps));
        }
        stage[row * comptime!(kind.stage_stride()) + chunk] = Vector::cast_from(values);
        i += comptime!(kind.units());
    }
}

/// Multiplies a tile of 16 rows of the weight, with what is done before and after.
///
/// The planes share the blocks of each row. A plane's part of the next round is loaded while it multiplies one.
#[cube]
fn multiply<W: Float, X: Float, Y: Float>(
    x: &[Vector<X, Const<2>>],
    w: &Weight,
    other: &Weight,
    bias: &[f32],
    residual: &[f32],
    y: &mut [Y],
    memory: &mut Memory<W>,
    tile: usize,
    num_rows: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] number: usize,
    #[comptime] kind: Kind,
) {
    let lane = UNIT_POS as usize % PLANE;
    let part = UNIT_POS as usize / PLANE;
    let planes = comptime!(kind.planes);
    let num = comptime!(kind.sums() * kind.weights());
    let first = tile * TILE;
    let round_steps = comptime!(kind.planes * kind.unroll);
    let rounds = row_steps.div_ceil(round_steps);
    let mut batch = Batch::new(kind);
    let mut next = Batch::new(kind);
    next.load(w, other, first, num_rows, 0usize, row_steps, kind);
    // The rest comes while these loads are under way.
    fill::<W>(&mut memory.pairs, &w.levels, comptime!(kind.units()));
    if comptime!(kind.is_pair) {
        fill::<W>(
            &mut memory.other_pairs,
            &other.levels,
            comptime!(kind.units()),
        );
    }
    if comptime!(kind.is_resident) {
        stage_x::<W, X>(x, &mut memory.x, 0usize, num_x, row_steps, kind);
        sync_cube();
    }
    let mut sums = Array::<f32>::new(num);
    #[unroll]
    for i in 0..num {
        sums[i] = 0.0f32;
    }
    if comptime!(kind.is_single) {
        if comptime!(!kind.is_resident) {
            stage_x::<W, X>(x, &mut memory.x, 0usize, num_x, row_steps, kind);
            sync_cube();
        }
        next.multiply::<W>(memory, &mut sums, 0usize, kind);
    } else {
        for round in 0..rounds {
            batch.take(&next, kind);
            if round + 1 < rounds {
                next.load(w, other, first, num_rows, round + 1, row_steps, kind);
            }
            if comptime!(!kind.is_resident) {
                // Nobody reads the values of the round before.
                sync_cube();
                let start = round * round_steps;
                stage_x::<W, X>(x, &mut memory.x, start, num_x, row_steps, kind);
                sync_cube();
            }
            batch.multiply::<W>(memory, &mut sums, round, kind);
        }
    }
    #[unroll]
    for i in 0..num {
        memory.sums[(part * num + i) * PLANE + lane] = sums[i];
    }
    sync_cube();
    // Each plane adds up some of the sums.
    #[unroll]
    for i in 0..comptime!(kind.sums().div_ceil(kind.planes)) {
        let value = part + i * planes;
        let row = first + lane / 4 + value / 2 % 2 * 8;
        let column = value / 4 * 8 + lane % 4 * 2 + value % 2;
        if value < comptime!(kind.sums()) && row < num_rows && column < num_x {
            let mut sum = 0.0f32;
            let mut up = 0.0f32;
            #[unroll]
            for plane in 0..planes {
                sum += memory.sums[(plane * num + value) * PLANE + lane];
                if comptime!(kind.is_pair) {
                    let value = value + comptime!(kind.sums());
                    up += memory.sums[(plane * num + value) * PLANE + lane];
                }
            }
            if comptime!(kind.is_pair) {
                sum = sum / (1.0 + (-sum).exp()) * up;
            }
            if comptime!(kind.has_bias[number]) {
                sum += bias[row];
            }
            let at = column * num_rows + row;
            if comptime!(kind.has_residual) {
                sum += residual[at];
            }
            y[at] = Y::cast_from(sum);
        }
    }
}
