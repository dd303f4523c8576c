//! The sums of the parts of a tile's inner dimension.

use cubecl::prelude::*;

use super::layers::Place;
use super::shape::{ARRIVED, Kind};

/// Publishes the sums of this cube's part. The result is true in the cube that does so last.
#[cube]
pub(super) fn publish(
    sums: &Sequence<Array<Vector<f32, Const<2>>>>,
    parts: &mut [Vector<f32, Const<2>>],
    counters: &mut [Atomic<u32>],
    place: &Place,
    #[comptime] kind: Kind,
) -> bool {
    let tile = comptime!(kind.tile);
    let units = comptime!(tile.units());
    let pairs = comptime!(tile.pairs());
    let unit = UNIT_POS as usize;
    let mine = (place.tile_number * place.splits + place.split) * comptime!(pairs * units) + unit;
    #[unroll]
    for i in 0..comptime!(pairs / 2) {
        let sum = &sums[i];
        parts[mine + i * 2 * units] = sum[0];
        parts[mine + (i * 2 + 1) * units] = sum[1];
    }
    arrive(counters, place.tile_number + ARRIVED, place.splits)
}

/// Counts this cube among `num`, all of whose writes the last one sees. The result is true in that one.
#[cube]
pub(super) fn arrive(counters: &mut [Atomic<u32>], counter: usize, num: usize) -> bool {
    let mut last = Shared::<[u32]>::new_slice(1usize);
    sync_cube();
    if UNIT_POS == 0 {
        // For what all units have written: they have met above.
        fence();
        let before = counters[counter].fetch_add(1u32);
        let is_last = before == num as u32 - 1;
        last[0] = u32::cast_from(is_last);
        if is_last {
            counters[counter].store(0u32);
        }
        fence();
    }
    sync_cube();
    last[0] == 1u32
}

/// What this unit knows to be written is seen by all who know of its later writes, and the other way round.
///
/// CubeCL doesn't know that it orders anything: a `sync_cube` must lie between it and the loads and stores that it orders.
#[cube]
pub(super) fn fence() {
    gpu_asm!("fence.acq_rel.gpu;", options(explicit_mem));
}

/// The sums become those of all parts, in the parts' order.
#[cube]
pub(super) fn collect(
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    parts: &mut [Vector<f32, Const<2>>],
    place: &Place,
    #[comptime] kind: Kind,
) {
    let tile = comptime!(kind.tile);
    let units = comptime!(tile.units());
    let pairs = comptime!(tile.pairs());
    let start = place.tile_number * place.splits * comptime!(pairs * units) + UNIT_POS as usize;
    #[unroll]
    for i in 0..comptime!(pairs / 2) {
        let sum = &mut sums[i];
        sum[0] = parts[start + i * 2 * units];
        sum[1] = parts[start + (i * 2 + 1) * units];
    }
    for split in 1..place.splits {
        let from = start + split * comptime!(pairs * units);
        #[unroll]
        for i in 0..comptime!(pairs / 2) {
            let sum = &mut sums[i];
            sum[0] += parts[from + i * 2 * units];
            sum[1] += parts[from + (i * 2 + 1) * units];
        }
    }
}
