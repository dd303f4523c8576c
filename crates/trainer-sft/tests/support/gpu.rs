//! The GPU of the tests: the first one of CUDA, or of WebGPU (Mesa's lavapipe, too).

use burn::tensor::{Device, DeviceType};

pub(crate) fn gpu() -> Device {
    let types: &[DeviceType] = &[
        #[cfg(feature = "cuda")]
        DeviceType::Cuda,
        #[cfg(feature = "wgpu")]
        DeviceType::Wgpu,
    ];
    let mut devices = types.iter().cloned().flat_map(Device::enumerate);
    devices.next().expect("a CUDA or WebGPU device")
}
