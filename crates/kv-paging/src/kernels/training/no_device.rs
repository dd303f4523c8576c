//! What `device` is in a build without GPUs: no device is one.

use burn::tensor::{Device, Tensor};

use super::heads::{HeadNormInput, HeadNorms, HeadShape};
use crate::rotary::Rotary;

/// The tiles of a batch on a GPU. None exists, so that no method can be called.
#[derive(Debug)]
pub(super) enum Tables {}

impl Tables {
    pub(super) fn new(_lengths: &[usize], _shape: HeadShape, _device: &Device) -> Option<Self> {
        None
    }

    pub(super) fn forward(&self, _qkv: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match *self {}
    }

    pub(super) fn backward(&self, _qkv: Tensor<2>, _saved: [Tensor<2>; 3]) -> Tensor<2> {
        match *self {}
    }
}

/// The kernels that turn heads. None exist, so that no method can be called.
pub(super) enum Turns {}

impl Turns {
    pub(super) fn of(_x: &Tensor<2>, _shape: HeadShape) -> Option<Self> {
        None
    }

    pub(super) fn rotate(
        &self,
        _qkv: Tensor<2>,
        _norms: Option<HeadNorms<'_>>,
        _rotary: &Rotary,
    ) -> Tensor<2> {
        match *self {}
    }

    pub(super) fn rotate_backward(
        &self,
        _d: Tensor<2>,
        _head_norms: Option<HeadNormInput<'_>>,
        _rotary: &Rotary,
    ) -> Tensor<2> {
        match *self {}
    }
}
