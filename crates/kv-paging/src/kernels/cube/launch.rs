//! What launches of kernels name: element types, tensors to write to, numbers of cubes.

use burn::tensor::{DType, Shape};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

pub(super) fn elem_type(tensor: &CubeTensor) -> cubecl::ir::ElemType {
    burn::backend::cubecl::dtype_to_elem_type(tensor.dtype)
}

/// A tensor whose values are not set yet.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    burn_cubecl::ops::numeric::empty_device_contiguous_dtype(
        like.client.clone(),
        like.device.clone(),
        shape.into(),
        dtype,
    )
}

/// Enough cubes of `units` for `num` units; two dimensions, since one holds 65,535 on some devices.
pub(super) fn cubes(num: usize, units: usize) -> CubeCount {
    let cubes = num.div_ceil(units).max(1);
    let rows = cubes.div_ceil(65_535);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}
