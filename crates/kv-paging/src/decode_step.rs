//! A step whose rows are the next token of a sequence, or guessed ones after it. Its description stays at the same place in
//! device memory, so that a captured graph can be replayed with other sequences.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::attention::Attention;
use crate::cache::PagedKvCache;
use crate::kernels;
use crate::rotary::Rotary;
use crate::step_layout::{StepLayout, StepRow};

/// The inputs of a step of up to `num_rows` rows, one token each, as one tensor of 32-bit integers.
///
/// Each row has a value in every field: the cache row it is written to, the number of keys it sees (0 in a row without a
/// token), the start of its block table, its token (or -1, -2, ... for the token that the step before chose in row 0,
/// 1, ...), its position, the slot of its adapter (-1 without one), how the next token is chosen. The block tables follow,
/// one after the other.
#[derive(Clone, Debug)]
pub struct DecodeStep {
    values: Tensor<1, Int>,
    layout: StepLayout,
}

impl DecodeStep {
    /// Whether a device has kernels for such steps, with heads of this length. A CPU has none.
    pub fn is_supported(device: &Device, head_dim: usize) -> bool {
        kernels::records_steps(device, head_dim)
    }

    /// Room for `num_rows` rows of sequences of at most `max_blocks` blocks.
    pub fn new(num_rows: usize, max_blocks: usize, block_size: usize, device: &Device) -> Self {
        let layout = StepLayout {
            num_rows,
            max_blocks,
            block_size,
        };
        Self {
            values: Tensor::zeros([layout.len()], (device, DType::I32)),
            layout,
        }
    }

    /// Rows, with and without a token.
    pub fn num_rows(&self) -> usize {
        self.layout.num_rows
    }

    /// The tensor.
    pub fn values(&self) -> &Tensor<1, Int> {
        &self.values
    }

    /// Where the tokens start in [`DecodeStep::values`].
    pub fn tokens_at(&self) -> usize {
        self.layout.tokens_at()
    }

    /// Where the positions start in [`DecodeStep::values`].
    pub fn positions_at(&self) -> usize {
        self.layout.positions_at()
    }

    /// Where the slots of the adapters start in [`DecodeStep::values`].
    pub fn adapter_slots_at(&self) -> usize {
        self.layout.adapter_slots_at()
    }

    /// Where [`StepRow::choice`] starts in [`DecodeStep::values`]: its first integer for all rows, then the second, and so on.
    pub fn choices_at(&self) -> usize {
        self.layout.choices_at()
    }

    /// Writes the rows of the next step, in one copy.
    ///
    /// # Panics
    ///
    /// If `rows` are more than the step's, if a block table is too short or too long, or if the device has no
    /// kernels for such steps.
    pub fn upload(&self, rows: &[StepRow<'_>]) {
        let values = self.layout.encode(rows);
        let len = values.len();
        let device = self.values.device();
        let values = Tensor::from_data(TensorData::new(values, [len]), (&device, DType::I32)); // [len]
        kernels::overwrite(&self.values, values);
    }
}

/// Attention of a [`DecodeStep`] over a cache. It holds handles of the cache's tensors, so that a replay finds them.
#[derive(Debug)]
pub struct RecordedAttention {
    step: DecodeStep,
    /// See [`RecordedAttention::of_neighbours`].
    writes_first: bool,
    /// Keys and values of each layer, `[slots, kv_heads, head_dim]`.
    layers: Vec<(Tensor<3>, Tensor<3>)>,
}

impl RecordedAttention {
    /// The attention reads what `step` holds whenever it runs, and writes to the memory of `cache`.
    pub fn new(step: DecodeStep, cache: &PagedKvCache) -> Self {
        let layers = 0..cache.shape().num_layers;
        Self {
            step,
            writes_first: false,
            layers: layers.map(|layer| cache.layer(layer)).collect(),
        }
    }

    /// For steps whose rows may follow each other in one sequence, so that a row sees keys of the rows before it: a launch of its
    /// own writes all keys first.
    #[must_use]
    pub fn of_neighbours(mut self) -> Self {
        self.writes_first = true;
        self
    }
}

impl Attention for RecordedAttention {
    /// # Panics
    ///
    /// Where [`DecodeStep::is_supported`] says no.
    fn attend(
        &mut self,
        layer: usize,
        q: Tensor<3>,
        k: Tensor<3>,
        v: Tensor<3>,
        rotary: &Rotary,
        dtype: DType,
    ) -> Tensor<3> {
        let (keys, values) = &self.layers[layer];
        let step = kernels::RecordedStep {
            caches: [keys, values],
            indices: &self.step.values,
            block_size: self.step.layout.block_size,
            writes_first: self.writes_first,
        };
        kernels::step_attention([q, k, v], rotary, step, dtype) // [tokens, heads, head_dim]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step_layout::{CHOICE_WORDS, DecodeToken};

    #[test]
    fn a_cpu_records_no_steps() {
        assert!(!DecodeStep::is_supported(&Device::flex(), 64));
    }

    #[test]
    #[should_panic(expected = "no kernels for recorded steps")]
    fn a_step_on_a_cpu_is_refused() {
        let row = StepRow {
            token: DecodeToken::Id(0),
            position: 0,
            adapter_slot: None,
            block_table: &[0],
            choice: [0; CHOICE_WORDS],
        };
        DecodeStep::new(1, 1, 16, &Device::flex()).upload(&[row]);
    }
}
