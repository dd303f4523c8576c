//! The largest logits of a row without reading the whole head.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData};
use lora_4bit::row_bounds::Largest;
use lora_4bit::{AdapterSelection, Linear, RowBounds, Weight};
use tracing::trace_span;

#[cfg(feature = "gpu")]
use crate::kernels::DeviceBounds;
use crate::kernels::on_worker;
use crate::model::QwenModel;
use crate::sampling::TopLogits;

/// Rows of the head that are read for it, at most: beyond that, all are.
const MAX_CANDIDATES: usize = 8192;

/// A copy of the head in 8 bits, from which the largest logits can be told up to an error that is known.
#[derive(Clone, Debug)]
pub(crate) enum HeadBounds {
    Cpu(Arc<RowBounds>),
    #[cfg(feature = "gpu")]
    Device(Arc<DeviceBounds>),
}

impl HeadBounds {
    /// The bounds of a head, where they pay.
    fn new(weight: &Weight) -> Option<Self> {
        let Weight::Dense(dense) = weight else {
            return None;
        };
        if Self::bytes_of(weight) == 0 {
            return None;
        }
        if dense.device() == burn::tensor::Device::flex() {
            let bounds = on_worker(&dense.device(), || RowBounds::new(weight));
            return bounds.map(|bounds| Self::Cpu(Arc::new(bounds)));
        }
        #[cfg(feature = "gpu")]
        return Some(Self::Device(Arc::new(DeviceBounds::new(dense))));
        #[cfg(not(feature = "gpu"))]
        None
    }

    /// Bytes of memory that the bounds of a head take, 0 where they don't pay.
    fn bytes_of(weight: &Weight) -> usize {
        let Weight::Dense(dense) = weight else {
            return 0;
        };
        if dense.device() == burn::tensor::Device::flex() {
            return match RowBounds::pays() && RowBounds::supports(dense.dims(), dense.dtype()) {
                true => RowBounds::bytes_of(dense.dims()),
                false => 0,
            };
        }
        #[cfg(feature = "gpu")]
        return DeviceBounds::bytes_of(dense);
        #[cfg(not(feature = "gpu"))]
        0
    }

    /// Bytes of memory.
    pub(crate) fn num_bytes(&self) -> usize {
        match self {
            Self::Cpu(bounds) => bounds.num_bytes(),
            #[cfg(feature = "gpu")]
            Self::Device(bounds) => bounds.num_bytes(),
        }
    }
}

impl QwenModel {
    /// Logits that [`QwenModel::top_logits`] finds of each row at least.
    pub const NUM_LARGEST: usize = 64;

    /// Makes an 8-bit copy of the head, so that the largest logits of a few rows are found without reading all of it: by
    /// [`QwenModel::top_logits`] on the CPU, by recorded steps on a GPU. Where that doesn't pay, nothing.
    ///
    /// It takes half of the memory of a head in 16 bits. Call it again when the head has changed.
    pub fn bound_head(&mut self) {
        let weight = self.lm_head.weight.clone();
        // As the weights on a GPU: outside of its pools.
        let device = self.device();
        self.head_bounds =
            device.memory_persistent_allocations(weight, |weight| HeadBounds::new(&weight));
    }

    /// Bytes of memory that [`QwenModel::bound_head`] takes, 0 where it does nothing.
    pub fn head_bounds_bytes(&self) -> usize {
        HeadBounds::bytes_of(&self.lm_head.weight)
    }

    /// The largest logits of each row of `hidden [rows, hidden]`: the same as those of [`QwenModel::logits`] for the row by itself. `None`
    /// without [`QwenModel::bound_head`], on a GPU, and where reading the whole head costs less.
    ///
    /// The sum over all weights, [`TopLogits::total`], is not known: see
    /// [`Sampler::takes_largest`](crate::Sampler::takes_largest).
    pub fn top_logits(&self, hidden: &Tensor<2>) -> Option<Vec<TopLogits>> {
        let Some(HeadBounds::Cpu(bounds)) = &self.head_bounds else {
            return None;
        };
        let rows = hidden.dims()[0];
        if rows > RowBounds::max_rows() {
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

    /// Whether recorded steps of so many rows may choose their tokens without computing all logits.
    #[cfg(feature = "gpu")]
    pub fn chooses_from_bounds(&self, rows: usize) -> bool {
        rows <= DeviceBounds::MAX_ROWS && matches!(self.head_bounds, Some(HeadBounds::Device(_)))
    }

    /// The most likely token after each row of `x [rows, hidden]`, which the final norm hasn't seen yet, also written to the
    /// first elements of `chosen`. `None` without [`QwenModel::chooses_from_bounds`].
    #[cfg(feature = "gpu")]
    pub(crate) fn choose_from_bounds(
        &self,
        x: &Tensor<2>,
        chosen: &Tensor<1, Int>,
    ) -> Option<Tensor<1, Int>> {
        let (Weight::Dense(weight), Some(HeadBounds::Device(bounds))) =
            (&self.lm_head.weight, &self.head_bounds)
        else {
            return None;
        };
        let norm = (&self.norm, self.config.rms_norm_eps);
        self.chooses_from_bounds(x.dims()[0])
            .then(|| bounds.choose(x.clone(), norm, weight, chosen))
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
        let bounds = RowBounds::new(&model.lm_head.weight).unwrap();
        model.head_bounds = Some(HeadBounds::Cpu(Arc::new(bounds)));
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
