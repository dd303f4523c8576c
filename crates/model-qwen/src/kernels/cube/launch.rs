//! How kernels are launched.

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// A tensor on the same device whose values are not set yet.
pub(super) fn empty_of(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Enough cubes for a unit each; two dimensions, since one holds 65,535 on some devices.
pub(super) fn cubes(units: usize) -> CubeCount {
    let cubes = units.div_ceil(UNITS);
    let rows = cubes.div_ceil(65_535);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}
