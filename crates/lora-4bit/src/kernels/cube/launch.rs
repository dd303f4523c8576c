//! What launches name: tensors to write to, widths of loads, and the numbers of units and cubes of kernels that go through elements.

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube that goes through elements.
pub const UNITS: usize = 256;

/// A tensor on the same device whose values are not set yet.
pub fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Enough cubes for a unit each; two dimensions, since one holds 65,535 on some devices.
pub fn cubes(units: usize) -> CubeCount {
    let cubes = units.div_ceil(UNITS);
    let rows = cubes.div_ceil(65_535);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}

/// Values of a load.
pub(super) fn vector_of(width: usize) -> usize {
    match width {
        width if width.is_multiple_of(4) => 4,
        width if width.is_multiple_of(2) => 2,
        _ => 1,
    }
}
