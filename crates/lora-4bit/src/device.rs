//! Where tensors are computed.

use burn::backend::DispatchDevice;
use burn::tensor::Device;

/// Whether tensors of `device` are computed on the CPU, inside or outside of an autodiff graph.
pub(crate) fn is_cpu(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}
