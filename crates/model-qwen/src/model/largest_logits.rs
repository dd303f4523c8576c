//! The largest logits of a row without reading all of lm_head: an int8 copy of it gives each logit up to an error that is known.

use burn::tensor::{DType, Int, Tensor, TensorData};
use lora_4bit::device::is_untracked_cpu;
use lora_4bit::row_bounds::Largest;
use lora_4bit::{AdapterSelection, Linear, RowBounds, Weight};
use tracing::trace_span;

use super::QwenModel;
use super::int8_lm_head::Int8LmHead;
use crate::kernels::choice::GpuInt8LmHead;
use crate::kernels::on_worker;
use crate::sampling::TopLogits;

/// Rows of lm_head that are read for it, at most: beyond that, all are.
const MAX_CANDIDATES: usize = 8192;

impl QwenModel {
    /// Logits that [`QwenModel::largest_logits`] finds of each row at least.
    pub const NUM_LARGEST: usize = 64;

    /// Makes an int8 copy of lm_head, so that the largest logits of a few rows are found without reading all of lm_head: by
    /// [`QwenModel::largest_logits`] on the CPU, by the [`GraphRunner`](crate::GraphRunner) on a GPU. Where that doesn't pay,
    /// nothing.
    ///
    /// It takes half of the memory of lm_head in 16 bits. Call it again when lm_head has changed.
    pub fn copy_lm_head_int8(&mut self) {
        let weight = self.lm_head.weight.clone();
        // As the weights on a GPU: outside of its pools.
        let device = self.device();
        self.int8_lm_head =
            device.memory_persistent_allocations(weight, |weight| Int8LmHead::new(&weight));
    }

    /// Bytes of memory that [`QwenModel::copy_lm_head_int8`] takes, 0 where it does nothing.
    pub fn int8_lm_head_bytes(&self) -> usize {
        Int8LmHead::bytes_of(&self.lm_head.weight)
    }

    /// Whether the [`GraphRunner`](crate::GraphRunner) finds the most likely tokens of so many rows by the int8 copy of lm_head.
    pub fn int8_lm_head_takes(&self, rows: usize) -> bool {
        GpuInt8LmHead::takes(rows) && matches!(self.int8_lm_head, Some(Int8LmHead::Gpu(_)))
    }

    /// The largest logits of each row of `hidden [rows, hidden]`: the same as those of [`QwenModel::logits`] for the row by
    /// itself. `None` without [`QwenModel::copy_lm_head_int8`], on a GPU, and where reading all of lm_head costs less.
    ///
    /// The sum over all weights, [`TopLogits::total`], is not known: see
    /// [`Sampler::takes_largest`](crate::Sampler::takes_largest).
    pub fn largest_logits(&self, hidden: &Tensor<2>) -> Option<Vec<TopLogits>> {
        let Some(Int8LmHead::Cpu(copy)) = &self.int8_lm_head else {
            return None;
        };
        let rows = hidden.dims()[0];
        if rows > RowBounds::max_rows() {
            return None;
        }
        let _span = trace_span!("lm_head").entered();
        on_worker(&self.device(), || {
            let x: Vec<f32> = hidden.clone().into_data().try_into_vec().ok()?;
            let largest = copy.largest(&x, Self::NUM_LARGEST)?;
            if largest.iter().any(|row| row.rows.len() > MAX_CANDIDATES) {
                return None;
            }
            let rows = (0..rows).zip(largest);
            rows.map(|(row, largest)| self.exact(hidden.clone().narrow(0, row, 1), largest))
                .collect()
        })
    }

    /// The logits of these tokens after `hidden [1, hidden]`, without reading the rest of lm_head. `None` on a GPU, and where
    /// lm_head is quantized.
    pub(crate) fn logits_of(&self, hidden: Tensor<2>, tokens: &[u32]) -> Option<Vec<f32>> {
        let _span = trace_span!("lm_head").entered();
        is_untracked_cpu(&self.norm)
            .then(|| on_worker(&self.device(), || self.rows(hidden, tokens)))?
    }

    /// Logits of some rows of lm_head.
    fn rows(&self, hidden: Tensor<2>, rows: &[u32]) -> Option<Vec<f32>> {
        let Weight::Dense(weight) = &self.lm_head.weight else {
            return None;
        };
        let ids: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let ids = TensorData::new(ids, [rows.len()]);
        let ids = Tensor::<1, Int>::from_data(ids, (&weight.device(), DType::I32));
        let mut head = Linear::new(Weight::Dense(weight.clone().select(0, ids)), None);
        head.compute = self.lm_head.compute;
        let logits = head.forward(hidden, &AdapterSelection::Base); // [1, rows]
        logits.into_data().try_into_vec().ok()
    }

    /// The logits of the rows of lm_head that may be among the largest.
    fn exact(&self, hidden: Tensor<2>, Largest { rows, bound }: Largest) -> Option<TopLogits> {
        let logits = self.rows(hidden, &rows)?;
        let entries = rows.into_iter().zip(logits);
        Some(TopLogits {
            entries: entries.filter(|(_, logit)| *logit > bound).collect(),
            bound,
            total: f64::INFINITY,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::load::LoadOptions;

    #[test]
    fn the_largest_logits_are_those_of_all_of_lm_head() {
        let dir = crate::bundled_model_dir().unwrap();
        let mut model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let [vocab, hidden] = model.lm_head.weight.shape();
        let random = Distribution::Normal(0.0, 1.0);
        let rows = Tensor::random([3, hidden], random, (&Device::flex(), DType::F32));
        assert!(model.largest_logits(&rows).is_none());
        // Whether it pays on this CPU or not.
        let copy = RowBounds::new(&model.lm_head.weight).unwrap();
        model.int8_lm_head = Some(Int8LmHead::Cpu(Arc::new(copy)));
        let tops = model.largest_logits(&rows).unwrap();
        let all: Vec<f32> = model.logits(rows).into_data().try_into_vec().unwrap();
        assert_eq!(tops.len(), 3);
        for (top, logits) in tops.iter().zip(all.chunks_exact(vocab)) {
            assert!(top.entries.len() >= QwenModel::NUM_LARGEST - 1);
            let larger = (0..).zip(logits.iter().copied());
            let larger: Vec<(u32, f32)> = larger.filter(|(_, logit)| *logit > top.bound).collect();
            assert_eq!(top.entries, larger);
        }
    }
}
