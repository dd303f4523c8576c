//! Plain twins of the fused operations: tensor ops only, differentiable, on every device.

use burn::tensor::{DType, IndexingUpdateOp, Tensor};

use crate::model::token_tensor;
use crate::rotary::Rotary;

/// See [`super::apply_rotary`].
pub fn apply_rotary(x: Tensor<3>, rotary: &Rotary) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let first = x.clone().narrow(2, 0, half); // [tokens, heads, head_dim / 2]
    let second = x.narrow(2, half, half); // [tokens, heads, head_dim / 2]
    let (cos, sin) = (rotary.cos.clone(), rotary.sin.clone()); // [tokens, 1, head_dim / 2]
    let rotated_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let rotated_second = second * cos + first * sin;
    Tensor::cat(vec![rotated_first, rotated_second], 2) // [tokens, heads, head_dim]
}

/// See [`super::cross_entropy`].
pub fn cross_entropy(logits: Tensor<2>, targets: &[u32], scale: f64) -> (Tensor<1>, Tensor<2>) {
    let device = logits.device();
    let targets = token_tensor(targets, &device).unsqueeze_dim::<2>(1); // [rows, 1]
    let max = logits.clone().max_dim(1); // [rows, 1]
    let chosen = logits.clone().gather(1, targets.clone()); // [rows, 1]
    let exp = (logits - max.clone()).exp(); // [rows, vocab]
    let sum = exp.clone().sum_dim(1); // [rows, 1]
    let loss = (sum.clone().log() + max - chosen).sum(); // [1]
    let hit = Tensor::full(targets.dims(), -scale, (&device, DType::F32)); // [rows, 1]
    let softmax = (exp / sum).mul_scalar(scale); // [rows, vocab]
    (
        loss,
        softmax.scatter(1, targets, hit, IndexingUpdateOp::Add),
    )
}
