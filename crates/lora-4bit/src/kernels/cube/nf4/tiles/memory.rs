//! Shared memory.

use cubecl::prelude::*;

use super::shape::Kind;

/// What the units of a cube share.
#[derive(CubeType)]
pub(super) struct Memory<W: Float> {
    /// The values of the two codes of each byte, some times.
    pub(super) pairs: Shared<[Vector<W, Const<2>>]>,
    pub(super) other_pairs: Shared<[Vector<W, Const<2>>]>,
    /// What codes of scales stand for.
    pub(super) map: Shared<[f32]>,
    pub(super) other_map: Shared<[f32]>,
    /// Rows of `x`, eight values each.
    pub(super) x: Shared<[Vector<u32, Const<4>>]>,
    /// Sums of each plane.
    pub(super) sums: Shared<[f32]>,
    /// What each plane has seen of the squares of the rows of `x`.
    pub(super) squares: Shared<[f32]>,
}

#[cube]
impl<W: Float> Memory<W> {
    pub(super) fn new(#[comptime] kind: Kind) -> Self {
        let len = comptime!(256 * kind.copies);
        let map = comptime!(if kind.is_double { 256usize } else { 1 });
        Memory::<W> {
            pairs: Shared::new_slice(len),
            other_pairs: Shared::new_slice(comptime!(if kind.is_pair { len } else { 1 })),
            map: Shared::new_slice(map),
            other_map: Shared::new_slice(comptime!(if kind.is_pair { map } else { 1 })),
            x: Shared::new_aligned_slice(comptime!(kind.x_rows * kind.stage_stride()), 128usize),
            sums: Shared::new_slice(comptime!(kind.units() * kind.sums())),
            squares: Shared::new_slice(comptime!(kind.num_squares())),
        }
    }
}
