//! The gradients of keys and values: a cube for 128 keys, which goes through the rows of query heads that see them. One
//! warpgroup copies steps of 64 rows to shared memory, two have 64 keys each. Scores are transposed: a row for a key.

use cubecl::frontend::barrier::copy_async;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::blocks::{end_group, wait_for_groups};
use super::super::scores::{LOG2_E, LOWEST};
use super::forward::tile::TILE_LEN;
use super::rows::{
    Barriers, COPYING_REGISTERS, CUBE_ROWS, Document, MULTIPLYING_REGISTERS, Rows, STEP_ROWS,
    Saved, StepLoad, announce, load,
};
use super::wgmma::{self, Panels, Product, WARPGROUP};
use crate::kernels::training::heads::HeadShape;

/// Steps in shared memory.
const STAGES: usize = 3;

/// Bytes of shared memory of a cube.
pub(super) const fn memory_bytes(head_dim: usize) -> usize {
    (2 * CUBE_ROWS + 2 * STAGES * STEP_ROWS) * head_dim * 2
        + STAGES * 2 * STEP_ROWS * 4
        + 16 * STAGES
}

const STEP: Panels = Panels {
    rows: STEP_ROWS,
    is_outer: false,
};

impl HeadShape {
    /// Scores of keys, and the gradients of weights: of a key with the rows of a step.
    const fn key_products(&self, sums: &'static str) -> Product {
        Product {
            sums,
            columns: STEP_ROWS,
            inner: self.head_dim,
            is_first: true,
            right: STEP,
        }
    }

    /// The gradients of keys, and of values.
    const fn gradient_products(&self, sums: &'static str) -> Product {
        Product {
            sums,
            columns: self.head_dim,
            inner: STEP_ROWS,
            is_first: false,
            right: Panels {
                rows: STEP_ROWS,
                is_outer: true,
            },
        }
    }
}

/// Where gradients go, in pairs of elements.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Target {
    /// From one token to the next.
    row: usize,
    /// Where the keys' first head starts in a row; the values follow the keys.
    first: usize,
    /// From one part of the rows to the next.
    part: usize,
    /// Parts of the rows.
    parts: usize,
}

#[cube(launch_unchecked)]
pub(super) fn key_gradients<E: Float, O: Float>(
    saved: &Saved<E>,
    delta: &[f32],
    tiles: &[u32],
    d_keys: &mut [Vector<O, Const<2>>],
    tiles_at: usize,
    target: &Target,
    scale: f32,
    #[comptime] shape: HeadShape,
    #[define(E, O)] _dtypes: [ElemType; 2],
) {
    // Of both warpgroups the keys, then of both the values; of each stage the queries, then of each the gradients.
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!((4 + 2 * STAGES) * shape.step_len()),
        1024usize,
    );
    // Of each stage the log-sum-exp of the rows, then their delta.
    let mut stats = Shared::<[f32]>::new_slice(comptime!(STAGES * 2 * STEP_ROWS));
    let mut barriers =
        Shared::<[Vector<u32, Const<2>>]>::new_aligned_slice(comptime!(2 * STAGES), 16usize);
    let from = wgmma::address(&mut memory);
    let barriers = Barriers::new(&mut barriers, STAGES);
    wgmma::declare_sums("score", comptime!(STEP_ROWS / 2));
    wgmma::declare_sums("d_weight", comptime!(STEP_ROWS / 2));
    wgmma::declare_sums("d_key", comptime!(shape.head_dim / 2));
    wgmma::declare_sums("d_value", comptime!(shape.head_dim / 2));
    wgmma::declare_operands("weight", comptime!(STEP_ROWS / 4));
    wgmma::declare_operands("d_score", comptime!(STEP_ROWS / 4));

    let at = tiles_at + CUBE_POS_Y as usize * comptime!(TILE_LEN);
    let document = Document {
        first: tiles[at] as usize,
        len: tiles[at + 1] as usize,
        kv_head: CUBE_POS_X as usize % comptime!(shape.kv_heads),
    };
    let part = CUBE_POS_X as usize / comptime!(shape.kv_heads);
    let first_key = tiles[at + 2] as usize;
    // Earlier rows see no key of the cube.
    let first_row = first_key * comptime!(shape.group());
    let num_steps = (document.num_rows(shape) - first_row).div_ceil(STEP_ROWS);
    if UNIT_POS < comptime!(2 * WARPGROUP as u32) {
        wgmma::take_registers(MULTIPLYING_REGISTERS);
        let warpgroup = UNIT_POS as usize / WARPGROUP;
        let first_key = first_key + warpgroup * STEP_ROWS;
        let own = StepLoad {
            start: first_key,
            to: warpgroup * comptime!(shape.step_len()),
            distance: comptime!(2 * shape.step_len()).runtime(),
        };
        load(saved, &mut memory, &document, &own, Rows::Keys, shape);
        end_group();
        wait_for_groups(0usize);
        wgmma::publish();
        wgmma::sync_warpgroup();
        gradients(
            d_keys, &stats, &document, first_key, first_row, num_steps, part, from, &barriers,
            target, scale, shape,
        );
    } else {
        wgmma::give_registers(COPYING_REGISTERS);
        let mut before = 0u32;
        let mut step = part;
        let mut i = 0usize;
        while step < num_steps {
            barriers.wait_for_place(i, STAGES);
            let start = first_row + step * STEP_ROWS;
            let rows = StepLoad {
                start,
                to: (4 + i % STAGES) * comptime!(shape.step_len()),
                distance: comptime!(STAGES * shape.step_len()).runtime(),
            };
            load(saved, &mut memory, &document, &rows, Rows::Queries, shape);
            // Half of the units for each of the two statistics.
            let unit = UNIT_POS as usize % WARPGROUP;
            let place = document.place_of(start + unit % STEP_ROWS, shape);
            let to = i % STAGES * comptime!(2 * STEP_ROWS) + unit;
            if unit < STEP_ROWS {
                copy_async(&saved.lse[place..place + 1], &mut stats[to..to + 1], 1u32);
            } else {
                copy_async(&delta[place..place + 1], &mut stats[to..to + 1], 1u32);
            }
            end_group();
            announce(before, 1usize);
            before = barriers.full(i, STAGES);
            step += target.parts;
            i += 1;
        }
        announce(before, 0usize);
    }
}

