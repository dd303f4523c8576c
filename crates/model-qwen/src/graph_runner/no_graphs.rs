//! The answers of a build without GPUs: no step is recorded. A type without values stands for them.

use kv_paging::{PagedKvCache, SchedulerConfig};

use super::decode_row::DecodeRow;
use super::pending::{Pending, Unmasked};
use crate::model::QwenModel;
use crate::sampling::RowMask;

#[derive(Debug)]
pub(super) enum Graphs {}

impl Graphs {
    pub(super) fn new(_model: &QwenModel, _config: &SchedulerConfig) -> Option<Self> {
        None
    }

    pub(super) fn has_captured(&self, _model: &QwenModel, _rows: &[DecodeRow<'_>]) -> bool {
        match *self {}
    }

    pub(super) fn compile(
        &self,
        _model: &QwenModel,
        _cache: &PagedKvCache,
        _rows: &[DecodeRow<'_>],
    ) {
        match *self {}
    }

    pub(super) fn launch(
        &mut self,
        _model: &QwenModel,
        _cache: &PagedKvCache,
        _rows: &[DecodeRow<'_>],
    ) -> Pending {
        match *self {}
    }

    pub(super) fn draw_masked(&mut self, _unmasked: Unmasked, _masks: &[RowMask]) -> Pending {
        match *self {}
    }

    pub(super) fn forget(&mut self) {
        match *self {}
    }

    pub(super) fn reset(&mut self) {
        match *self {}
    }
}
