//! RMSNorm as an argument of operations.

use burn::tensor::Tensor;

/// A root-mean-square norm (arXiv 1910.07467) before a layer.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// f32: `[dim]`.
    pub weight: &'a Tensor<1>,
    /// Added to the mean square.
    pub eps: f64,
}
