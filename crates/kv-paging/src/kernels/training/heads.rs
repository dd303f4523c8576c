//! Heads of a layer, and their norms.

use burn::tensor::Tensor;

/// Heads of a layer. The kernels of a GPU are compiled for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

#[cfg(feature = "gpu")]
impl HeadShape {
    /// Query heads per key/value head.
    pub(in crate::kernels) const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// RMSNorm of each query and key head (Qwen3).
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a> {
    /// Weight of the query heads, `[head_dim]`.
    pub q: &'a Tensor<1>,
    /// Weight of the key heads, `[head_dim]`.
    pub k: &'a Tensor<1>,
    /// Added to the mean of the squares.
    pub eps: f64,
}

/// Head norms, and the input that their gradient needs.
#[derive(Clone, Debug)]
pub struct HeadNormInput<'a> {
    /// Queries, keys and values before the norms, `[tokens, (heads + 2 * kv_heads) * head_dim]`.
    pub qkv: Tensor<2>,
    /// The norms.
    pub norms: HeadNorms<'a>,
}
