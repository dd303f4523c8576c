//! Copies of rows.

use burn::backend::cubecl::dtype_to_elem_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::launch::{UNITS, cubes, vector_of};

/// Copies `from [rows, k]` to the rows of `to [n, k]` from row `at` on, in the type of `to`.
pub(super) fn write_rows(to: CubeTensor, from: CubeTensor, at: usize) -> CubeTensor {
    let [rows, k] = from.meta.shape().dims();
    let vector = vector_of(k);
    let dtypes = [from.dtype, to.dtype].map(dtype_to_elem_type);
    if rows * k > 0 {
        // SAFETY: units stay below the number of vectors; the caller has made room for the rows.
        unsafe {
            copy_kernel::launch_unchecked(
                &to.client.clone(),
                cubes(rows * k / vector),
                CubeDim::new_1d(UNITS as u32),
                vector,
                from.into_buffer_arg(),
                to.clone().into_buffer_arg(),
                rows * k / vector,
                at * k / vector,
                dtypes,
            );
        }
    }
    to
}

#[cube(launch_unchecked)]
fn copy_kernel<X: Float, Y: Float, N: Size>(
    from: &[Vector<X, N>],
    to: &mut [Vector<Y, N>],
    len: usize,
    at: usize,
    #[define(X, Y)] _dtypes: [ElemType; 2],
) {
    if ABSOLUTE_POS < len {
        to[at + ABSOLUTE_POS] = Vector::cast_from(from[ABSOLUTE_POS]);
    }
}
