//! The gradient of queries: a cube for 128 rows of query heads, which goes through the keys that they see. One warpgroup copies
//! steps of 64 keys and values to shared memory, two have 64 rows each.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::blocks::{end_group, wait_for_groups};
use super::super::scores::{LOG2_E, LOWEST};
use super::forward::tile::TILE_LEN;
use super::rows::{
    Barriers, COPYING_REGISTERS, CUBE_ROWS, Document, MULTIPLYING_REGISTERS, Rows, STEP_ROWS,
    Saved, StepLoad, VECTOR, announce, load,
};
use super::wgmma::{self, Panels, Product, WARPGROUP};
use crate::kernels::training::heads::HeadShape;

/// Steps in shared memory.
const STAGES: usize = 4;

/// Bytes of shared memory of a cube.
pub(super) const fn memory_bytes(head_dim: usize) -> usize {
    (2 * CUBE_ROWS + 2 * STAGES * STEP_ROWS) * head_dim * 2 + 8 * 2 * STAGES
}

impl HeadShape {
    /// Scores of rows, and the gradients of weights: of a row with the keys, or the values, of a step.
    const fn row_products(&self, sums: &'static str) -> Product {
        Product {
            sums,
            columns: STEP_ROWS,
            inner: self.head_dim,
            is_first: true,
            right: STEP,
        }
    }