#[cube]
fn gradients<O: Float>(
    d_keys: &mut [Vector<O, Const<2>>],
    stats: &[f32],
    document: &Document,
    first_key: usize,
    first_row: usize,
    num_steps: usize,
    part: usize,
    memory: u32,
    barriers: &Barriers,
    target: &Target,
    scale: f32,
    #[comptime] shape: HeadShape,
) {
    let warpgroup = UNIT_POS / comptime!(WARPGROUP as u32);
    let keys = memory + warpgroup * comptime!(shape.step_bytes());
    let values = keys + comptime!(2 * shape.step_bytes());
    let all_queries = memory + comptime!(4 * shape.step_bytes());
    let lane = (UNIT_POS % 32) as usize;
    let key = first_key + UNIT_POS as usize % WARPGROUP / 32 * 16 + lane / 4;
    let column = lane % 4 * 2;
    let factor = scale * LOG2_E;
    let num_rows = document.num_rows(shape);
    // The first row that sees every key of the warpgroup.
    let seen_from = (first_key + STEP_ROWS) * comptime!(shape.group());

    let mut step = part;
    let mut i = 0usize;
    while step < num_steps {
        // The products of the step before are done: with those of two steps on their way, registers would not suffice.
        wgmma::wait(0usize);
        barriers.free_before(i, STAGES);
        let stage = (i % STAGES) as u32;
        barriers.wait_for_step(i, STAGES);
        let queries = all_queries + stage * comptime!(shape.step_bytes());
        let d_out = queries + comptime!(STAGES as u32 * shape.step_bytes());
        wgmma::multiply(keys, queries, comptime!(shape.key_products("score")), STEP);
        wgmma::multiply(
            values,
            d_out,
            comptime!(shape.key_products("d_weight")),
            STEP,
        );
        wgmma::wait(0usize);
        let start = first_row + step * STEP_ROWS;
        if start < seen_from || start + STEP_ROWS > num_rows {
            #[unroll]
            for j in 0..comptime!(STEP_ROWS / 2) {
                let row = start + column + comptime!(j / 4 * 8 + j % 2);
                // Rows before see the key not yet, and there are none past the last.
                let from = (key + comptime!(j / 2 % 2 * 8)) * comptime!(shape.group());
                let from = select(row < num_rows, from as u32, 0x7fff_ffffu32);
                let seen = row as u32 + 1;
                wgmma::hide_sum("score", j, from, seen, comptime!(LOWEST.to_bits()));
            }
        }
        let stats_at = stage as usize * comptime!(2 * STEP_ROWS) + column;
        #[unroll]
        for block in 0..comptime!(STEP_ROWS / 8) {
            #[unroll]
            for k in 0..2usize {
                let at = stats_at + comptime!(block * 8 + k);
                let offset = -(stats[at] * LOG2_E);
                let delta = -stats[at + STEP_ROWS];
                #[unroll]
                for half in 0..2usize {
                    let index = comptime!(block * 4 + half * 2 + k);
                    let _weight = wgmma::weigh_sum("score", index, factor, offset);
                    wgmma::differentiate("score", "d_weight", index, delta);
                }
            }
            #[unroll]
            for half in 0..2usize {
                wgmma::round_sums("score", "weight", comptime!(block * 2 + half));
                wgmma::round_sums("d_weight", "d_score", comptime!(block * 2 + half));
            }
        }
        wgmma::multiply_registers(
            "weight",
            d_out,
            comptime!(shape.gradient_products("d_value")),
        );
        wgmma::multiply_registers(
            "d_score",
            queries,
            comptime!(shape.gradient_products("d_key")),
        );
        step += target.parts;
        i += 1;
    }
    wgmma::wait(0usize);

    #[unroll]
    for half in 0..2usize {
        let position = key + half * 8;
        if position < document.len {
            let row = part * target.part + (document.first + position) * target.row;
            let head = document.kv_head * comptime!(shape.head_dim / 2);
            let to = row + target.first + head + column / 2;
            let to_values = to + comptime!(shape.kv_heads * shape.head_dim / 2);
            #[unroll]
            for block in 0..comptime!(shape.head_dim / 8) {
                let at = comptime!(block * 4 + half * 2);
                let mut pair = Vector::<f32, Const<2>>::new(0.0);
                pair.insert(0usize, wgmma::sum("d_key", at) * scale);
                pair.insert(1usize, wgmma::sum("d_key", comptime!(at + 1)) * scale);
                d_keys[to + block * 4] = Vector::cast_from(pair);
                pair.insert(0usize, wgmma::sum("d_value", at));
                pair.insert(1usize, wgmma::sum("d_value", comptime!(at + 1)));
                d_keys[to_values + block * 4] = Vector::cast_from(pair);
            }
        }
    }
}
