//! Shared memory.

use cubecl::prelude::*;

use super::shape::{Kind, LANES};

/// What the units of a cube share.
#[derive(CubeType)]
pub(super) struct Memory {
    /// The level of each code, once for each unit of a plane.
    pub(super) levels: Shared<[f32]>,
    pub(super) other_levels: Shared<[f32]>,
    /// The values of `x` of a round, `[m, vectors]`.
    pub(super) x: Shared<[Vector<f32, Const<4>>]>,
    /// Sums on their way to other planes.
    pub(super) sums: Shared<[f32]>,
}

#[cube]
impl Memory {
    pub(super) fn new(#[comptime] kind: Kind) -> Self {
        let other_len = comptime!(if kind.is_pair { 16 * LANES } else { 1 });
        Memory {
            levels: Shared::new_slice(comptime!(16 * LANES)),
            other_levels: Shared::new_slice(other_len),
            x: Shared::new_slice(comptime!(kind.stage_len())),
            sums: Shared::new_slice(comptime!(kind.num_shared_sums())),
        }
    }
}
