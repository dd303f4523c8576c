//! What a device is able to compute.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};
use cubecl::ir::features::Plane;

/// Whether the kernels can run where a tensor lives.
pub(in crate::kernels) fn supports<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && has_plane_operations(&x.device())
}

/// Whether the units of a plane can compute something together.
pub(in crate::kernels) fn has_plane_operations(device: &Device) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    // CubeCL doesn't use plane operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests
    // run on it, so that a variable can say otherwise.
    device.client().features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
}

/// Whether a device is a card of NVIDIA, whose sines are exact for large numbers.
pub(in crate::kernels) fn has_exact_sines(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return matches!(
        device.as_dispatch(),
        DispatchDevice::Cube(burn_cubecl::CubeDevice::Cuda(_))
    );
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        false
    }
}
