//! Where tensors are computed.

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Tensor};

/// Whether tensors of `device` are computed on the CPU, inside or outside of an autodiff graph.
pub fn is_cpu(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether a tensor is on the CPU and in no autodiff graph: its values lie in this process's memory.
pub fn is_untracked_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether the CPU's kernels with gradients take a tensor: on the CPU, f32. It may be part of an autodiff graph.
pub fn is_f32_on_cpu<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_cpu(&x.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_a_graph_are_on_the_cpu_but_not_untracked() {
        let x = Tensor::<1>::ones([2], (&Device::flex(), DType::F32));
        assert!(is_untracked_cpu(&x) && is_f32_on_cpu(&x));
        assert!(!is_f32_on_cpu(&x.clone().cast(DType::BF16)));
        let x = x.autodiff();
        assert!(!is_untracked_cpu(&x) && is_f32_on_cpu(&x));
    }
}
