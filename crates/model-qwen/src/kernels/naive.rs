//! Plain twins of the fused operations: tensor ops only, differentiable, on every device.

use burn::tensor::{DType, IndexingUpdateOp, Tensor};

use super::token_tensor;

/// See [`super::cross_entropy_of_rows`].
pub fn cross_entropy_of_rows(
    logits: Tensor<2>,
    targets: &[u32],
    scale: f64,
) -> (Tensor<1>, Tensor<2>) {
    let (device, dtype) = (logits.device(), logits.dtype());
    let logits = logits.cast(DType::F32);
    let targets = token_tensor(targets, &device).unsqueeze_dim::<2>(1); // [rows, 1]
    let max = logits.clone().max_dim(1); // [rows, 1]
    let chosen = logits.clone().gather(1, targets.clone()); // [rows, 1]
    let exp = (logits - max.clone()).exp(); // [rows, vocab]
    let sum = exp.clone().sum_dim(1); // [rows, 1]
    let losses = sum.clone().log() + max - chosen; // [rows, 1]
    let hit = Tensor::full(targets.dims(), -scale, (&device, DType::F32)); // [rows, 1]
    let softmax = (exp / sum).mul_scalar(scale); // [rows, vocab]
    let gradient = softmax.scatter(1, targets, hit, IndexingUpdateOp::Add);
    (losses.squeeze_dim::<1>(1), gradient.cast(dtype))
}

/// See [`super::cross_entropy`].
pub fn cross_entropy(logits: Tensor<2>, targets: &[u32], scale: f64) -> (Tensor<1>, Tensor<2>) {
    let predictions = predictions(&logits, targets); // [2]
    let (losses, gradient) = cross_entropy_of_rows(logits, targets, scale);
    (Tensor::cat(vec![losses.sum(), predictions], 0), gradient)
}

/// Rows that [`predictions`] takes at a time: it holds a few tensors of their size.
const ROWS: usize = 64;

/// See [`super::predictions`].
pub fn predictions(logits: &Tensor<2>, targets: &[u32]) -> Tensor<1> {
    let device = logits.device();
    let mut sums = Tensor::zeros([2], (&device, DType::F32));
    for (index, targets) in targets.chunks(ROWS).enumerate() {
        let logits = logits.clone().narrow(0, index * ROWS, targets.len());
        let logits = logits.cast(DType::F32); // [rows, vocab]
        let targets = token_tensor(targets, &device).unsqueeze_dim::<2>(1); // [rows, 1]
        let max = logits.clone().max_dim(1); // [rows, 1]
        let right = logits.clone().argmax(1).equal(targets).float().sum(); // [1]
        let below = logits - max; // [rows, vocab]
        let exp = below.clone().exp(); // [rows, vocab]
        let sum = exp.clone().sum_dim(1); // [rows, 1]
        let entropy = (sum.clone().log() - (exp * below).sum_dim(1) / sum).sum(); // [1]
        sums = sums + Tensor::cat(vec![right.cast(DType::F32), entropy], 0);
    }
    sums
}
