//! The layers that a launch multiplies, and the part of a tile that a cube computes.

use cubecl::prelude::*;

use super::shape::{Kind, Weights};
use crate::kernels::tile::Tile;

/// The tensors of a layer; those that it lacks are other ones.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Layer<W: Float> {
    /// `[columns, k]`.
    pub(super) w: Box<[Vector<W, Const<8>>]>,
    pub(super) bias: Box<[Vector<f32, Const<2>>]>,
    pub(super) columns: usize,
    /// Tiles of the result.
    pub(super) tiles: usize,
    /// Of all adapters: `[slots * rank, k]`.
    pub(super) a: Box<[Vector<W, Const<8>>]>,
    /// `[columns, slots * rank]`.
    pub(super) b: Box<[Vector<W, Const<8>>]>,
    pub(super) rank: usize,
    pub(super) num_slots: usize,
    /// Tiles of `x · aᵀ`.
    pub(super) shrink_tiles: usize,
    /// Steps of a row of `b`, and where those of `x · aᵀ` start.
    pub(super) b_steps: usize,
    pub(super) h_step: usize,
    /// Where the layer's ranks start in a row of the parts of `x · aᵀ`.
    pub(super) part_rank: usize,
}

/// Up to three layers.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Layers<W: Float> {
    pub(super) layer0: Layer<W>,
    pub(super) layer1: Layer<W>,
    pub(super) layer2: Layer<W>,
    /// Vectors from one row of a weight to the next, and of `a`.
    pub(super) w_stride: usize,
    pub(super) a_stride: usize,
}

/// What adapters need besides.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Adapters<W: Float> {
    /// `x · aᵀ` of all layers, zero where a row has another adapter: `[rows of x, steps]`.
    pub(super) h: Box<[Vector<W, Const<8>>]>,
    pub(super) h_steps: usize,
    /// Where its parts start in the memory for parts, in pairs: `[splits, rows of x, ranks of the layers]`, those of a row's
    /// own adapter.
    pub(super) parts_at: usize,
    pub(super) part_ranks: usize,
    /// The slot of each row, from `at` on, or -1.
    pub(super) slots: Box<[i32]>,
    pub(super) at: usize,
    /// Tiles of `x · aᵀ` along its columns, parts of their inner dimension, and steps of these.
    pub(super) tiles: usize,
    pub(super) splits: usize,
    pub(super) split_steps: usize,
    /// Tiles of the result that read `x · aᵀ`.
    pub(super) readers: usize,
}

/// The part of a tile that a cube computes.
#[derive(CubeType)]
pub(super) struct Place {
    /// Whether it is a tile of `x · aᵀ`.
    pub(super) is_shrink: bool,
    /// Number of the layer.
    pub(super) layer: usize,
    pub(super) row_tile: usize,
    pub(super) first_row: usize,
    pub(super) num_rows: usize,
    pub(super) first_column: usize,
    /// Columns that exist.
    pub(super) num_columns: usize,
    pub(super) split: usize,
    pub(super) splits: usize,
    pub(super) first_step: usize,
    pub(super) end: usize,
    /// Number of the tile among those of its kind.
    pub(super) tile_number: usize,
    /// Ranks of the layer's adapters, vectors of a row of its `b`, and see [`Layer`].
    pub(super) rank: usize,
    pub(super) b_stride: usize,
    pub(super) b_steps: usize,
    pub(super) h_step: usize,
    pub(super) part_rank: usize,
}

/// Columns of the result in a tile.
pub(super) fn result_columns(tile: Tile, weights: Weights) -> usize {
    match weights {
        Weights::Gated => tile.columns / 2,
        _ => tile.columns,
    }
}

#[cube]
impl Place {
    /// The place of this cube. Cubes of adapters come first: those that wait for what they compute are then not alone on the
    /// device.
    pub(super) fn new<W: Float>(
        layers: &Layers<W>,
        adapters: &Adapters<W>,
        num_rows: usize,
        steps: usize,
        base_splits: usize,
        base_split_steps: usize,
        #[comptime] kind: Kind,
    ) -> Place {
        let tile = comptime!(kind.tile);
        let (first, second, third) = (&layers.layer0, &layers.layer1, &layers.layer2);
        let row_tiles = num_rows.div_ceil(comptime!(tile.rows));
        let mut tiles = first.tiles;
        if comptime!(kind.weights == Weights::Three) {
            tiles += second.tiles + third.tiles;
        }
        let mut cube = CUBE_POS_X as usize;
        let mut is_shrink = false;
        let (mut num_tiles, mut splits, mut split_steps) = (tiles, base_splits, base_split_steps);
        // The first tiles of the second and the third layer.
        let mut start1 = first.tiles;
        let mut start2 = first.tiles + second.tiles;
        let mut tile_columns = comptime!(result_columns(tile, kind.weights)).runtime();
        if comptime!(kind.has_adapters) {
            let shrink_cubes = adapters.tiles * row_tiles * adapters.splits;
            if cube < shrink_cubes {
                is_shrink = true;
                num_tiles = adapters.tiles;
                splits = adapters.splits;
                split_steps = adapters.split_steps;
                start1 = first.shrink_tiles;
                start2 = first.shrink_tiles + second.shrink_tiles;
                tile_columns = comptime!(tile.columns).runtime();
            } else {
                cube -= shrink_cubes;
            }
        }
        let mut column_tile = cube % num_tiles;
        let row_tile = cube / num_tiles % row_tiles;
        let split = cube / num_tiles / row_tiles;
        let tile_number = row_tile * num_tiles + column_tile;

        let mut layer = 0usize;
        let (mut columns, mut rank, mut num_slots) = (first.columns, first.rank, first.num_slots);
        let (mut b_steps, mut h_step) = (first.b_steps, first.h_step);
        let mut part_rank = first.part_rank;
        let mut has_layers = comptime!(kind.weights == Weights::Three).runtime();
        if comptime!(kind.weights == Weights::Gated) {
            has_layers = is_shrink;
        }
        if comptime!(kind.weights != Weights::One) {
            if has_layers && column_tile >= start2 {
                column_tile -= start2;
                layer = 2usize;
                columns = third.columns;
                rank = third.rank;
                num_slots = third.num_slots;
                b_steps = third.b_steps;
                h_step = third.h_step;
                part_rank = third.part_rank;
            } else if has_layers && column_tile >= start1 {
                column_tile -= start1;
                layer = 1usize;
                columns = second.columns;
                rank = second.rank;
                num_slots = second.num_slots;
                b_steps = second.b_steps;
                h_step = second.h_step;
                part_rank = second.part_rank;
            }
        }
        if is_shrink {
            columns = num_slots * rank;
        } else if comptime!(kind.weights == Weights::Gated) {
            // Those of both.
            b_steps += second.b_steps;
        }
        Place {
            is_shrink,
            layer,
            row_tile,
            first_row: row_tile * comptime!(tile.rows),
            num_rows,
            first_column: column_tile * tile_columns,
            num_columns: columns,
            split,
            splits,
            first_step: split * split_steps,
            end: min((split + 1) * split_steps, steps),
            tile_number,
            rank,
            b_stride: num_slots * rank / 8,
            b_steps,
            h_step,
            part_rank,
        }
    }
}
