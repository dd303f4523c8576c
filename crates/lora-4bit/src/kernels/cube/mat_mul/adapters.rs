//! The adapters' part of a product: `x · aᵀ` in tiles of its own, which become further steps of the others.

use cubecl::prelude::*;

use super::layers::{Adapters, Layers, Place};
use super::parts::{arrive, fence};
use super::shape::{Kind, READ, READY, SHRINK_ARRIVED};
use super::stage::{RightOperand, end_group, load_right, load_x};
use crate::kernels::tile::{CHUNKS, INNER, PLANE, VECTOR};

/// Parts of `x · aᵀ` that are loaded together.
const BATCH: usize = 8;

/// The slots of the tile's rows. They are there when the first step is.
#[cube]
pub(super) fn load_slots<W: Float>(
    adapters: &Adapters<W>,
    place: &Place,
    #[comptime] kind: Kind,
) -> Shared<[i32]> {
    let rows = comptime!(if kind.has_adapters {
        kind.tile.rows
    } else {
        1usize
    });
    let mut slots = Shared::<[i32]>::new_slice(rows);
    if comptime!(kind.has_adapters) {
        // Nobody else reads them.
        if place.is_shrink {
            let mut row = UNIT_POS as usize;
            while row < rows {
                slots[row] =
                    adapters.slots[adapters.at + min(place.first_row + row, place.num_rows - 1)];
                row += comptime!(kind.tile.units());
            }
        }
    }
    slots
}

/// Publishes this part of a tile of `x · aᵀ`. The cube that does so last writes the tile and says that it is there.
#[cube]
pub(super) fn finish_shrink<W: Float>(
    sums: &Sequence<Array<Vector<f32, Const<2>>>>,
    slots: &[i32],
    parts: &mut [Vector<f32, Const<2>>],
    h: &mut [Vector<W, Const<8>>],
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    place: &Place,
    #[comptime] kind: Kind,
) {
    write_part(sums, slots, parts, adapters, place, kind);
    let mut is_last = true;
    if place.splits > 1 {
        is_last = arrive(counters, place.tile_number + SHRINK_ARRIVED, place.splits);
    } else {
        sync_cube();
    }
    if is_last {
        write_zeros(slots, h, adapters, place, kind);
        write_h(slots, parts, h, adapters, place, kind);
        sync_cube();
        if UNIT_POS == 0 {
            fence();
            counters[place.row_tile + READY].fetch_add(1u32);
        }
    }
}

/// Writes what a part has for the adapters of the rows.
#[cube]
fn write_part<W: Float>(
    sums: &Sequence<Array<Vector<f32, Const<2>>>>,
    slots: &[i32],
    parts: &mut [Vector<f32, Const<2>>],
    adapters: &Adapters<W>,
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let column_blocks = comptime!(tile.column_blocks());
    let lane = UNIT_POS as usize % PLANE;
    let plane = UNIT_POS as usize / PLANE;
    let plane_row = plane / comptime!(tile.planes[1]) * comptime!(tile.row_blocks() * 16);
    let plane_column = plane % comptime!(tile.planes[1]) * comptime!(column_blocks * 8);
    let column = place.first_column + plane_column + lane % 4 * 2;
    #[unroll]
    for block in 0..comptime!(tile.row_blocks()) {
        #[unroll]
        for half in 0..2usize {
            let row = plane_row + block * 16 + half * 8 + lane / 4;
            let r = place.first_row + row;
            let slot = slots[row];
            if r < place.num_rows && slot >= 0i32 {
                let first = slot as usize * place.rank;
                let last = min(first + place.rank, place.num_columns);
                let from = part_of_row(adapters, place, place.split, r);
                #[unroll]
                for j in 0..column_blocks {
                    let c = column + j * 8;
                    if c >= first && c < last {
                        let sum = &sums[block * column_blocks + j];
                        parts[from + (c - first) / 2] = sum[half];
                    }
                }
            }
        }
    }
}

/// Writes zeros where rows of the tile have other adapters.
#[cube]
fn write_zeros<W: Float>(
    slots: &[i32],
    h: &mut [Vector<W, Const<8>>],
    adapters: &Adapters<W>,
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let vectors = comptime!(tile.columns / VECTOR);
    let mut i = UNIT_POS as usize;
    while i < comptime!(tile.rows * vectors) {
        let (row, column) = (i / vectors, place.first_column + i % vectors * VECTOR);
        // The last step goes past the last rank.
        if place.first_row + row < place.num_rows && column < place.b_steps * INNER {
            let slot = slots[row];
            let first = max(slot, 0i32) as usize * place.rank;
            let last = min(first + place.rank, place.num_columns);
            if slot < 0i32 || column < first || column >= last {
                h[h_of_row(adapters, place, row) + column / VECTOR] = Vector::new(W::new(0.0));
            }
        }
        i += comptime!(tile.units());
    }
}

