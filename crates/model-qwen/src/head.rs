//! The largest logits of a row on the CPU, without reading the whole head.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData};
use lora_4bit::row_bounds::Largest;
use lora_4bit::{AdapterSelection, Linear, RowBounds, Weight};
use tracing::trace_span;

use crate::kernels::on_worker;
use crate::model::QwenModel;
use crate::sampling::TopLogits;

/// Rows of the head that are read for it, at most: beyond that, all are.
const MAX_CANDIDATES: usize = 8192;

impl QwenModel {
    /// Logits that [`QwenModel::top_logits`] finds of each row at least.
    pub const NUM_LARGEST: usize = 64;

    /// Makes an 8-bit copy of the head, so that [`QwenModel::top_logits`] has answers; where that doesn't pay, nothing.
    ///
    /// It takes half of the memory of a head in 16 bits. Call it again when the head has changed.
    pub fn bound_head(&mut self) {
        let has_bounds = self.device() == burn::tensor::Device::flex() && RowBounds::pays();
        self.head_bounds = match has_bounds {
            true => {
                let weight = &self.lm_head.weight;
                on_worker(&self.device(), || RowBounds::new(weight)).map(Arc::new)
            }
            false => None,
        };
    }

    /// The largest logits of each row of `hidden [rows, hidden]`: the same as those of [`QwenModel::logits`]. `None` without
    /// [`QwenModel::bound_head`], and where reading the whole head costs less.
    ///
    /// The sum over all weights, [`TopLogits::total`], is not known: see
    /// [`Sampler::takes_largest`](crate::Sampler::takes_largest).
    pub fn top_logits(&self, hidden: &Tensor<2>) -> Option<Vec<TopLogits>> {
        let bounds = self.head_bounds.as_ref()?;
        let rows = hidden.dims()[0];
        if rows > RowBounds::MAX_ROWS {
            return None;
        }
        let _span = trace_span!("lm_head").entered();
        on_worker(&self.device(), || {
            let x: Vec<f32> = hidden.clone().into_data().try_into_vec().ok()?;
            let largest = bounds.largest(&x, Self::NUM_LARGEST)?;
            if largest.iter().any(|row| row.rows.len() > MAX_CANDIDATES) {
                return None;
            }
            let rows = (0..rows).zip(largest);
            rows.map(|(row, largest)| self.exact(hidden.clone().narrow(0, row, 1), largest))
                .collect()
        })
    }

    /// The logits of the head's rows that may be among the largest.
    fn exact(&self, hidden: Tensor<2>, Largest { rows, bound }: Largest) -> Option<TopLogits> {
        let Weight::Dense(weight) = &self.lm_head.weight else {
            return None;
        };
        let ids: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let ids = TensorData::new(ids, [rows.len()]);
        let ids = Tensor::<1, Int>::from_data(ids, (&weight.device(), DType::I32));
        let mut head = Linear::new(Weight::Dense(weight.clone().select(0, ids)), None);
        head.compute = self.lm_head.compute;
        let logits = head.forward(hidden, &AdapterSelection::Base); // [1, rows]
        let logits: Vec<f32> = logits.into_data().try_into_vec().ok()?;
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
    use burn::tensor::{Device, Distribution};

    use super::*;
    use crate::load::LoadOptions;

    #[test]
    fn the_largest_logits_are_those_of_the_whole_head() {
        let dir = crate::bundled_model_dir().unwrap();
        let mut model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let [vocab, hidden] = model.lm_head.weight.shape();
        let random = Distribution::Normal(0.0, 1.0);
        let rows = Tensor::random([3, hidden], random, (&Device::flex(), DType::F32));
        assert!(model.top_logits(&rows).is_none());
        // Whether it pays on this CPU or not.
        model.head_bounds = RowBounds::new(&model.lm_head.weight).map(Arc::new);
        let tops = model.top_logits(&rows).unwrap();
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
