//! Plain twins of the fused operations: tensor ops only, differentiable, on every device.

use burn::tensor::{Bool, DType, IndexingUpdateOp, Tensor, TensorData};

use super::integers::token_tensor;
use crate::sampling::RowMask;

/// Logits `[rows, vocab]` with negative infinity for the tokens that may not come. A GPU has a kernel for it, a CPU applies a mask
/// to the logits that it samples from.
pub fn mask_logits(logits: Tensor<2>, masks: &[RowMask]) -> Tensor<2> {
    let [rows, vocab] = logits.dims();
    let mut forbidden = vec![false; rows * vocab];
    for RowMask { row, mask } in masks {
        let forbidden = &mut forbidden[row * vocab..][..vocab];
        let ids = (0..).zip(forbidden);
        ids.for_each(|(id, forbidden)| *forbidden = !mask.allows(id));
    }
    let forbidden = TensorData::new(forbidden, [rows, vocab]);
    let forbidden = Tensor::<2, Bool>::from_data(forbidden, &logits.device());
    logits.mask_fill(forbidden, f32::NEG_INFINITY)
}

/// See [`super::cross_entropy_of_rows`].
pub fn cross_entropy_of_rows(
    logits: Tensor<2>,
    targets: &[u32],
    scale: f64,
) -> (Tensor<2>, Tensor<2>) {
    let (device, dtype) = (logits.device(), logits.dtype());
    let logits = logits.cast(DType::F32);
    let targets = token_tensor(targets, &device).unsqueeze_dim::<2>(1); // [rows, 1]
    let max = logits.clone().max_dim(1); // [rows, 1]
    let chosen = logits.clone().gather(1, targets.clone()); // [rows, 1]
    let is_right = logits.clone().argmax(1).equal(targets.clone()).float(); // [rows, 1]
    let below = logits - max.clone(); // [rows, vocab]
    let exp = below.clone().exp(); // [rows, vocab]
    let sum = exp.clone().sum_dim(1); // [rows, 1]
    let entropies = sum.clone().log() - (exp.clone() * below).sum_dim(1) / sum.clone(); // [rows, 1]
    let losses = sum.clone().log() + max - chosen; // [rows, 1]
    let hit = Tensor::full(targets.dims(), -scale, (&device, DType::F32)); // [rows, 1]
    let softmax = (exp / sum).mul_scalar(scale); // [rows, vocab]
    let gradient = softmax.scatter(1, targets, hit, IndexingUpdateOp::Add);
    let known = Tensor::cat(vec![losses, is_right.cast(DType::F32), entropies], 1);
    (known, gradient.cast(dtype))
}

/// See [`super::cross_entropy`].
pub fn cross_entropy(logits: Tensor<2>, targets: &[u32], scale: f64) -> (Tensor<1>, Tensor<2>) {
    let (known, gradient) = cross_entropy_of_rows(logits, targets, scale);
    (known.sum_dim(0).squeeze_dim::<1>(0), gradient)
}
