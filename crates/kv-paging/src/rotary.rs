//! The angles of rotary position embedding (RoPE, arXiv:2104.09864).

use burn::tensor::Tensor;

/// Cosines and sines of the angles of a step's tokens, computed once and shared by all layers.
///
/// Dimension `i` of a head is paired with dimension `i + head_dim / 2`; a token turns both by its angle `i`. A scale that
/// belongs to the embedding (YaRN) is part of both tensors.
///
/// # Shapes
///
/// Both `[tokens, 1, head_dim / 2]`, f32: the middle dimension broadcasts over heads.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Cosines of the angles.
    pub cos: Tensor<3>,
    /// Sines of the angles.
    pub sin: Tensor<3>,
}
