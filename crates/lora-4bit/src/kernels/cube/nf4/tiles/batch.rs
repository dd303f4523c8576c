//! The codes and scales of a round.

use cubecl::cmma::MmaDefinition;
use cubecl::prelude::*;

use super::super::weight::Weight;
use super::memory::Memory;
use super::pairs::decode;
use super::shape::{CHUNKS, Kind, PLANE, ROUND_SCALES};
use crate::nf4::NESTED_BLOCK_SIZE;

/// What a unit loads in a round: its 16 codes of each block, of two rows of each tile.
#[derive(CubeType)]
pub(super) struct Batch {
    /// `[unroll, tiles, 2]`.
    packed: Array<Vector<u32, Const<2>>>,
    /// The scales of some blocks, `[tiles, 2, scales]`: the four units of a row have those of all. If they are
    /// double-quantized, what they are multiplied with.
    absmax: Array<f32>,
    /// Four codes of scales each.
    codes: Array<u32>,
}

#[cube]
impl Batch {
    pub(super) fn new(#[comptime] kind: Kind) -> Self {
        Batch {
            packed: Array::new(comptime!(kind.unroll * kind.tiles * 2)),
            absmax: Array::new(comptime!(kind.tiles * 2 * kind.scales())),
            codes: Array::new(comptime!(kind.tiles * 2 * kind.scales())),
        }
    }

    /// Loads the plane's part of a round.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn load(
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
        let start = start_step(round, kind);
        #[unroll]
        for i in 0..comptime!(kind.unroll) {
            let mut step = start + i;
            if comptime!(kind.is_ragged) {
                step = min(step, row_steps - 1);
            }
            #[unroll]
            for row in 0..comptime!(kind.tiles * 2) {
                let from = (row_of(first, num_rows, row, kind) * row_steps + step) * 4 + lane % 4;
                let to = i * comptime!(kind.tiles * 2) + row;
                if comptime!(kind.is_pair && row % 2 == 1) {
                    self.packed[to] = other.packed[from];
                } else {
                    self.packed[to] = w.packed[from];
                }
            }
        }
        #[unroll]
        for row in 0..comptime!(kind.tiles * 2) {
            #[unroll]
            for i in 0..comptime!(kind.scales()) {
                let step = scale_step(start, i, row_steps, kind);
                let block = row_of(first, num_rows, row, kind) * row_steps + step;
                let to = comptime!(row * kind.scales() + i);
                if comptime!(kind.is_pair && row % 2 == 1) {
                    self.load_scale(other, block, to, kind);
                } else {
                    self.load_scale(w, block, to, kind);
                }
            }
        }
    }

    /// Loads what the scale of a block is made of.
    fn load_scale(
        &mut self,
        w: &Weight,
        block: usize,
        #[comptime] to: usize,
        #[comptime] kind: Kind,
    ) {
        if comptime!(kind.is_double) {
            self.codes[to] = w.codes[block / 4];
            self.absmax[to] = w.absmax[block / NESTED_BLOCK_SIZE];
        } else {
            self.absmax[to] = w.absmax[block];
        }
    }

    /// Computes scales from what has been loaded of them.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn finish_scales<W: Float>(
        &mut self,
        memory: &mut Memory<W>,
        w: &Weight,
        other: &Weight,
        first: usize,
        num_rows: usize,
        round: usize,
        row_steps: usize,
        #[comptime] kind: Kind,
    ) {
        if comptime!(kind.is_double) {
            let start = start_step(round, kind);
            #[unroll]
            for row in 0..comptime!(kind.tiles * 2) {
                #[unroll]
                for i in 0..comptime!(kind.scales()) {
                    let step = scale_step(start, i, row_steps, kind);
                    let block = row_of(first, num_rows, row, kind) * row_steps + step;
                    let at = comptime!(row * kind.scales() + i);
                    let code = (self.codes[at] >> ((block % 4) as u32 * 8u32)) & 255u32;
                    if comptime!(kind.is_pair && row % 2 == 1) {
                        let level = memory.other_map[code as usize];
                        self.absmax[at] = level * self.absmax[at] + other.offset;
                    } else {
                        self.absmax[at] = memory.map[code as usize] * self.absmax[at] + w.offset;
                    }
                }
            }
        }
    }

    /// Takes the values of another one.
    pub(super) fn take(&mut self, other: &Batch, #[comptime] kind: Kind) {
        #[unroll]
        for i in 0..comptime!(kind.unroll * kind.tiles * 2) {
            self.packed[i] = other.packed[i];
        }
        #[unroll]
        for i in 0..comptime!(kind.tiles * 2 * kind.scales()) {
            self.absmax[i] = other.absmax[i];
            if comptime!(kind.is_double) {
                self.codes[i] = other.codes[i];
            }
        }
    }

    /// Adds the products with `x` to the unit's sums.
    pub(super) fn multiply<W: Float>(
        &self,
        memory: &mut Memory<W>,
        sums: &mut Array<f32>,
        round: usize,
        #[comptime] kind: Kind,
    ) {
        let instruction = MmaDefinition::<W, W, f32>::new(16usize, 8usize, 16usize);
        let lane = UNIT_POS as usize % PLANE;
        let (x_tiles, tiles) = comptime!((kind.x_tiles(), kind.tiles));
        let mut start = start_step(0usize, kind);
        if comptime!(kind.is_resident) {
            start = start_step(round, kind);
        }
        #[unroll]
        for i in 0..comptime!(kind.unroll) {
            let mut products = Sequence::<Array<Vector<f32, Const<2>>>>::new();
            #[unroll]
            for _ in 0..comptime!(kind.tiles * kind.x_tiles()) {
                let mut product = Array::<Vector<f32, Const<2>>>::new(2usize);
                product[0] = Vector::new(0.0);
                product[1] = Vector::new(0.0);
                products.push(product);
            }
            #[unroll]
            for half in 0..2usize {
                // Two instructions' values of each tile.
                let mut left = Sequence::<Array<Vector<W, Const<2>>>>::new();
                #[unroll]
                for tile in 0..tiles {
                    #[unroll]
                    for word in 0..2usize {
                        let at = comptime!((i * kind.tiles + tile) * 2);
                        left.push(decode::<W>(&self.packed, memory, at, half, word, kind));
                    }
                }
                #[unroll]
                for x_tile in 0..x_tiles {
                    let row = min(x_tile * 8 + lane / 4, comptime!(kind.x_rows - 1));
                    let at = row * comptime!(kind.stage_stride())
                        + (start + i) * CHUNKS
                        + lane % 4 * 2
                        + half;
                    // The unit's values that go with eight of its codes: the four units of a row have a column each.
                    let right = memory.x[at];
                    #[unroll]
                    for word in 0..2usize {
                        let mut columns = Array::<Vector<W, Const<2>>>::new(2usize);
                        columns[0] = Vector::reinterpret(right.extract(word * 2));
                        columns[1] = Vector::reinterpret(right.extract(word * 2 + 1));
                        #[unroll]
                        for tile in 0..tiles {
                            let product = &mut products[tile * x_tiles + x_tile];
                            instruction.execute_inplace(&left[tile * 2 + word], &columns, product);
                        }
                    }
                }
            }
            let owner = (lane / 4 * 4 + i % ROUND_SCALES) as u32;
            #[unroll]
            for row in 0..comptime!(kind.tiles * 2) {
                let scale = comptime!(row * kind.scales() + i / ROUND_SCALES);
                let scale = plane_shuffle(self.absmax[scale], owner);
                add_scaled(sums, &products, scale, row, kind);
            }
        }
    }
}

