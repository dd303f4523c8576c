//! Attention of a training step on a GPU, outside of autodiff graphs.

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor};

use super::heads::{HeadNormInput, HeadNorms, HeadShape};
use crate::kernels::cube::training as cube;
use crate::kernels::device_ops::{Batch, HeadWeights, SavedOutput, TrainingOps};
use crate::rotary::Rotary;

/// The tiles of a batch, on the device.
#[derive(Debug)]
pub(super) struct Tables {
    list: Tensor<1, Int>,
    batch: Batch,
    shape: HeadShape,
}

impl Tables {
    /// `None` where the kernels don't run; then the twins do.
    pub(super) fn new(lengths: &[usize], shape: HeadShape, device: &Device) -> Option<Self> {
        cube::attends(device, shape).then(|| {
            let (list, batch) = cube::tiles(lengths, shape, device);
            Self { list, batch, shape }
        })
    }

    /// See [`forward`](super::forward); `qkv` is bf16.
    pub(super) fn forward(&self, qkv: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let (qkv, tiles) = (qkv.into_dispatch(), self.list.clone().into_dispatch());
        let (out, lse) = Dispatch::training_forward(qkv, tiles, self.batch, self.shape);
        (Tensor::from_dispatch(out), Tensor::from_dispatch(lse))
    }

    /// See [`backward`](super::backward); `qkv` is bf16.
    pub(super) fn backward(&self, qkv: Tensor<2>, [out, lse, d_out]: [Tensor<2>; 3]) -> Tensor<2> {
        let saved = SavedOutput {
            out: out.cast(DType::BF16).into_dispatch(),
            lse: lse.cast(DType::F32).into_dispatch(),
            d_out: d_out.cast(DType::BF16).into_dispatch(),
        };
        let (qkv, tiles) = (qkv.into_dispatch(), self.list.clone().into_dispatch());
        let d_qkv = Dispatch::training_backward(qkv, saved, tiles, self.batch, self.shape);
        Tensor::from_dispatch(d_qkv) // [tokens, (heads + 2 * kv_heads) * head_dim]
    }
}

/// The kernels that turn heads.
pub(super) struct Turns {
    shape: HeadShape,
}

impl Turns {
    /// `None` where the kernels don't run on the device of `x`, or don't take it; then the twins do.
    pub(super) fn of(x: &Tensor<2>, shape: HeadShape) -> Option<Self> {
        let device = x.device();
        let turns = matches!(device.as_dispatch(), DispatchDevice::Cube(_))
            && matches!(x.dtype(), DType::F32 | DType::BF16)
            && cube::turns(shape);
        turns.then_some(Self { shape })
    }

    /// See [`rotate`](super::rotate).
    pub(super) fn rotate(
        &self,
        qkv: Tensor<2>,
        norms: Option<HeadNorms<'_>>,
        rotary: &Rotary,
    ) -> Tensor<2> {
        match norms {
            Some(norms) => {
                let weights = head_weights(norms, rotary);
                let qkv = qkv.into_dispatch();
                Tensor::from_dispatch(Dispatch::training_norm_turn(qkv, weights, self.shape))
            }
            None => self.turn(qkv, rotary, 1.0),
        }
    }

    /// See [`rotate_backward`](super::rotate_backward).
    pub(super) fn rotate_backward(
        &self,
        d: Tensor<2>,
        head_norms: Option<HeadNormInput<'_>>,
        rotary: &Rotary,
    ) -> Tensor<2> {
        match head_norms {
            Some(HeadNormInput { qkv, norms }) => {
                let weights = head_weights(norms, rotary);
                let qkv = qkv.cast(d.dtype()).into_dispatch();
                let d = d.into_dispatch();
                let d = Dispatch::training_norm_turn_back(d, qkv, weights, self.shape);
                Tensor::from_dispatch(d)
            }
            None => self.turn(d, rotary, -1.0),
        }
    }

    fn turn(&self, x: Tensor<2>, rotary: &Rotary, direction: f32) -> Tensor<2> {
        let [cos, sin] = angles(rotary).map(Tensor::into_dispatch);
        let x = x.into_dispatch();
        let x = Dispatch::training_turn(x, cos, sin, self.shape, direction);
        Tensor::from_dispatch(x)
    }
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
