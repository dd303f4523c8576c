//! Attention of a training step that is written by hand: the operations without a graph, each with its gradient. Their public
//! face is [`TrainingAttention`](crate::TrainingAttention).
//!
//! | operation | computes | twin |
//! |---|---|---|
//! | `rotate` | queries and keys turned by their positions, after their head norms | [`naive::training::rotate`] |
//! | `rotate_backward` | its gradient | [`naive::training::rotate_backward`] |
//! | `forward` | causal attention within documents, and the log-sum-exp of the scores | [`naive::training::forward`] |
//! | `backward` | its gradient | [`naive::training::backward`] |

#[cfg(feature = "gpu")]
pub(super) mod device;
#[cfg(not(feature = "gpu"))]
#[path = "training/no_device.rs"]
mod device;

use std::sync::{Arc, OnceLock};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Bool, DType, Device, Tensor};
use tracing::trace_span;

use self::device::Tables;
use super::gather::{Fill, PaddedRows};
use super::{cpu, is_untracked_cpu, naive};
use crate::rotary::Rotary;

/// Rows of a tile of the gradients.
pub(crate) const ROWS: usize = 64;
/// Cubes from which the gradients of keys and values are not split further.
const ENOUGH_CUBES: usize = 512;

/// In how many parts the query heads of a group are taken, so that enough cubes share the gradients of keys and values.
pub(crate) fn parts(cubes: usize, group: usize) -> usize {
    let divisors = (1..=group).filter(|parts| group.is_multiple_of(*parts));
    let mut enough = divisors.skip_while(|parts| cubes * parts < ENOUGH_CUBES);
    enough.next().unwrap_or(group)
}

/// Keys of a cube of the gradients on Hopper.
pub(crate) const WIDE_ROWS: usize = 128;
/// Cubes that keep all multiprocessors busy, where each has one, to the end.
const ENOUGH_WIDE_CUBES: usize = 384;
/// Parts of the rows that see a key, at most: each has gradients of its own in memory.
const MAX_WIDE_PARTS: usize = 8;

/// The same on Hopper, where parts are of the rows of all query heads of a group.
pub(crate) fn wide_parts(cubes: usize) -> usize {
    (ENOUGH_WIDE_CUBES / cubes.max(1)).clamp(1, MAX_WIDE_PARTS)
}

