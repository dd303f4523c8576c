//! Which tensors are on the CPU.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor};

/// Whether a tensor is on the CPU and in no autodiff graph.
pub(super) fn is_untracked_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether a tensor is on the CPU, f32. It may be part of an autodiff graph.
pub(super) fn is_f32_on_cpu(x: &Tensor<3>) -> bool {
    let device = x.device().without_autodiff();
    x.dtype() == DType::F32 && matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}
