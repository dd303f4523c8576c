//! What a GPU computes: the operations of a backend made of CubeCL kernels, and what they read.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::DType;

use super::training::heads::HeadShape;

/// Operations of a backend made of CubeCL kernels.
#[backend_extension(Cube)]
pub(super) trait DeviceOps: Backend {
    /// See [`RopeOps::rope`](super::ops::RopeOps::rope), for queries and keys.
    fn device_apply_rope(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`PagedOps::kv_write`](super::ops::PagedOps::kv_write), for keys and values; always in place.
    fn device_kv_write(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        new_keys: FloatTensor<Self>,
        new_values: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`PagedOps::paged_attention`](super::ops::PagedOps::paged_attention).
    fn device_paged_attention(
        q: FloatTensor<Self>,
        #[extension_type] context: Context<Self>,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// See [`step_attention`](super::recorded::step_attention).
    fn device_step_attention(
        q: FloatTensor<Self>,
        #[extension_type] new: NewTokens<Self>,
        #[extension_type] context: Context<Self>,
        dtype: DType,
    ) -> FloatTensor<Self>;

    /// Writes `new` over the beginning of `old`, in place: all handles of `old` see it.
    fn device_overwrite(old: IntTensor<Self>, new: IntTensor<Self>) -> IntTensor<Self>;
}

/// Operations of a backend made of CubeCL kernels.
#[backend_extension(Cube)]
pub(super) trait TrainingOps: Backend {
    /// See [`forward`](super::training::forward).
    fn training_forward(
        qkv: FloatTensor<Self>,
        tiles: IntTensor<Self>,
        batch: Batch,
        heads: HeadShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`backward`](super::training::backward).
    fn training_backward(
        qkv: FloatTensor<Self>,
        #[extension_type] saved: SavedOutput<Self>,
        tiles: IntTensor<Self>,
        batch: Batch,
        heads: HeadShape,
    ) -> FloatTensor<Self>;

    /// Turns the queries and keys of rows `x` by their angles times `direction`, in place where the buffer is not shared.
    fn training_turn(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: HeadShape,
        direction: f32,
    ) -> FloatTensor<Self>;

    /// Turns the queries and keys of rows `x` after their norms.
    fn training_norm_turn(
        x: FloatTensor<Self>,
        #[extension_type] weights: HeadWeights<Self>,
        heads: HeadShape,
    ) -> FloatTensor<Self>;

    /// The gradient of [`training_norm_turn`](Self::training_norm_turn) with respect to `x`.
    fn training_norm_turn_back(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        #[extension_type] weights: HeadWeights<Self>,
        heads: HeadShape,
    ) -> FloatTensor<Self>;
}

/// The keys and values that the tokens of a step see.
#[derive(ExtensionType)]
pub(super) struct Context<B: Backend> {
    /// `[slots, kv_heads, head_dim]`.
    pub(super) keys: FloatTensor<B>,
    /// `[slots, kv_heads, head_dim]`.
    pub(super) values: FloatTensor<B>,
    /// The description of the step: [`indices`](super::cube::indices::indices) or a [`crate::DecodeStep`].
    pub(super) indices: IntTensor<B>,
    /// Tokens per block.
    pub(super) block_size: usize,
    /// Keys that a token sees, at most.
    pub(super) max_len: usize,
    /// Tiles of queries in the indices.
    pub(super) tiles: Tiles,
    /// Tiles of more queries, for [`attends`](super::cube::hopper::attends) of Hopper; where that is not so, the indices.
    pub(super) wide_tiles: IntTensor<B>,
    /// Whether `wide_tiles` are such tiles.
    pub(super) is_wide: bool,
}

/// What a step of one token per sequence brings along besides its queries.
#[derive(ExtensionType)]
pub(super) struct NewTokens<B: Backend> {
    /// Not rotated yet: `[tokens, kv_heads, head_dim]`.
    pub(super) keys: FloatTensor<B>,
    /// `[tokens, kv_heads, head_dim]`.
    pub(super) values: FloatTensor<B>,
    /// `[tokens, 1, head_dim / 2]`.
    pub(super) cos: FloatTensor<B>,
    /// `[tokens, 1, head_dim / 2]`.
    pub(super) sin: FloatTensor<B>,
}

/// What the forward has left, and the gradient of its output.
#[derive(ExtensionType)]
pub(super) struct SavedOutput<B: Backend> {
    /// `[tokens, heads * head_dim]`.
    pub(super) out: FloatTensor<B>,
    /// `[tokens, heads]`.
    pub(super) lse: FloatTensor<B>,
    /// `[tokens, heads * head_dim]`.
    pub(super) d_out: FloatTensor<B>,
}

/// What a head is multiplied with: weights of norms, cosines and sines, all f32.
#[derive(ExtensionType)]
pub(super) struct HeadWeights<B: Backend> {
    /// `[head_dim]`.
    pub(super) q: FloatTensor<B>,
    /// `[head_dim]`.
    pub(super) k: FloatTensor<B>,
    /// Added to the means of squares.
    pub(super) eps: f32,
    /// `[tokens, 1, head_dim / 2]`.
    pub(super) cos: FloatTensor<B>,
    /// `[tokens, 1, head_dim / 2]`.
    pub(super) sin: FloatTensor<B>,
}

/// How many tokens and tiles the documents have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    pub(super) num_tokens: usize,
    /// Tiles of the forward.
    pub(super) forward: usize,
    /// Tiles of the gradient of queries, and where they start.
    pub(super) queries: usize,
    pub(super) queries_at: usize,
    /// Tiles of the gradients of keys and values, and where they start.
    pub(super) keys: usize,
    pub(super) keys_at: usize,
}

/// Tiles of queries in the indices of a step: for each the first token and the number of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tiles {
    /// Where the tiles start.
    pub(super) at: usize,
    /// Number of tiles; 0 in a step of single tokens.
    pub(super) num: usize,
}

impl Tiles {
    pub(super) fn is_empty(&self) -> bool {
        self.num == 0
    }
}
