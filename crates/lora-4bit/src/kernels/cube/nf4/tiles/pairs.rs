//! The table that turns a byte, two codes, into two values.

use cubecl::prelude::*;

use super::COPIES;

/// The left factor of an instruction: eight codes of the unit, four of each of its rows.
#[cube]
pub(super) fn decode<W: Float>(
    packed: &Array<Vector<u32, Const<2>>>,
    pairs: &Shared<[Vector<W, Const<2>>]>,
    #[comptime] step: usize,
    #[comptime] word: usize,
    #[comptime] half: usize,
) -> Array<Vector<W, Const<2>>> {
    let copy = UNIT_POS % comptime!(COPIES as u32);
    let mut values = Array::<Vector<W, Const<2>>>::new(4usize);
    #[unroll]
    for byte in 0..2usize {
        #[unroll]
        for row in 0..2usize {
            let word = packed[comptime!(step * 2 + row)].extract(word);
            let shift = comptime!((16 * half + 8 * byte) as u32);
            // The byte is moved to where it is multiplied with the number of copies already.
            let bits = comptime!(COPIES.trailing_zeros());
            let entry = if comptime!(shift >= bits) {
                word >> comptime!(shift - bits)
            } else {
                word << comptime!(bits - shift)
            };
            let at = (entry & comptime!(255u32 << bits)) | copy;
            values[byte * 2 + row] = pairs[at as usize];
        }
    }
    values
}

/// Writes the values of each byte, first that of the code in its high bits.
#[cube]
pub(super) fn fill<W: Float>(
    pairs: &mut Shared<[Vector<W, Const<2>>]>,
    levels: &[f32],
    #[comptime] units: usize,
) {
    #[unroll]
    for i in 0..comptime!(256usize.div_ceil(units)) {
        let byte = UNIT_POS as usize + i * units;
        if byte < 256 {
            let mut pair = Vector::<W, Const<2>>::new(W::new(0.0));
            pair.insert(0usize, W::cast_from(levels[byte / 16]));
            pair.insert(1usize, W::cast_from(levels[byte % 16]));
            #[unroll]
            for copy in 0..COPIES {
                // Neighbours write to different banks.
                pairs[byte * COPIES + (copy + byte / (32 / COPIES)) % COPIES] = pair;
            }
        }
    }
}