/// The row of the weight, of those of a unit with a number, or the last one.
#[cube]
fn row_of(first: usize, num_rows: usize, #[comptime] row: usize, #[comptime] kind: Kind) -> usize {
    let lane = UNIT_POS as usize % PLANE;
    let within = comptime!(row / 2 * kind.tile_rows() + if kind.is_pair { 0 } else { row % 2 * 8 });
    // A row past the last one is computed for nothing.
    min(first + within + lane / 4, num_rows - 1)
}

/// The first block of the plane's part of a round.
#[cube]
fn start_step(round: usize, #[comptime] kind: Kind) -> usize {
    let part = UNIT_POS as usize / PLANE % comptime!(kind.planes);
    (round * comptime!(kind.planes) + part) * comptime!(kind.unroll)
}

/// A block of a round that the unit computes the scale of.
#[cube]
fn scale_step(
    start: usize,
    #[comptime] i: usize,
    row_steps: usize,
    #[comptime] kind: Kind,
) -> usize {
    let within = comptime!(i * ROUND_SCALES) + UNIT_POS as usize % ROUND_SCALES;
    min(
        start + min(within, comptime!(kind.unroll - 1)),
        row_steps - 1,
    )
}

/// Adds the products of a block, of one of the unit's rows, to its sums.
#[cube]
fn add_scaled(
    sums: &mut Array<f32>,
    products: &Sequence<Array<Vector<f32, Const<2>>>>,
    scale: f32,
    #[comptime] row: usize,
    #[comptime] kind: Kind,
) {
    let (tile, half) = comptime!((row / 2, row % 2));
    #[unroll]
    for x_tile in 0..comptime!(kind.x_tiles()) {
        let product = &products[comptime!(tile * kind.x_tiles() + x_tile)];
        #[unroll]
        for column in 0..2usize {
            let to = comptime!(((tile * kind.x_tiles() + x_tile) * 2 + half) * 2 + column);
            sums[to] += product[half].extract(column) * scale;
        }
    }
}
