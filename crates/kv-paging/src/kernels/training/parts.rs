//! How the gradients of keys and values are cut into parts, which share the cubes of a GPU.

/// Rows of a tile of the gradients.
pub(crate) const ROWS: usize = 64;
/// Cubes from which the gradients of keys and values are not split further.
const ENOUGH_CUBES: usize = 512;

/// In how many parts the query heads of a group are taken, so that enough cubes share the gradients of keys and values.
pub(crate) fn parts(cubes: usize, group: usize) -> usize {
    let divisors = (1..=group).filter(|parts| group.is_multiple_of(*parts));
    let mut enough = divisors.skip_while(|parts| cubes * parts < ENOUGH_CUBES);
    enough.next().unwrap_or(group)
}

/// Keys of a cube of the gradients on Hopper.
pub(crate) const WIDE_ROWS: usize = 128;
/// Cubes that keep all multiprocessors busy, where each has one, to the end.
const ENOUGH_WIDE_CUBES: usize = 384;
/// Parts of the rows that see a key, at most: each has gradients of its own in memory.
const MAX_WIDE_PARTS: usize = 8;

/// The same on Hopper, where parts are of the rows of all query heads of a group.
pub(crate) fn wide_parts(cubes: usize) -> usize {
    (ENOUGH_WIDE_CUBES / cubes.max(1)).clamp(1, MAX_WIDE_PARTS)
}
