//! An int8 copy of lm_head, which gives each logit up to an error that is known.

use std::sync::Arc;

use lora_4bit::device::is_untracked_cpu;
use lora_4bit::{RowBounds, Weight};

use crate::kernels::choice::GpuInt8LmHead;
use crate::kernels::on_worker;

/// A copy of lm_head in int8, with a bound of each row's error.
#[derive(Clone, Debug)]
pub(crate) enum Int8LmHead {
    Cpu(Arc<RowBounds>),
    /// CUDA graphs read it.
    Gpu(Arc<GpuInt8LmHead>),
}

impl Int8LmHead {
    /// The copy of `weight`, where it pays.
    pub(super) fn new(weight: &Weight) -> Option<Self> {
        let Weight::Dense(dense) = weight else {
            return None;
        };
        if !is_untracked_cpu(dense) {
            let copy = GpuInt8LmHead::new(dense)?;
            return Some(Self::Gpu(Arc::new(copy)));
        }
        if Self::bytes_of(weight) == 0 {
            return None;
        }
        let copy = on_worker(&dense.device(), || RowBounds::new(weight));
        copy.map(|copy| Self::Cpu(Arc::new(copy)))
    }

    /// Bytes of memory that the copy of `weight` takes, 0 where it doesn't pay.
    pub(super) fn bytes_of(weight: &Weight) -> usize {
        let Weight::Dense(dense) = weight else {
            return 0;
        };
        if !is_untracked_cpu(dense) {
            return GpuInt8LmHead::bytes_of(dense);
        }
        match RowBounds::pays() && RowBounds::supports(dense.dims(), dense.dtype()) {
            true => RowBounds::bytes_of(dense.dims()),
            false => 0,
        }
    }

    /// Bytes of memory.
    pub(crate) fn num_bytes(&self) -> usize {
        match self {
            Self::Cpu(copy) => copy.num_bytes(),
            Self::Gpu(copy) => copy.num_bytes(),
        }
    }
}
