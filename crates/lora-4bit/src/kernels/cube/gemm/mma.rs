//! `mma`: the product of a warp, from registers.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::load::swizzled;
use super::shape::{Kind, PANEL};
use crate::kernels::operand::Major;
use crate::kernels::tile::{CHUNKS, INNER};

/// Where the matrices of an `ldmatrix` lie for a block of 16 rows and 16 inner values; the second and the third of the four
/// 8 × 8 matrices trade places between `a` and `b`.
#[cube]
fn place(row: usize, inner: usize, #[comptime] major: Major, #[comptime] is_b: bool) -> usize {
    let lane = (UNIT_POS % 32) as usize;
    let (near, far) = if comptime!(is_b) {
        (lane / 16, lane / 8 % 2)
    } else {
        (lane / 8 % 2, lane / 16)
    };
    if comptime!(major == Major::Inner) {
        swizzled(row + near * 8 + lane % 8, inner / 8 + far)
    } else {
        let chunk = row / 8 + near;
        let panel = chunk / CHUNKS;
        swizzled(panel * PANEL + inner + far * 8 + lane % 8, chunk % CHUNKS)
    }
}

/// Adds the products of a step to the plane's sums.
#[cube]
pub(super) fn multiply<W: Float>(
    a: &[Vector<W, Const<8>>],
    b: &[Vector<W, Const<8>>],
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    #[comptime] kind: Kind,
) {
    let plane = (UNIT_POS / 32) as usize;
    let row_blocks = comptime!(kind.rows / kind.planes[0] / 16);
    let column_blocks = comptime!(kind.columns / kind.planes[1] / 8);
    let first_row = plane / comptime!(kind.planes[1]) * comptime!(row_blocks * 16);
    let first_column = plane % comptime!(kind.planes[1]) * comptime!(column_blocks * 8);
    let instruction = MmaDefinition::<W, W, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for inner in 0..comptime!(INNER / 16) {
        let mut left = Sequence::<Array<Vector<W, Const<2>>>>::new();
        #[unroll]
        for block in 0..row_blocks {
            let major = comptime!(kind.majors[0]);
            let at = place(first_row + block * 16, inner * 16, major, false);
            left.push(instruction.load_matrix::<Vector<W, Const<8>>, Const<2>>(
                &a[at..at + 1],
                MatrixIdent::A,
                4usize,
                comptime!(kind.majors[0] == Major::Outer),
            ));
        }
        #[unroll]
        for pair in 0..comptime!(column_blocks / 2) {
            let major = comptime!(kind.majors[1]);
            let at = place(first_column + pair * 16, inner * 16, major, true);
            let right = instruction.load_matrix::<Vector<W, Const<8>>, Const<2>>(
                &b[at..at + 1],
                MatrixIdent::B,
                4usize,
                comptime!(kind.majors[1] == Major::Outer),
            );
            #[unroll]
            for half in 0..2usize {
                let mut columns = Array::<Vector<W, Const<2>>>::new(2usize);
                columns[0] = right[half * 2];
                columns[1] = right[half * 2 + 1];
                #[unroll]
                for block in 0..row_blocks {
                    let sum = &mut sums[block * column_blocks + pair * 2 + half];
                    instruction.execute_inplace(&left[block], &columns, sum);
                }
            }
        }
    }
}
