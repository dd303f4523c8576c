//! Which LoRA adapter each row of a batch uses.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::device::is_cpu;
use crate::dropout::Dropout;

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

    /// Whether it is the same for all rows, so that it holds for some of them, too.
    pub fn is_uniform(&self) -> bool {
        matches!(self, Self::Base | Self::All { dropout: None, .. })
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
