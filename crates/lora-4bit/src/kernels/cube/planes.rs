//! Sums over the planes (warps) of a cube.

use cubecl::prelude::*;

use crate::kernels::plan;

/// Units of a cube (threads of a block) in the products with few rows.
pub(super) const UNITS: u32 = plan::UNITS as u32;

/// Shared memory that [`sum_of_planes`] takes for `num` values. A plane has at least four units.
pub(super) const fn num_shared_sums(num: usize) -> usize {
    UNITS as usize / 4 * num
}

/// Adds up `num` values over `planes` neighbouring planes of a cube of [`UNITS`], for all of their units. Between planes
/// they travel through `parts`, see [`num_shared_sums`].
#[cube]
pub(super) fn sum_of_planes(
    values: &mut Array<f32>,
    parts: &mut Shared<[f32]>,
    #[comptime] num: usize,
    #[comptime] planes: usize,
) {
    if comptime!(planes > 1) {
        let plane = (UNIT_POS / PLANE_DIM) as usize;
        let first = plane - plane % planes;
        if UNIT_POS_PLANE == 0 {
            #[unroll]
            for i in 0..num {
                parts[plane * num + i] = values[i];
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..num {
            let mut sum = 0.0f32;
            #[unroll]
            for other in 0..planes {
                sum += parts[(first + other) * num + i];
            }
            values[i] = sum;
        }
        // Nobody writes its next values before all have read these.
        sync_cube();
    }
}
