//! The adapters' part of a product: `x · aᵀ` in tiles of its own, which become further steps of the others.

use cubecl::prelude::*;

use super::layers::{Adapters, Layers, Place};
use super::parts::fence;
use super::stage::{Factor, end_group, load_factor, load_x};
use super::{CHUNKS, INNER, Kind, PLANE, READ, READY};

/// The slots of the unit's rows of a tile of `x · aᵀ`: they are there when its sums are.
#[cube]
pub(super) fn slots_of_rows<W: Float>(
    adapters: &Adapters<W>,
    place: &Place,
    #[comptime] kind: Kind,
) -> Array<i32> {
    let tile = comptime!(kind.tile);
    let mut slots = Array::<i32>::new(comptime!(tile.row_blocks() * 2));
    if comptime!(kind.has_adapters) {
        if place.is_shrink {
            let row = first_row_of_unit(place, kind);
            #[unroll]
            for i in 0..comptime!(tile.row_blocks() * 2) {
                let r = min(row + i * 8, place.num_rows - 1);
                slots[i] = adapters.slots[adapters.at + r];
            }
        }
    }
    slots
}

/// The first of a unit's rows: the others are multiples of 8 further.
#[cube]
fn first_row_of_unit(place: &Place, #[comptime] kind: Kind) -> usize {
    let tile = comptime!(kind.tile);
    let unit = UNIT_POS as usize;
    let plane_row = unit / PLANE / comptime!(tile.planes[1]) * comptime!(tile.row_blocks() * 16);
    place.first_row + plane_row + unit % PLANE / 4
}

/// Writes what a tile has of `x · aᵀ`, for each row that of its own adapter, and says that it is there.
#[cube]
pub(super) fn write_h<W: Float>(
    sums: &Sequence<Array<Vector<f32, Const<2>>>>,
    slots: &Array<i32>,
    h: &mut [Vector<W, Const<2>>],
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let column_blocks = comptime!(tile.column_blocks());
    let lane = UNIT_POS as usize % PLANE;
    let plane = UNIT_POS as usize / PLANE;
    let plane_column = plane % comptime!(tile.planes[1]) * comptime!(column_blocks * 8);
    let row = first_row_of_unit(place, kind);
    let column = place.first_column + plane_column + lane % 4 * 2;
    #[unroll]
    for block in 0..comptime!(tile.row_blocks()) {
        #[unroll]
        for half in 0..2usize {
            let r = row + block * 16 + half * 8;
            if r < place.num_rows {
                let slot = slots[block * 2 + half];
                // The columns of its adapter.
                let first = max(slot, 0i32) as usize * place.rank;
                let mut last = min(first + place.rank, place.num_columns);
                if slot < 0i32 {
                    last = 0usize;
                }
                #[unroll]
                for j in 0..column_blocks {
                    let c = column + j * 8;
                    // The last step goes past the last rank.
                    if c < place.b_steps * INNER {
                        let mut value = Vector::<f32, Const<2>>::new(0.0);
                        if c >= first && c < last {
                            let sum = &sums[block * column_blocks + j];
                            value = sum[half];
                        }
                        let at = (r * adapters.h_steps + place.h_step) * INNER + c;
                        h[at / 2] = Vector::cast_from(value);
                    }
                }
            }
        }
    }
    sync_cube();
    if UNIT_POS == 0 {
        fence();
        counters[place.row_tile + READY].fetch_add(1u32);
    }
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
            load_factor(
                layers,
                &mut memory[at..],
                place,
                stage,
                Factor::Second,
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
    // The answer comes while these are under way.
    count_reader(adapters, counters, place);
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

/// Counts a tile that has waited. The last one leaves the counters as they were.
#[cube]
pub(super) fn count_reader<W: Float>(
    adapters: &Adapters<W>,
    counters: &mut [Atomic<u32>],
    place: &Place,
) {
    if UNIT_POS == 0 {
        let before = counters[place.row_tile + READ].fetch_add(1u32);
        if before as usize == adapters.readers - 1 {
            counters[place.row_tile + READY].store(0u32);
            counters[place.row_tile + READ].store(0u32);
        }
    }
}
