//! What `device` is in a build without GPUs: no device is one.

use burn::tensor::{Device, Tensor};

use super::{TrainingPlan, naive};

/// The tiles of a batch on a GPU. None exists, so that no method can be called.
#[derive(Debug)]
pub(super) enum Tables {}

impl Tables {
    pub(super) fn new(_plan: &TrainingPlan, _device: &Device) -> Option<Self> {
        None
    }

    pub(super) fn forward(&self, _qkv: Tensor<2>, _plan: &TrainingPlan) -> (Tensor<2>, Tensor<2>) {
        match *self {}
    }

    pub(super) fn backward(
        &self,
        _qkv: Tensor<2>,
        _saved: [Tensor<2>; 3],
        _plan: &TrainingPlan,
    ) -> Tensor<2> {
        match *self {}
    }
}

pub(super) fn turns(_x: &Tensor<2>, _plan: &TrainingPlan) -> bool {
    false
}

pub(super) use naive::training::{rotate, rotate_backward};
