//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU).
//!
//! There are no own kernels for them: every operation runs as its naive twin, which casts or dequantizes the whole
//! weight on the device and multiplies with burn's matmul.

use burn::backend::Cube;

use super::LinearOps;

impl LinearOps for Cube {}
