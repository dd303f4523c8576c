//! What only a GPU does.

mod steps;
mod training;

use burn::tensor::{DType, Device};

/// The GPU that the feature is for.
fn gpu() -> Device {
    let mut devices = super::devices();
    let gpu = devices.find(|device| *device != Device::flex());
    gpu.expect("a CUDA or WebGPU device")
}

/// Whether the GPU has the type. Only WebGPU may lack bf16; on CUDA a test must not pass without having run.
fn has_dtype(gpu: &Device, dtype: DType) -> bool {
    let has = gpu.supports_dtype(dtype);
    let may_lack = dtype == DType::BF16 && cfg!(not(feature = "cuda"));
    assert!(has || may_lack, "{gpu:?} has no {dtype:?}");
    if !has {
        eprintln!("skipped: {gpu:?} has no {dtype:?}");
    }
    has
}

/// Refuses a test that has checked nothing.
fn assert_ran(num_checked: usize, gpu: &Device) {
    assert!(
        num_checked > 0,
        "{gpu:?} takes none of these steps; Mesa's needs ASSUME_PLANE_OPERATIONS=1"
    );
}
