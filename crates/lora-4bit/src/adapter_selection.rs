//! Which LoRA adapter each row of a batch uses.

use std::sync::Arc;

use burn::backend::DispatchDevice;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::kernels::training::drop_values;

/// Which adapter slot each row of a packed batch uses.
///
/// Slots are the indices given to [`Linear::set_adapter`](crate::linear::Linear::set_adapter); a layer without an
/// adapter in the slot computes its base product.
#[derive(Clone, Debug)]
pub enum AdapterSelection {
    /// No adapter.
    Base,
    /// One adapter for all rows.
    All {
        /// The adapter's slot.
        slot: usize,
        /// Dropout of the adapter's input, while training.
        dropout: Option<Dropout>,
    },
    /// Rows with different adapters.
    PerRow(Arc<RowGroups>),
    /// Rows with different adapters, for layers whose adapters are [stacked](crate::linear::Linear::stack_adapters).
    Stacked(Arc<StackedRows>),
}

impl AdapterSelection {
    /// One adapter for all rows, without dropout.
    pub fn all(slot: usize) -> Self {
        Self::All {
            slot,
            dropout: None,
        }
    }

    /// The selection for rows with the given slots (`None`: no adapter), row by row.
    ///
    /// On a GPU outside of an autodiff graph the selection is [`Stacked`](Self::Stacked), so the layers need
    /// [`stack_adapters`](crate::linear::Linear::stack_adapters). Elsewhere rows that agree give [`Base`](Self::Base) or
    /// [`All`](Self::All).
    pub fn per_row(slots: &[Option<usize>], device: &Device) -> Self {
        let Some(first) = slots.iter().copied().flatten().next() else {
            return Self::Base;
        };
        if !is_cpu(device) && !device.is_autodiff() {
            return Self::Stacked(Arc::new(StackedRows::new(slots, device)));
        }
        if slots.iter().all(|slot| *slot == Some(first)) {
            return Self::all(first);
        }
        Self::PerRow(Arc::new(RowGroups::new(slots, device)))
    }
}

/// The slot of each row, in the memory of the device. A layer reads the slots when it is computed, so a replayed CUDA graph
/// sees new slots.
#[derive(Clone, Debug)]
pub struct StackedRows {
    /// I32, -1 for a row without an adapter: `[at + rows]` or longer.
    pub slots: Tensor<1, Int>,
    /// Index of the first row's slot.
    pub at: usize,
}

impl StackedRows {
    /// Uploads `slots` (`None`: no adapter).
    pub fn new(slots: &[Option<usize>], device: &Device) -> Self {
        let slots: Vec<i32> = (slots.iter())
            .map(|slot| slot.map_or(-1, |slot| slot as i32))
            .collect();
        let slots = TensorData::new(slots.clone(), [slots.len()]);
        Self {
            slots: Tensor::from_data(slots, (device, DType::I32)),
            at: 0,
        }
    }
}

/// Whether tensors of `device` are computed on the CPU, inside or outside of an autodiff graph.
pub(crate) fn is_cpu(device: &Device) -> bool {
    let device = device.clone().without_autodiff();
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// The rows of a batch, grouped by adapter slot.
#[derive(Debug)]
pub struct RowGroups {
    pub(crate) num_rows: usize,
    pub(crate) groups: Vec<RowGroup>,
}

/// The rows of one adapter.
#[derive(Debug)]
pub(crate) struct RowGroup {
    pub(crate) slot: usize,
    /// Ascending row numbers.
    pub(crate) rows: Tensor<1, Int>,
}

impl RowGroups {
    fn new(slots: &[Option<usize>], device: &Device) -> Self {
        let mut used: Vec<usize> = slots.iter().copied().flatten().collect();
        used.sort_unstable();
        used.dedup();
        let groups = used
            .into_iter()
            .map(|slot| {
                let rows: Vec<i32> = (0..)
                    .zip(slots)
                    .filter(|&(_, &s)| s == Some(slot))
                    .map(|(row, _)| row)
                    .collect();
                let len = rows.len();
                let rows = TensorData::new(rows, [len]);
                RowGroup {
                    slot,
                    rows: Tensor::from_data(rows, (device, DType::I32)),
                }
            })
            .collect();
        Self {
            num_rows: slots.len(),
            groups,
        }
    }

    /// Number of rows in the batch.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }
}

/// Dropout of the input of LoRA's A.
///
/// The mask depends only on `seed`, the layer's id and the position in the matrix: a layer that is computed a second
/// time in the backward pass drops the same values. Give each training step its own seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of dropping a value, in `[0, 1)`.
    pub p: f32,
    /// Seed of the step.
    pub seed: u64,
}

impl Dropout {
    /// `x` times the mask for layer `id`, outside of autodiff graphs. A kernel draws the mask where it reads `x`.
    ///
    /// # Shapes
    ///
    /// `x [rows, columns]`; the result has its shape and type
    #[must_use]
    pub fn apply(&self, id: u32, x: Tensor<2>) -> Tensor<2> {
        drop_values(x, self.draw(id))
    }

    /// The mask for layer `id`: 0 with probability `p`, otherwise `1 / (1 - p)`.
    ///
    /// # Shapes
    ///
    /// `[rows, columns]`, f32
    #[must_use]
    pub fn mask(&self, id: u32, [rows, columns]: [usize; 2], device: &Device) -> Tensor<2> {
        match is_cpu(device) {
            true => self.draw(id).mask([rows, columns], device),
            false => self.apply(id, Tensor::ones([rows, columns], (device, DType::F32))),
        }
    }

    fn draw(&self, id: u32) -> Draw {
        let bits = mix(self.seed ^ mix(u64::from(id).wrapping_add(GOLDEN_GAMMA)));
        Draw {
            keys: [bits as u32, (bits >> 32) as u32],
            // A value is dropped when its 32 random bits, read as a number, are below p · 2³².
            threshold: (f64::from(self.p) * f64::from(u32::MAX)) as u32,
            keep: 1.0 / (1.0 - self.p),
        }
    }
}

/// What a mask is drawn with. A value's random bits depend on its place and two keys; 32 bits are what every GPU computes with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) keys: [u32; 2],
    pub(crate) threshold: u32,
    pub(crate) keep: f32,
}

impl Draw {
    /// The mask, drawn on the host: `[rows, columns]`, f32.
    pub(crate) fn mask(self, [rows, columns]: [usize; 2], device: &Device) -> Tensor<2> {
        let mut mask = vec![0f32; rows * columns];
        mask.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(i, chunk)| {
                for (place, value) in (i * CHUNK..).zip(chunk) {
                    *value = match self.bits(place as u32) < self.threshold {
                        true => 0.0,
                        false => self.keep,
                    };
                }
            });
        let mask = TensorData::new(mask, [rows, columns]);
        Tensor::from_data(mask, (device, DType::F32))
    }

    /// The random bits of the value at `place`. A kernel computes the same.
    fn bits(self, place: u32) -> u32 {
        let [first, second] = self.keys;
        scramble(scramble(place ^ first).wrapping_add(second))
    }
}

/// `lowbias32` of Wellons ("Prospecting for hash functions", 2018): each bit of `x` changes each bit of the result with a
/// probability near a half.
fn scramble(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Values per parallel job.
const CHUNK: usize = 1 << 16;

/// Step between the states of SplitMix64: 2⁶⁴ divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
