//! What `device` is in a build without GPUs: no device is one.

use burn::tensor::{DType, Device, Int, Tensor};

use super::plan::{BatchPlan, RecordedStep};
use crate::rotary::Rotary;

/// A GPU. None exists, so that no method can be called.
pub(super) enum Gpu {}

impl Gpu {
    pub(super) fn of(_device: &Device) -> Option<Self> {
        None
    }

    pub(super) fn attends(&self, _head_dim: usize) -> bool {
        match *self {}
    }

    pub(super) fn apply_rope(
        &self,
        _q: Tensor<3>,
        _k: Tensor<3>,
        _rotary: &Rotary,
    ) -> (Tensor<3>, Tensor<3>) {
        match *self {}
    }

    pub(super) fn kv_write(
        &self,
        _caches: [Tensor<3>; 2],
        _new: [Tensor<3>; 2],
        _plan: &BatchPlan,
    ) -> [Tensor<3>; 2] {
        match *self {}
    }

    pub(super) fn paged_attention(
        &self,
        _q: Tensor<3>,
        _caches: [Tensor<3>; 2],
        _plan: &BatchPlan,
        _dtype: DType,
    ) -> Tensor<3> {
        match *self {}
    }

    pub(super) fn step_attention(
        &self,
        _qkv: [Tensor<3>; 3],
        _rotary: &Rotary,
        _step: RecordedStep<'_>,
        _dtype: DType,
    ) -> Tensor<3> {
        match *self {}
    }

    pub(super) fn overwrite(&self, _old: &Tensor<1, Int>, _new: Tensor<1, Int>) {
        match *self {}
    }
}

pub(super) fn forget_state() {}
