//! The answers of a build without GPUs: no device chooses tokens. Types without values stand for what is never there.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};

use crate::sampling::{Draw, RowMask, TopLogits};

#[derive(Debug)]
pub(crate) enum PendingIds {}

impl PendingIds {
    pub(crate) fn wait(self) -> Result<Vec<Option<u32>>, String> {
        match self {}
    }
}

#[derive(Debug)]
pub(crate) enum PendingLogits {}

impl PendingLogits {
    pub(crate) fn wait(self) -> Result<HashMap<usize, Vec<f32>>, String> {
        match self {}
    }
}

#[derive(Debug)]
pub(crate) enum PendingLargest {}

impl PendingLargest {
    pub(crate) fn wait(self) -> Result<Vec<TopLogits>, String> {
        match self {}
    }
}

pub(crate) fn queues_reads(_device: &Device) -> bool {
    false
}

pub(crate) fn mask_logits(_logits: &Tensor<2>, _masks: &[RowMask]) -> bool {
    false
}

pub(crate) fn draw_tokens(_logits: &Tensor<2>, _draws: &[Draw]) -> Option<PendingIds> {
    None
}

pub(crate) fn largest_logits(_logits: &Tensor<2>, _scales: &[f32]) -> Option<PendingLargest> {
    None
}

#[derive(Debug)]
pub(crate) enum GpuInt8LmHead {}

impl GpuInt8LmHead {
    pub(crate) fn new(_weight: &Tensor<2>) -> Option<Self> {
        None
    }

    pub(crate) fn bytes_of(_weight: &Tensor<2>) -> usize {
        0
    }

    pub(crate) fn takes(_rows: usize) -> bool {
        false
    }

    pub(crate) fn num_bytes(&self) -> usize {
        match *self {}
    }
}
