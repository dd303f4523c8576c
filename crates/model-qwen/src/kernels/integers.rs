//! Integers as tensors.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Integers as a tensor, `[values]`.
pub(super) fn ints(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
}

/// Token ids as a tensor for `select`, `[tokens]`.
pub(crate) fn token_tensor(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids = tokens.iter().map(|&id| id as i32).collect();
    ints(ids, &device.clone().inner())
}