/// Writes the sums of the tile's parts, in their order.
#[cube]
fn write_h<W: Float>(
    slots: &[i32],
    parts: &mut [Vector<f32, Const<2>>],
    h: &mut [Vector<W, Const<8>>],
    adapters: &Adapters<W>,
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let pairs = comptime!(VECTOR / 2);
    // A stack's rank is a multiple of a vector.
    let vectors = place.rank / VECTOR;
    let stride = place.num_rows * adapters.part_ranks / 2;
    let last_column = min(
        place.first_column + comptime!(tile.columns),
        place.num_columns,
    );
    let mut i = UNIT_POS as usize;
    while i < tile.rows * vectors {
        let (row, vector) = (i / vectors, i % vectors);
        let slot = slots[row];
        let column = max(slot, 0i32) as usize * place.rank + vector * VECTOR;
        let r = place.first_row + row;
        let is_here = column >= place.first_column && column < last_column;
        if r < place.num_rows && slot >= 0i32 && is_here {
            let from = part_of_row(adapters, place, 0usize, r) + vector * pairs;
            let mut sums = Vector::<f32, Const<8>>::new(0.0);
            let mut next = 0usize;
            while next < place.splits {
                let mut loaded = Array::<Vector<f32, Const<2>>>::new(comptime!(BATCH * pairs));
                #[unroll]
                for j in 0..BATCH {
                    let at = from + min(next + j, place.splits - 1) * stride;
                    #[unroll]
                    for pair in 0..pairs {
                        loaded[j * pairs + pair] = parts[at + pair];
                    }
                }
                #[unroll]
                for j in 0..BATCH {
                    if next + j < place.splits {
                        let mut part = Vector::<f32, Const<8>>::empty();
                        #[unroll]
                        for pair in 0..pairs {
                            let two = loaded[j * pairs + pair];
                            part.insert(pair * 2, two.extract(0usize));
                            part.insert(pair * 2 + 1, two.extract(1usize));
                        }
                        sums += part;
                    }
                }
                next += BATCH;
            }
            h[h_of_row(adapters, place, row) + column / VECTOR] = Vector::cast_from(sums);
        }
        i += comptime!(tile.units());
    }
}

/// Where a row of the tile starts in the layer's `x · aᵀ`.
#[cube]
fn h_of_row<W: Float>(adapters: &Adapters<W>, place: &Place, row: usize) -> usize {
    ((place.first_row + row) * adapters.h_steps + place.h_step) * CHUNKS
}

/// Where a part has the layer's ranks of a row of `x`, in pairs.
#[cube]
fn part_of_row<W: Float>(adapters: &Adapters<W>, place: &Place, split: usize, row: usize) -> usize {
    let before = (split * place.num_rows + row) * adapters.part_ranks;
    adapters.parts_at + (before + place.part_rank) / 2
}

/// Starts to copy the first steps of `b`, which don't have to wait.
#[cube]
pub(super) fn begin_expand<W: Float>(
    layers: &Layers<W>,
    memory: &mut [Vector<W, Const<8>>],
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    // Nobody reads the last step of the weight.
    sync_cube();
    #[unroll]
    for stage in 0..comptime!(tile.stages - 1) {
        if stage < place.b_steps {
            let at = comptime!(stage * tile.stage_len() + tile.rows * CHUNKS);
            load_right(
                layers,
                &mut memory[at..],
                place,
                stage,
                RightOperand::Second,
                kind,
            );
        }
    }
}

/// Starts to copy the same steps of `x · aᵀ`.
#[cube]
pub(super) fn continue_expand<W: Float>(
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    memory: &mut [Vector<W, Const<8>>],
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    wait_for_h(adapters, counters, place);
    #[unroll]
    for stage in 0..comptime!(tile.stages - 1) {
        if stage < place.b_steps {
            let at = comptime!(stage * tile.stage_len());
            load_h(adapters, &mut memory[at..], place, stage, kind);
        }
        end_group();
    }
    let before = count_reader(counters, place);
    forget_h(adapters, counters, place, before);
}

/// Starts to copy a step of `x · aᵀ`.
#[cube]
pub(super) fn load_h<W: Float>(
    adapters: &Adapters<W>,
    stage: &mut [Vector<W, Const<8>>],
    place: &Place,
    step: usize,
    #[comptime] kind: Kind,
) {
    let stride = adapters.h_steps * CHUNKS;
    let tile = comptime!(kind.tile);
    load_x(&adapters.h, stage, place, stride, place.h_step + step, tile);
}

/// Waits until all tiles of `x · aᵀ` of these rows are there.
#[cube]
pub(super) fn wait_for_h<W: Float>(
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    place: &Place,
) {
    if UNIT_POS == 0 {
        while counters[place.row_tile + READY].load() < adapters.tiles as u32 {}
        fence();
    }
    sync_cube();
}

/// Counts a tile that has waited. The result is the number of those before it.
#[cube]
pub(super) fn count_reader(counters: &mut [Atomic<u32>], place: &Place) -> u32 {
    let mut before = 0u32;
    if UNIT_POS == 0 {
        before = counters[place.row_tile + READ].fetch_add(1u32);
    }
    before
}

/// The last tile that has waited leaves the counters as they were.
#[cube]
pub(super) fn forget_h<W: Float>(
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    place: &Place,
    before: u32,
) {
    if UNIT_POS == 0 && before as usize == adapters.readers - 1 {
        counters[place.row_tile + READY].store(0u32);
        counters[place.row_tile + READ].store(0u32);
    }
}
