//! Attention of a training step on a GPU, outside of autodiff graphs.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, DispatchDevice, ExtensionType, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};

use super::{HeadNormInput, HeadNorms, HeadShape, TrainingPlan};
use crate::kernels::cube::training as cube;
use crate::rotary::Rotary;

/// Operations of a backend made of CubeCL kernels.
#[backend_extension(Cube)]
pub(in crate::kernels) trait TrainingOps: Backend {
    /// See [`forward`](super::forward).
    fn training_forward(
        qkv: FloatTensor<Self>,
        tiles: IntTensor<Self>,
        batch: Batch,
        heads: HeadShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`backward`](super::backward).
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

/// What the forward has left, and the gradient of its output.
#[derive(ExtensionType)]
pub(in crate::kernels) struct SavedOutput<B: Backend> {
    /// `[tokens, heads * head_dim]`.
    pub(in crate::kernels) out: FloatTensor<B>,
    /// `[tokens, heads]`.
    pub(in crate::kernels) lse: FloatTensor<B>,
    /// `[tokens, heads * head_dim]`.
    pub(in crate::kernels) d_out: FloatTensor<B>,
}

/// What a head is multiplied with: weights of norms, cosines and sines, all f32.
#[derive(ExtensionType)]
pub(in crate::kernels) struct HeadWeights<B: Backend> {
    /// `[head_dim]`.
    pub(in crate::kernels) q: FloatTensor<B>,
    /// `[head_dim]`.
    pub(in crate::kernels) k: FloatTensor<B>,
    /// Added to the means of squares.
    pub(in crate::kernels) eps: f32,
    /// `[tokens, 1, head_dim / 2]`.
    pub(in crate::kernels) cos: FloatTensor<B>,
    /// `[tokens, 1, head_dim / 2]`.
    pub(in crate::kernels) sin: FloatTensor<B>,
}

/// How many tokens and tiles the documents have.
#[derive(Clone, Copy, Debug)]
pub(in crate::kernels) struct Batch {
    pub(in crate::kernels) num_tokens: usize,
    /// Tiles of the forward.
    pub(in crate::kernels) forward: usize,
    /// Tiles of the gradient of queries, and where they start.
    pub(in crate::kernels) queries: usize,
    pub(in crate::kernels) queries_at: usize,
    /// Tiles of the gradients of keys and values, and where they start.
    pub(in crate::kernels) keys: usize,
    pub(in crate::kernels) keys_at: usize,
}

/// The tiles of a batch, on the device.
#[derive(Debug)]
pub(super) struct Tables {
    list: Tensor<1, Int>,
    batch: Batch,
}

impl Tables {
    /// `None` where the kernels don't run; then the twins do.
    pub(super) fn new(plan: &TrainingPlan, device: &Device) -> Option<Self> {
        cube::attends(device, plan.shape).then(|| {
            let (list, batch) = cube::tiles(plan.lengths(), plan.shape, device);
            Self { list, batch }
        })
    }

    /// See [`forward`](super::forward); `qkv` is bf16.
    pub(super) fn forward(&self, qkv: Tensor<2>, plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
        let (qkv, tiles) = (qkv.into_dispatch(), self.list.clone().into_dispatch());
        let (out, lse) = Dispatch::training_forward(qkv, tiles, self.batch, plan.shape);
        (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
    }

    /// See [`backward`](super::backward); `qkv` is bf16.
    pub(super) fn backward(
        &self,
        qkv: Tensor<2>,
        [out, lse, d_out]: [Tensor<2>; 3],
        plan: &TrainingPlan,
    ) -> Tensor<2> {
        let saved = SavedOutput {
            out: out.cast(DType::BF16).into_dispatch(),
            lse: lse.cast(DType::F32).into_dispatch(),
            d_out: d_out.cast(DType::BF16).into_dispatch(),
        };
        let (qkv, tiles) = (qkv.into_dispatch(), self.list.clone().into_dispatch());
        let d_qkv = Dispatch::training_backward(qkv, saved, tiles, self.batch, plan.shape);
        Tensor::from_dispatch(d_qkv) // [tokens, (heads + 2 * kv_heads) * head_dim]
    }
}

/// Whether the kernels that turn heads run on the device of `x`, and take it.
pub(super) fn turns(x: &Tensor<2>, plan: &TrainingPlan) -> bool {
    let device = x.device();
    matches!(device.as_dispatch(), DispatchDevice::Cube(_))
        && matches!(x.dtype(), DType::F32 | DType::BF16)
        && cube::turns(plan.shape)
}

/// See [`rotate`](super::rotate).
pub(super) fn rotate(
    qkv: Tensor<2>,
    norms: Option<HeadNorms<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    match norms {
        Some(norms) => {
            let weights = head_weights(norms, rotary);
            let qkv = qkv.into_dispatch();
            Tensor::from_dispatch(Dispatch::training_norm_turn(qkv, weights, plan.shape))
        }
        None => turn(qkv, rotary, plan, 1.0),
    }
}

/// See [`rotate_backward`](super::rotate_backward).
pub(super) fn rotate_backward(
    d: Tensor<2>,
    head_norms: Option<HeadNormInput<'_>>,
    rotary: &Rotary,
    plan: &TrainingPlan,
) -> Tensor<2> {
    match head_norms {
        Some(HeadNormInput { qkv, norms }) => {
            let weights = head_weights(norms, rotary);
            let qkv = qkv.cast(d.dtype()).into_dispatch();
            let d = d.into_dispatch();
            let d = Dispatch::training_norm_turn_back(d, qkv, weights, plan.shape);
            Tensor::from_dispatch(d)
        }
        None => turn(d, rotary, plan, -1.0),
    }
}

fn turn(x: Tensor<2>, rotary: &Rotary, plan: &TrainingPlan, direction: f32) -> Tensor<2> {
    let [cos, sin] = angles(rotary).map(Tensor::into_dispatch);
    let x = x.into_dispatch();
    let x = Dispatch::training_turn(x, cos, sin, plan.shape, direction);
    Tensor::from_dispatch(x)
}

fn angles(rotary: &Rotary) -> [Tensor<3>; 2] {
    [&rotary.cos, &rotary.sin].map(|angles| angles.clone().cast(DType::F32)) // [tokens, 1, head_dim / 2]
}

fn head_weights(norms: HeadNorms<'_>, rotary: &Rotary) -> HeadWeights<Dispatch> {
    let weight = |weight: &Tensor<1>| weight.clone().cast(DType::F32).into_dispatch(); // [head_dim]
    let [cos, sin] = angles(rotary).map(Tensor::into_dispatch);
    HeadWeights {
        q: weight(norms.q),
        k: weight(norms.k),
        eps: norms.eps as f32,
        cos,
        sin,
    }
}
