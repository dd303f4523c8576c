//! What the devices of this machine can do, as the plan asks for it.

use burn::tensor::Device;

use super::plan::{CpuFeatures, Features};

impl Features {
    /// What a device can do, outside of autodiff graphs.
    pub fn of(device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        #[cfg(feature = "gpu")]
        if let Some(gpu) = super::cube::features::features_of(&device) {
            return Self::Gpu(gpu);
        }
        let _ = device;
        Self::Cpu(CpuFeatures::get())
    }
}

impl CpuFeatures {
    /// What this CPU can do, within the limit that `LORA_4BIT_SIMD` sets.
    pub fn get() -> Self {
        super::cpu::features()
    }
}
