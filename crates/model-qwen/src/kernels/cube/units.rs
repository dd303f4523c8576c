//! What all units of a cube find out together.

use cubecl::prelude::*;

use lora_4bit::kernels::launch::UNITS;

/// Bit by bit, the largest key that at least `top` of the cube's keys reach.
#[cube]
pub(super) fn bound_of_top(
    keys: &Array<u32>,
    shared: &mut Shared<[u32]>,
    #[comptime] own: usize,
    top: u32,
) -> u32 {
    let mut bound = 0u32;
    let mut bit = 0x8000_0000u32.runtime();
    // Counts of the planes have two places in turn: so units meet once for each bit, and those that are ahead overwrite nothing.
    let mut place = 0usize.runtime();
    while bit > 0 {
        let candidate = bound | bit;
        let mut count = 0u32;
        #[unroll]
        for i in 0..own {
            count += u32::cast_from(keys[i] >= candidate);
        }
        let of_plane = plane_sum(count);
        if UNIT_POS_PLANE == 0 {
            shared[place + (UNIT_POS / PLANE_DIM) as usize] = of_plane;
        }
        sync_cube();
        if of_all_planes(shared, place, true) >= top {
            bound = candidate;
        }
        place = comptime!(UNITS / 2) - place;
        bit >>= 1u32;
    }
    sync_cube();
    bound
}

/// The largest of the values that planes have left from `place` on, or the sum of them.
#[cube]
fn of_all_planes(shared: &mut Shared<[u32]>, place: usize, #[comptime] is_sum: bool) -> u32 {
    let planes = CUBE_DIM / PLANE_DIM;
    let mut result = 0u32;
    let mut plane = UNIT_POS_PLANE;
    while plane < planes {
        let value = shared[place + plane as usize];
        if comptime!(is_sum) {
            result += value;
        } else {
            result = max(result, value);
        }
        plane += PLANE_DIM;
    }
    if comptime!(is_sum) {
        plane_sum(result)
    } else {
        plane_max(result)
    }
}

/// The largest value of all units, or the sum of them, for each unit.
#[cube]
pub(super) fn of_all_units(
    value: u32,
    shared: &mut Shared<[u32]>,
    #[comptime] is_sum: bool,
) -> u32 {
    let of_plane = if comptime!(is_sum) {
        plane_sum(value)
    } else {
        plane_max(value)
    };
    if UNIT_POS_PLANE == 0 {
        shared[(UNIT_POS / PLANE_DIM) as usize] = of_plane;
    }
    sync_cube();
    let result = of_all_planes(shared, 0usize, is_sum);
    sync_cube();
    result
}

/// Where a unit writes the first of its `count` entries, and the number of all.
#[cube]
pub(super) fn places(count: u32, shared: &mut Shared<[u32]>) -> (usize, usize) {
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let plane = (UNIT_POS / PLANE_DIM) as usize;
    let mut at = plane_exclusive_sum(count) as usize;
    let count = plane_sum(count);
    if UNIT_POS_PLANE == 0 {
        shared[plane] = count;
    }
    sync_cube();
    let mut num = 0usize;
    for other in 0..planes {
        let count = shared[other] as usize;
        if other < plane {
            at += count;
        }
        num += count;
    }
    sync_cube();
    (at, num)
}

/// The largest value of all units of a cube, for each of them.
#[cube]
pub(super) fn max_of_cube(value: f32) -> f32 {
    // A plane has at least four units.
    let mut values = Shared::<[f32]>::new_slice(comptime!(UNITS / 4));
    let planes = (CUBE_DIM / PLANE_DIM) as usize;
    let value = plane_max(value);
    if UNIT_POS_PLANE == 0 {
        values[(UNIT_POS / PLANE_DIM) as usize] = value;
    }
    sync_cube();
    let mut largest = values[0];
    for plane in 1..planes {
        largest = max(largest, values[plane]);
    }
    largest
}
