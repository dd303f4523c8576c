//! Attention of a training step that is written by hand: no autodiff graph, no tensor of `[tokens, tokens]` on devices
//! that have kernels.

use burn::tensor::{Device, Tensor};

use crate::kernels::training::{self, HeadNormInput, HeadNorms, HeadShape, TrainingPlan, parts};
use crate::rotary::Rotary;

/// Documents of a packed batch, and heads. One serves all layers of a step.
///
/// The rows behind the documents are padding: attention and its gradient are zero in them. Tensors are outside of autodiff
/// graphs, and on the device that the batch was made for.
///
/// ```
/// use burn::tensor::{DType, Device, Distribution, Tensor};
/// use kv_paging::{HeadShape, TrainingAttention};
///
/// let device = Device::flex();
/// let shape = HeadShape { heads: 4, kv_heads: 2, head_dim: 16 };
/// // Two documents in ten rows.
/// let attention = TrainingAttention::new(&[5, 3], shape, &device);
/// let qkv = Tensor::<2>::random([10, 128], Distribution::Default, (&device, DType::F32));
/// let (out, lse) = attention.forward(qkv.clone());
/// assert_eq!((out.dims(), lse.dims()), ([10, 64], [10, 4]));
/// let d_qkv = attention.backward(qkv, out.clone(), lse, out);
/// assert_eq!(d_qkv.dims(), [10, 128]);
/// ```
#[derive(Clone, Debug)]
pub struct TrainingAttention {
    plan: TrainingPlan,
}

impl TrainingAttention {
    /// Documents of these lengths, in tokens, packed one after another. Empty documents are skipped.
    ///
    /// # Panics
    ///
    /// If `heads` is not a multiple of `kv_heads` or `head_dim` is odd.
    pub fn new(lengths: &[usize], shape: HeadShape, device: &Device) -> Self {
        let plan = TrainingPlan::new(lengths, shape);
        plan.upload(device);
        Self { plan }
    }

    /// In how many parts a GPU sums the gradients of keys and values of a document of so many tokens, at most, each part in f32.
    #[must_use]
    pub fn gradient_parts(tokens: usize, heads: usize, kv_heads: usize) -> usize {
        let cubes = |rows| tokens.div_ceil(rows) * kv_heads;
        let wide = parts::wide_parts(cubes(parts::WIDE_ROWS));
        parts::parts(cubes(parts::ROWS), heads / kv_heads).max(wide)
    }

    /// The documents as the kernels take them.
    pub fn plan(&self) -> &TrainingPlan {
        &self.plan
    }

    /// Turns queries and keys by the angles of their positions: dimension `i` of a head together with dimension
    /// `i + head_dim / 2`. With head norms (Qwen3), RMSNorm of each head comes first. Values stay as they are.
    ///
    /// # Shapes
    ///
    /// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`, bf16 or f32: rows of queries, keys and values side by
    ///   side, as a fused projection leaves them; the result has the same shape and type
    /// - `rotary`: the angles of all rows, `[tokens, 1, head_dim / 2]`
    ///
    /// # Panics
    ///
    /// If the shapes differ from these, or the documents have more tokens than `qkv` has rows.
    pub fn rotate(
        &self,
        qkv: Tensor<2>,
        norms: Option<HeadNorms<'_>>,
        rotary: &Rotary,
    ) -> Tensor<2> {
        training::rotate(qkv, norms, rotary, &self.plan)
    }

    /// The gradient of [`rotate`](Self::rotate) with respect to its input, from the gradient `d` of its result.
    /// Only head norms need that input.
    ///
    /// # Shapes
    ///
    /// - `d`: `[tokens, (heads + 2 * kv_heads) * head_dim]`; the result has the shape and type of `d`
    /// - `rotary`: `[tokens, 1, head_dim / 2]`
    ///
    /// # Panics
    ///
    /// As [`rotate`](Self::rotate).
    pub fn rotate_backward(
        &self,
        d: Tensor<2>,
        head_norms: Option<HeadNormInput<'_>>,
        rotary: &Rotary,
    ) -> Tensor<2> {
        training::rotate_backward(d, head_norms, rotary, &self.plan)
    }

    /// Causal attention within documents, of rotated `qkv`. Scores are scaled by `1/sqrt(head_dim)`; query head `h` reads
    /// key/value head `h / (heads / kv_heads)`. Returns the output and the log-sum-exp of each row's scaled scores
    /// (natural logarithm), which [`backward`](Self::backward) needs.
    ///
    /// # Shapes
    ///
    /// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`, bf16 or f32
    /// - returns `[tokens, heads * head_dim]` of the same type, and `[tokens, heads]` in f32; rows behind the documents
    ///   are zero
    ///
    /// # Panics
    ///
    /// If the shape differs from this, or the documents have more tokens than `qkv` has rows.
    pub fn forward(&self, qkv: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        training::forward(qkv, &self.plan)
    }

    /// The gradient of [`forward`](Self::forward) with respect to `qkv`, from its input and results and the gradient
    /// `d_out` of its output. Sums are taken in one order: the same input gives the same bits.
    ///
    /// # Shapes
    ///
    /// - `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`; the result has the same shape and type
    /// - `out`, `d_out`: `[tokens, heads * head_dim]` of the same type; `lse`: `[tokens, heads]` in f32
    ///
    /// # Panics
    ///
    /// If the shapes differ from these.
    pub fn backward(
        &self,
        qkv: Tensor<2>,
        out: Tensor<2>,
        lse: Tensor<2>,
        d_out: Tensor<2>,
    ) -> Tensor<2> {
        training::backward(qkv, [out, lse, d_out], &self.plan)
    }
}
