//! The table that turns a byte, two codes, into two values.

use cubecl::prelude::*;

use super::memory::Memory;
use super::shape::Kind;

/// The left operand of an instruction: eight codes of the unit, four of each of its rows, which come from `at` on.
#[cube]
pub(super) fn decode<W: Float>(
    packed: &Array<Vector<u32, Const<2>>>,
    memory: &mut Memory<W>,
    #[comptime] at: usize,
    #[comptime] word: usize,
    #[comptime] half: usize,
    #[comptime] kind: Kind,
) -> Array<Vector<W, Const<2>>> {
    let copy = UNIT_POS % comptime!(kind.copies as u32);
    let mut values = Array::<Vector<W, Const<2>>>::new(4usize);
    #[unroll]
    for byte in 0..2usize {
        #[unroll]
        for row in 0..2usize {
            let word = packed[comptime!(at + row)].extract(word);
            let shift = comptime!((16 * half + 8 * byte) as u32);
            // The byte is moved to where it is multiplied with the number of copies already.
            let bits = comptime!(kind.copies.trailing_zeros());
            let entry = if comptime!(shift >= bits) {
                word >> comptime!(shift - bits)
            } else {
                word << comptime!(bits - shift)
            };
            let entry = ((entry & comptime!(255u32 << bits)) | copy) as usize;
            if comptime!(kind.is_pair && row == 1) {
                values[byte * 2 + row] = memory.other_pairs[entry];
            } else {
                values[byte * 2 + row] = memory.pairs[entry];
            }
        }
    }
    values
}

/// Writes the values of each byte, first that of the code in its high bits; of a pair of weights with both's levels.
#[cube]
pub(super) fn fill<W: Float>(
    memory: &mut Memory<W>,
    levels: &[f32],
    other: &[f32],
    #[comptime] kind: Kind,
) {
    let (units, bytes) = comptime!((kind.units(), if kind.is_pair { 512 } else { 256 }));
    #[unroll]
    for i in 0..comptime!(bytes.div_ceil(units)) {
        let entry = UNIT_POS as usize + i * units;
        if entry < 256 {
            fill_byte::<W>(&mut memory.pairs, levels, entry, kind);
        } else if entry < 512 {
            if comptime!(kind.is_pair) {
                fill_byte::<W>(&mut memory.other_pairs, other, entry - 256, kind);
            }
        }
    }
}

#[cube]
fn fill_byte<W: Float>(
    pairs: &mut Shared<[Vector<W, Const<2>>]>,
    levels: &[f32],
    byte: usize,
    #[comptime] kind: Kind,
) {
    let copies = comptime!(kind.copies);
    let mut pair = Vector::<W, Const<2>>::new(W::new(0.0));
    pair.insert(0usize, W::cast_from(levels[byte / 16]));
    pair.insert(1usize, W::cast_from(levels[byte % 16]));
    #[unroll]
    for copy in 0..copies {
        // Neighbours write to different banks.
        let turn = byte / comptime!(32 / kind.copies);
        pairs[byte * copies + (copy + turn) % copies] = pair;
    }
}