/// Attention on the plain CPU backend, of tokens `[tokens, heads or kv_heads, head_dim]` in f32.
#[backend_extension(Flex)]
pub(super) trait HostOps: Backend {
    /// Output `[tokens, heads, head_dim]` and log-sum-exp `[tokens, heads, 1]`.
    fn host_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of queries, keys and values.
    fn host_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        d_out: FloatTensor<Self>,
        lengths: Arc<[usize]>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
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
    pub(super) const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Documents of a packed batch, and heads, as the kernels take them. A plan serves one device.
#[derive(Clone, Debug)]
pub struct TrainingPlan {
    lengths: Arc<[usize]>,
    shape: HeadShape,
    /// For the kernels of a GPU; `None` where the twins run.
    tables: Arc<OnceLock<Option<Tables>>>,
    /// For the twins; the rows are `None` if all documents have the same length.
    padding: Arc<OnceLock<Option<PaddedRows>>>,
    hidden: Arc<OnceLock<Tensor<3, Bool>>>,
}

impl TrainingPlan {
    /// Documents of these lengths, in tokens. Empty documents are skipped.
    ///
    /// # Panics
    ///
    /// If `heads` is not a multiple of `kv_heads` or `head_dim` is odd.
    pub fn new(lengths: &[usize], shape: HeadShape) -> Self {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
        } = shape;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "{heads} query heads are no multiple of {kv_heads} key/value heads"
        );
        assert!(
            head_dim > 0 && head_dim.is_multiple_of(2),
            "head_dim {head_dim} is odd or 0"
        );
        Self {
            lengths: lengths.iter().copied().filter(|&len| len > 0).collect(),
            shape,
            tables: Arc::default(),
            padding: Arc::default(),
            hidden: Arc::default(),
        }
    }

    /// Lengths of the documents, in tokens; none is zero.
    pub fn lengths(&self) -> &Arc<[usize]> {
        &self.lengths
    }

    /// Tokens of all documents.
    pub fn num_tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        self.shape.heads
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// Uploads what the kernels of a GPU read, where they run.
    pub(crate) fn upload(&self, device: &Device) {
        self.tables(device);
    }

    /// For the kernels of a GPU, where they run.
    fn tables(&self, device: &Device) -> Option<&Tables> {
        let tables = || Tables::new(self, &plain(device));
        self.tables.get_or_init(tables).as_ref()
    }

    pub(super) fn max_len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    pub(super) fn padding(&self, device: &Device) -> Option<&PaddedRows> {
        // Sums over the rows of a document need zeros behind it: the twins put a row of zeros behind all documents.
        let rows = || PaddedRows::new(&self.lengths, Fill::RowBehind, &plain(device));
        self.padding.get_or_init(rows).as_ref()
    }

    /// True above the diagonal, `[1, max_len, max_len]`.
    pub(super) fn hidden(&self, device: &Device) -> &Tensor<3, Bool> {
        self.hidden.get_or_init(|| {
            let len = self.max_len();
            let hidden = Tensor::<2, Bool>::tril_mask([len, len], 0, &plain(device)); // [max_len, max_len]
            hidden.reshape([1, len, len]) // [1, max_len, max_len]
        })
    }

    /// Elements of a row of queries, keys and values.
    fn row(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    fn assert_rows(&self, qkv: &Tensor<2>) {
        let ([tokens, row], num_tokens) = (qkv.dims(), self.num_tokens());
        assert_eq!(row, self.row(), "elements of queries, keys and values");
        assert!(
            num_tokens <= tokens,
            "documents of {num_tokens} tokens in {tokens} rows"
        );
    }

    fn assert_angles(&self, tokens: usize, rotary: &Rotary) {
        let angles = [tokens, 1, self.shape.head_dim / 2];
        assert_eq!(rotary.cos.dims(), angles, "cosines");
        assert_eq!(rotary.sin.dims(), angles, "sines");
    }
}

/// `device` outside of autodiff graphs.
fn plain(device: &Device) -> Device {
    device.clone().without_autodiff()
}

/// See [`TrainingAttention::rotate`](crate::TrainingAttention::rotate).
pub(crate) fn rotate(
    qkv: Tensor<2>,
    norms: Option<HeadNorms<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    let _span = trace_span!("rotate").entered();
    plan.assert_rows(&qkv);
    plan.assert_angles(qkv.dims()[0], rotary);
    if device::turns(&qkv, plan) {
        return device::rotate(qkv, norms, rotary, plan);
    }
    naive::training::rotate(qkv, norms, rotary, plan)
}

/// See [`TrainingAttention::rotate_backward`](crate::TrainingAttention::rotate_backward).
pub(crate) fn rotate_backward(
    d: Tensor<2>,
    head_norms: Option<HeadNormInput<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    let _span = trace_span!("rotate_backward").entered();
    plan.assert_rows(&d);
    plan.assert_angles(d.dims()[0], rotary);
    if let Some(HeadNormInput { qkv, .. }) = &head_norms {
        assert_eq!(qkv.dims(), d.dims(), "queries, keys and values");
    }
    if device::turns(&d, plan) {
        return device::rotate_backward(d, head_norms, rotary, plan);
    }
    naive::training::rotate_backward(d, head_norms, rotary, plan)
}

/// See [`TrainingAttention::forward`](crate::TrainingAttention::forward).
pub(crate) fn forward(qkv: Tensor<2>, plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
    let _span = trace_span!("training_forward").entered();
    plan.assert_rows(&qkv);
    match plan.tables(&qkv.device()) {
        Some(tables) if qkv.dtype() == DType::BF16 => tables.forward(qkv, plan),
        _ if on_host(&qkv, plan) => host_forward(qkv, plan),
        _ => naive::training::forward(qkv, plan),
    }
}

