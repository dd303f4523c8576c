//! Gradients of keys and values that cubes have summed in parts.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::launch::{cubes, elem_type};
use crate::kernels::training::heads::HeadShape;

/// Units of a cube.
const UNITS: usize = 256;
/// Elements of a vector.
const WIDTH: usize = 4;

/// Adds up the gradients of keys and values, `[parts, tokens, 2 * kv_heads * head_dim]` f32, to their columns of `d_qkv`.
pub(super) fn add_parts(
    from: CubeTensor,
    d_qkv: &CubeTensor,
    [parts, tokens]: [usize; 2],
    shape: HeadShape,
) {
    let keys_len = 2 * shape.kv_heads * shape.head_dim;
    let queries_len = shape.heads * shape.head_dim;
    let len = tokens * keys_len / WIDTH;
    // SAFETY: units stay below the number of vectors of a part.
    unsafe {
        sum_parts::launch_unchecked(
            &from.client.clone(),
            cubes(len, UNITS),
            CubeDim::new_1d(UNITS as u32),
            from.into_buffer_arg(),
            d_qkv.clone().into_buffer_arg(),
            PartSumsLaunch::new(
                len,
                parts,
                keys_len / WIDTH,
                (queries_len + keys_len) / WIDTH,
                queries_len / WIDTH,
            ),
            elem_type(d_qkv),
        );
    }
}

/// Sums of the parts of gradients, and where they go.
#[derive(CubeType, CubeLaunch)]
struct PartSums {
    /// Vectors of a part.
    len: usize,
    parts: usize,
    /// Vectors of a token in a part.
    width: usize,
    /// Vectors of a row, and where the keys start in it.
    row: usize,
    first: usize,
}

/// Adds up the parts `[parts, tokens, 2 * kv_heads * head_dim]` of the gradients of keys and values, in order.
#[cube(launch_unchecked)]
fn sum_parts<E: Float>(
    from: &[Vector<f32, Const<4>>],
    to: &mut [Vector<E, Const<4>>],
    sums: &PartSums,
    #[define(E)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < sums.len {
        let mut total = Vector::<f32, Const<4>>::new(0.0);
        for part in 0..sums.parts {
            total += from[part * sums.len + ABSOLUTE_POS];
        }
        let (token, i) = (ABSOLUTE_POS / sums.width, ABSOLUTE_POS % sums.width);
        to[token * sums.row + sums.first + i] = Vector::cast_from(total);
    }
}
