//! What a device can do, as far as the plan depends on it.

use std::sync::OnceLock;

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::features::{MmaConfig, Plane, Tma};
use cubecl::ir::{ElemType, FloatKind};

use crate::kernels::plan::GpuFeatures;
use crate::kernels::tile::PLANE;

/// What a device can do; `None` for a CPU, and inside of an autodiff graph.
pub(in super::super) fn features_of(device: &Device) -> Option<GpuFeatures> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(of_client(&device.client())),
        _ => None,
    }
}

/// Whether kernels are compiled by NVRTC.
#[cfg(feature = "cuda")]
pub(in super::super) fn is_cuda(device: &Device) -> bool {
    use burn_cubecl::CubeDevice;
    matches!(
        device.as_dispatch(),
        DispatchDevice::Cube(CubeDevice::Cuda(_))
    )
}

/// What the device of a tensor can do.
pub(super) fn features(x: &CubeTensor) -> GpuFeatures {
    of_client(&x.client)
}

pub(super) fn of_client(client: &Client) -> GpuFeatures {
    let hardware = &client.properties().hardware;
    GpuFeatures {
        plane_operations: plane_operations(client),
        plane_sizes: [hardware.plane_size_min, hardware.plane_size_max].map(|size| size as usize),
        bf16_tensor_cores: has_tensor_cores(client, FloatKind::BF16),
        f16_tensor_cores: has_tensor_cores(client, FloatKind::F16),
        shared_memory: hardware.max_shared_memory_size,
        max_bindings: hardware.max_bindings as usize,
    }
}

/// Whether a device is a GPU, outside of an autodiff graph, on which units of a plane (a warp) can add up their values.
pub(in super::super) fn has_plane_operations(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => plane_operations(&device.client()),
        _ => false,
    }
}

/// Whether kernels take a tensor: see [`has_plane_operations`].
pub(in super::super) fn has_kernels(x: &Tensor<2>) -> bool {
    has_plane_operations(&x.device())
}

/// Whether a part of a tensor that begins and ends at multiples of so many bytes is a view of it. Of other parts CubeCL makes copies.
pub(in super::super) fn has_views_at(device: &Device, bytes: u64) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => {
            bytes.is_multiple_of(device.client().properties().memory.alignment)
        }
        _ => false,
    }
}

/// CubeCL doesn't use plane operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests run on
/// it, so a variable can say otherwise.
fn plane_operations(client: &Client) -> bool {
    static ARE_ASSUMED: OnceLock<bool> = OnceLock::new();
    client.features().plane.contains(Plane::Ops)
        || *ARE_ASSUMED.get_or_init(|| std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some())
}

/// Whether the device has `wgmma`: NVIDIA's Hopper has, and of its successors, which have TMA too, none. A variable takes it away, so
/// that tests and measurements on Hopper reach what other cards run.
pub(super) fn has_wgmma(client: &Client) -> bool {
    static IS_HIDDEN: OnceLock<bool> = OnceLock::new();
    let features = client.features();
    features.tma.contains(Tma::Base)
        && features.matmul.scaled_mma.is_empty()
        && !*IS_HIDDEN.get_or_init(|| std::env::var_os("ASSUME_NO_WGMMA").is_some())
}

/// Whether products in bf16 are possible at all.
pub(super) fn supports_bf16(x: &CubeTensor) -> bool {
    x.client.properties().supports_type(FloatKind::BF16)
}

/// Whether tensor cores multiply values of a type of 16 bits, with all that the kernels use besides.
fn has_tensor_cores(client: &Client, kind: FloatKind) -> bool {
    let config = MmaConfig {
        a_type: ElemType::Float(kind),
        b_type: ElemType::Float(kind),
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    let (hardware, features) = (&client.properties().hardware, client.features());
    features.matmul.mma.contains(&config)
        && features.matmul.ldmatrix.contains(&ElemType::Float(kind))
        && features.copy_async
        && features.device_memory_scope
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
}

/// The first GPU that is compiled in.
#[cfg(test)]
pub(in super::super) fn first_gpu() -> Device {
    use burn::tensor::DeviceType;
    let types: &[DeviceType] = &[
        #[cfg(feature = "cuda")]
        DeviceType::Cuda,
        #[cfg(feature = "wgpu")]
        DeviceType::Wgpu,
    ];
    let mut devices = types.iter().cloned().flat_map(Device::enumerate);
    devices.next().expect("a CUDA or WebGPU device")
}
