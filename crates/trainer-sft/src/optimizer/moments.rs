//! The moments of a parameter.

use burn::tensor::Tensor;

/// Running means of one parameter, both `[numel]` in f32.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean of the gradients.
    pub mean: Tensor<1>,
    /// Mean of the squared gradients.
    pub variance: Tensor<1>,
}
