//! `x` on its way to shared memory.

use cubecl::prelude::*;

use super::memory::Memory;
use super::shape::{CHUNKS, Kind};
use crate::nf4::BLOCK_SIZE;

/// Loads of four values of a block.
const LOADS: usize = BLOCK_SIZE / 4;

/// Copies blocks of `x` from `start` on to shared memory, times the weight of the norm; zeros past the end of a row. Adds what
/// this unit has seen of each row's squares.
#[cube]
pub(super) fn stage_x<W: Float, X: Float>(
    x: &[Vector<X, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    memory: &mut Memory<W>,
    squares: &mut Array<f32>,
    start: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] kind: Kind,
) {
    if comptime!(kind.has_norm) {
        let mut chunk = UNIT_POS as usize;
        while chunk < comptime!(kind.stage_steps * CHUNKS) {
            #[unroll]
            for row in 0..comptime!(kind.x_rows) {
                squares[row] +=
                    stage_chunk(x, norm, memory, start, row, chunk, num_x, row_steps, kind);
            }
            chunk += comptime!(kind.units());
        }
    } else {
        let row_chunks = comptime!(kind.stage_steps * CHUNKS);
        let mut i = UNIT_POS as usize;
        while i < comptime!(kind.stage_steps * CHUNKS * kind.x_rows) {
            let (row, chunk) = (i / row_chunks, i % row_chunks);
            stage_chunk(x, norm, memory, start, row, chunk, num_x, row_steps, kind);
            i += comptime!(kind.units());
        }
    }
}

/// Copies eight values of a row of `x`, times the weight of the norm. The result is the sum of their squares.
#[cube]
fn stage_chunk<W: Float, X: Float>(
    x: &[Vector<X, Const<4>>],
    norm: &[Vector<f32, Const<4>>],
    memory: &mut Memory<W>,
    start: usize,
    row: usize,
    chunk: usize,
    num_x: usize,
    row_steps: usize,
    #[comptime] kind: Kind,
) -> f32 {
    let step = start + chunk / CHUNKS;
    let load = min(step, row_steps - 1) * LOADS + chunk % CHUNKS * 2;
    let from = min(row, num_x - 1) * row_steps * LOADS + load;
    let exists = f32::cast_from(step < row_steps);
    let mut values = Vector::<f32, Const<8>>::new(0.0);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..2usize {
        let mut four = Vector::<f32, Const<4>>::cast_from(x[from + i]);
        if comptime!(kind.is_ragged) {
            four *= Vector::new(exists);
        }
        if comptime!(kind.has_norm) {
            let squares = four * four;
            #[unroll]
            for j in 0..4usize {
                sum += squares.extract(j);
            }
            four *= norm[load + i];
        }
        #[unroll]
        for j in 0..4usize {
            values.insert(i * 4 + j, four.extract(j));
        }
    }
    memory.x[row * comptime!(kind.stage_stride()) + chunk] =
        Vector::reinterpret(Vector::<W, Const<8>>::cast_from(values));
    sum
}