    /// The gradient of queries.
    const fn query_products(&self) -> Product {
        Product {
            sums: "output",
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

const STEP: Panels = Panels {
    rows: STEP_ROWS,
    is_outer: false,
};

/// Also leaves `delta` `[tokens, heads]`, the sums of `out * d_out`, for the gradients of keys and values.
#[cube(launch_unchecked)]
pub(super) fn query_gradients<E: Float>(
    saved: &Saved<E>,
    out: &[Vector<E, Const<8>>],
    tiles: &[u32],
    delta: &mut [f32],
    d_qkv: &mut [Vector<E, Const<2>>],
    tiles_at: usize,
    scale: f32,
    #[comptime] shape: HeadShape,
    #[define(E)] _dtype: ElemType,
) {
    // Of both warpgroups the queries, then of both the gradients; of each stage the keys, then of each the values.
    let mut memory = Shared::<[Vector<E, Const<8>>]>::new_aligned_slice(
        comptime!((4 + 2 * STAGES) * shape.step_len()),
        1024usize,
    );
    let mut barriers =
        Shared::<[Vector<u32, Const<2>>]>::new_aligned_slice(comptime!(2 * STAGES), 16usize);
    let from = wgmma::address(&mut memory);
    let barriers = Barriers::new(&mut barriers, STAGES);
    wgmma::declare_sums("score", comptime!(STEP_ROWS / 2));
    wgmma::declare_sums("d_weight", comptime!(STEP_ROWS / 2));
    wgmma::declare_sums("output", comptime!(shape.head_dim / 2));
    wgmma::declare_operands("d_score", comptime!(STEP_ROWS / 4));

    let at = tiles_at + CUBE_POS_Y as usize * comptime!(TILE_LEN);
    let document = Document {
        first: tiles[at] as usize,
        len: tiles[at + 1] as usize,
        kv_head: CUBE_POS_X as usize,
    };
    let first_row = tiles[at + 2] as usize;
    let last_row = min(first_row + CUBE_ROWS, document.num_rows(shape)) - 1;
    let num_keys = last_row / comptime!(shape.group()) + 1;
    let num_steps = num_keys.div_ceil(STEP_ROWS);
    if UNIT_POS < comptime!(2 * WARPGROUP as u32) {
        wgmma::take_registers(MULTIPLYING_REGISTERS);
        let warpgroup = UNIT_POS as usize / WARPGROUP;
        let first_row = first_row + warpgroup * STEP_ROWS;
        let own = StepLoad {
            start: first_row,
            to: warpgroup * comptime!(shape.step_len()),
            distance: comptime!(2 * shape.step_len()).runtime(),
        };
        load(saved, &mut memory, &document, &own, Rows::Queries, shape);
        end_group();
        let deltas = deltas(saved, out, delta, &document, first_row, shape);
        wait_for_groups(0usize);
        wgmma::publish();
        wgmma::sync_warpgroup();
        gradients(
            saved, d_qkv, &document, first_row, num_steps, &deltas, from, &barriers, scale, shape,
        );
    } else {
        wgmma::give_registers(COPYING_REGISTERS);
        let mut before = 0u32;
        for i in 0..num_steps {
            barriers.wait_for_place(i, STAGES);
            let step = StepLoad {
                start: i * STEP_ROWS,
                to: (4 + i % STAGES) * comptime!(shape.step_len()),
                distance: comptime!(STAGES * shape.step_len()).runtime(),
            };
            load(saved, &mut memory, &document, &step, Rows::Keys, shape);
            end_group();
            announce(before, 1usize);
            before = barriers.full(i, STAGES);
        }
        announce(before, 0usize);
    }
}

/// Of a unit's two rows the sums of `out * d_out`, which are also written.
#[cube]
fn deltas<E: Float>(
    saved: &Saved<E>,
    out: &[Vector<E, Const<8>>],
    delta: &mut [f32],
    document: &Document,
    first_row: usize,
    #[comptime] shape: HeadShape,
) -> Array<f32> {
    let lane = (UNIT_POS % 32) as usize;
    let mut deltas = Array::<f32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let row = first_row + UNIT_POS as usize % WARPGROUP / 32 * 16 + lane / 4 + half * 8;
        let place = document.place_of(row, shape);
        let from = place * comptime!(shape.head_dim / VECTOR) + lane % 4;
        let mut total = Vector::<f32, Const<8>>::new(0.0);
        #[unroll]
        for i in 0..comptime!(shape.head_dim / VECTOR / 4) {
            let (output, gradient) = (out[from + i * 4], saved.d_out[from + i * 4]);
            total += Vector::cast_from(output) * Vector::cast_from(gradient);
        }
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..8usize {
            sum += total.extract(i);
        }
        sum += plane_shuffle_xor(sum, 1u32);
        sum += plane_shuffle_xor(sum, 2u32);
        if lane % 4 == 0 && row < document.num_rows(shape) {
            delta[place] = sum;
        }
        deltas[half] = sum;
    }
    deltas
}

#[cube]
fn gradients<E: Float>(
    saved: &Saved<E>,
    d_qkv: &mut [Vector<E, Const<2>>],
    document: &Document,
    first_row: usize,
    num_steps: usize,
    deltas: &Array<f32>,
    memory: u32,
    barriers: &Barriers,
    scale: f32,
    #[comptime] shape: HeadShape,
) {
    let warpgroup = UNIT_POS / comptime!(WARPGROUP as u32);
    let queries = memory + warpgroup * comptime!(shape.step_bytes());
    let d_out = queries + comptime!(2 * shape.step_bytes());
    let all_keys = memory + comptime!(4 * shape.step_bytes());
    let lane = (UNIT_POS % 32) as usize;
    let row = first_row + UNIT_POS as usize % WARPGROUP / 32 * 16 + lane / 4;
    let column = lane % 4 * 2;
    let factor = scale * LOG2_E;
    // Of both rows: the logarithm to base 2 of the sum of exponentials, and the keys that they see.
    let mut offsets = Array::<f32>::new(2usize);
    let mut visible = Array::<u32>::new(2usize);
    #[unroll]
    for half in 0..2usize {
        let row = row + half * 8;
        offsets[half] = saved.lse[document.place_of(row, shape)] * LOG2_E;
        visible[half] = (row / comptime!(shape.group()) + 1) as u32;
    }
    // Keys that all rows of the warpgroup see.
    let seen = first_row / comptime!(shape.group()) + 1;

    for i in 0..num_steps {
        let stage = (i % STAGES) as u32;
        barriers.wait_for_step(i, STAGES);
        let keys = all_keys + stage * comptime!(shape.step_bytes());
        let values = keys + comptime!(STAGES as u32 * shape.step_bytes());
        wgmma::multiply(queries, keys, comptime!(shape.row_products("score")), STEP);
        wgmma::multiply(
            d_out,
            values,
            comptime!(shape.row_products("d_weight")),
            STEP,
        );
        // The products of the step before are done.
        wgmma::wait(2usize);
        barriers.free_before(i, STAGES);
        wgmma::wait(0usize);
        if (i + 1) * STEP_ROWS > seen {
            #[unroll]
            for j in 0..comptime!(STEP_ROWS / 2) {
                let key = (i * STEP_ROWS + column + comptime!(j / 4 * 8 + j % 2)) as u32;
                let visible = visible[comptime!(j / 2 % 2)];
                wgmma::hide_sum("score", j, key, visible, comptime!(LOWEST.to_bits()));
            }
        }
        #[unroll]
        for j in 0..comptime!(STEP_ROWS / 4) {
            #[unroll]
            for k in 0..2usize {
                let at = comptime!(2 * j + k);
                let _weight = wgmma::weigh_sum("score", at, factor, -offsets[j % 2]);
                wgmma::differentiate("score", "d_weight", at, -deltas[j % 2]);
            }
            wgmma::round_sums("d_weight", "d_score", j);
        }
        wgmma::multiply_registers("d_score", keys, comptime!(shape.query_products()));
    }
    wgmma::wait(0usize);

    #[unroll]
    for half in 0..2usize {
        let row = row + half * 8;
        if row < document.num_rows(shape) {
            let to = document.query_at(row, shape) * 4 + column / 2;
            #[unroll]
            for block in 0..comptime!(shape.head_dim / 8) {
                let at = comptime!(block * 4 + half * 2);
                let mut pair = Vector::<f32, Const<2>>::new(0.0);
                pair.insert(0usize, wgmma::sum("output", at) * scale);
                pair.insert(1usize, wgmma::sum("output", comptime!(at + 1)) * scale);
                d_qkv[to + block * 4] = Vector::cast_from(pair);
            }
        }
    }
}
