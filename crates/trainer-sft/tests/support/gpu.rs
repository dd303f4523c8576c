//! The GPU of the tests: the first one of CUDA, or of WebGPU (Mesa's lavapipe, too).

use burn::tensor::Device;

pub(crate) fn gpu() -> Device {
    let name = if cfg!(feature = "cuda") {
        "cuda"
    } else {
        "wgpu"
    };
    model_qwen::parse_device(name).unwrap()
}