/// See [`TrainingAttention::backward`](crate::TrainingAttention::backward).
pub(crate) fn backward(
    qkv: Tensor<2>,
    [out, lse, d_out]: [Tensor<2>; 3],
    plan: &TrainingPlan,
) -> Tensor<2> {
    let _span = trace_span!("training_backward").entered();
    plan.assert_rows(&qkv);
    let [tokens, _] = qkv.dims();
    let row = plan.heads() * plan.head_dim();
    assert_eq!(out.dims(), [tokens, row], "output");
    assert_eq!(d_out.dims(), [tokens, row], "gradient of the output");
    assert_eq!(lse.dims(), [tokens, plan.heads()], "log-sum-exp");
    let saved = [out, lse, d_out];
    match plan.tables(&qkv.device()) {
        Some(tables) if qkv.dtype() == DType::BF16 => tables.backward(qkv, saved, plan),
        _ if on_host(&qkv, plan) => host_backward(qkv, saved, plan),
        _ => naive::training::backward(qkv, saved, plan),
    }
}

/// Whether the kernels of the plain CPU backend take `qkv`.
fn on_host(qkv: &Tensor<2>, plan: &TrainingPlan) -> bool {
    is_untracked_cpu(qkv) && cpu::supports(plan.head_dim()) && plan.num_tokens() > 0
}

fn host_forward(qkv: Tensor<2>, plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
    let (dtype, [tokens, _]) = (qkv.dtype(), qkv.dims());
    let (heads, row) = (plan.heads(), plan.heads() * plan.head_dim());
    let [q, k, v] = naive::training::split(documents(qkv, plan), plan).map(Tensor::into_dispatch);
    let (out, lse) = Dispatch::host_forward(q, k, v, plan.lengths().clone());
    let (out, lse) = (
        Tensor::<3>::from_dispatch(out), // [num_tokens, heads, head_dim]
        Tensor::<3>::from_dispatch(lse), // [num_tokens, heads, 1]
    );
    let out = out.reshape([plan.num_tokens(), row]).cast(dtype); // [num_tokens, heads * head_dim]
    let lse = lse.reshape([plan.num_tokens(), heads]); // [num_tokens, heads]
    (padded(out, tokens), padded(lse, tokens)) // [tokens, heads * head_dim], [tokens, heads]
}

fn host_backward(qkv: Tensor<2>, saved: [Tensor<2>; 3], plan: &TrainingPlan) -> Tensor<2> {
    let (dtype, [tokens, _]) = (qkv.dtype(), qkv.dims());
    let [q, k, v] = naive::training::split(documents(qkv, plan), plan).map(Tensor::into_dispatch);
    let [out, lse, d_out] = saved.map(|x| {
        let x = documents(x, plan).cast(DType::F32); // [num_tokens, ..]
        x.reshape([plan.num_tokens() as i32, plan.heads() as i32, -1]) // [num_tokens, heads, head_dim or 1]
            .into_dispatch()
    });
    let lengths = plan.lengths().clone();
    let (dq, dk, dv) = Dispatch::host_backward(q, k, v, out, lse, d_out, lengths);
    let gradients = [dq, dk, dv].map(Tensor::from_dispatch); // [num_tokens, heads or kv_heads, head_dim]
    padded(naive::training::join(gradients, dtype), tokens) // [tokens, (heads + 2 * kv_heads) * head_dim]
}

/// The rows of documents.
fn documents(x: Tensor<2>, plan: &TrainingPlan) -> Tensor<2> {
    x.narrow(0, 0, plan.num_tokens()) // [num_tokens, columns]
}

/// Rows of documents, with rows of zeros behind them.
fn padded(x: Tensor<2>, tokens: usize) -> Tensor<2> {
    let [num, columns] = x.dims();
    if num == tokens {
        return x;
    }
    let zeros = Tensor::<2>::zeros([tokens - num, columns], &x.device()).cast(x.dtype()); // [tokens - num, columns]
    Tensor::cat(vec![x, zeros], 0) // [tokens, columns]
}
