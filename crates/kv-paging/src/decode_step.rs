//! A step of one token per sequence whose description stays at the same place in device memory, so that a captured graph
//! can be replayed with other sequences.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::attention::KvCache;
use crate::cache::PagedKvCache;
use crate::decode_token::DecodeToken;
use crate::kernels;

/// A sequence of a [`DecodeStep`].
#[derive(Clone, Copy, Debug)]
pub struct DecodeRow<'a> {
    /// The token to compute.
    pub token: DecodeToken,
    /// Its position: the number of tokens before it.
    pub position: usize,
    /// The sequence's adapter.
    pub slot: Option<usize>,
    /// Block of every `block_size` tokens up to this one.
    pub block_table: &'a [u32],
    /// How the caller's kernels choose the token that follows: nothing here reads it.
    pub choice: [i32; CHOICE_WORDS],
}

/// Integers of [`DecodeRow::choice`].
pub const CHOICE_WORDS: usize = 5;

/// Integers of a row, besides its block table.
pub(crate) const FIELDS: usize = 6 + CHOICE_WORDS;

/// The inputs of a step of up to `num_rows` sequences, one token each, as one tensor of 32-bit integers.
///
/// For each row: the cache row it is written to, the number of keys it sees (0 in a row without a sequence), the start of
/// its block table, its token (or -1, -2, ... for the one that the step before chose in row 0, 1, ...), its position, the slot
/// of its adapter (-1 if it has none), how the next token is chosen; then the block tables, one after the other.
#[derive(Clone, Debug)]
pub struct DecodeStep {
    values: Tensor<1, Int>,
    num_rows: usize,
    max_blocks: usize,
    block_size: usize,
}

impl DecodeStep {
    /// Whether a device has kernels for such steps, for heads of this length.
    pub fn is_supported(device: &Device, head_dim: usize) -> bool {
        kernels::cube::supports(device, head_dim)
    }

    /// Room for `num_rows` sequences of at most `max_blocks` blocks.
    pub fn new(num_rows: usize, max_blocks: usize, block_size: usize, device: &Device) -> Self {
        let len = num_rows * (FIELDS + max_blocks);
        Self {
            values: Tensor::zeros([len], (device, DType::I32)),
            num_rows,
            max_blocks,
            block_size,
        }
    }

    /// Rows, with and without a sequence.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// The tensor.
    pub fn values(&self) -> &Tensor<1, Int> {
        &self.values
    }

    /// Where the tokens start in [`DecodeStep::values`].
    pub fn tokens_at(&self) -> usize {
        3 * self.num_rows
    }

    /// Where the positions start in [`DecodeStep::values`].
    pub fn positions_at(&self) -> usize {
        4 * self.num_rows
    }

    /// Where the slots of the adapters start in [`DecodeStep::values`].
    pub fn slots_at(&self) -> usize {
        5 * self.num_rows
    }

    /// Where [`DecodeRow::choice`] starts in [`DecodeStep::values`]: its first integer for all rows, then the second, and so on.
    pub fn choices_at(&self) -> usize {
        6 * self.num_rows
    }

    /// Writes the sequences of the next step, in one copy.
    ///
    /// # Panics
    ///
    /// If there are more sequences than rows, or a block table is too short or too long.
    pub fn upload(&self, rows: &[DecodeRow<'_>]) {
        assert!(rows.len() <= self.num_rows, "{} sequences", rows.len());
        let mut values = vec![0; FIELDS * self.num_rows];
        values[self.slots_at()..self.choices_at()].fill(-1);
        for (i, row) in rows.iter().enumerate() {
            let num_blocks = row.position / self.block_size + 1;
            assert!(
                num_blocks <= row.block_table.len() && num_blocks <= self.max_blocks,
                "row {i}: position {} with {} blocks, {} fit",
                row.position,
                row.block_table.len(),
                self.max_blocks
            );
            let table = values.len();
            let block = row.block_table[num_blocks - 1] as usize;
            let slot = block * self.block_size + row.position % self.block_size;
            let fields = [
                slot as i32,
                row.position as i32 + 1,
                table as i32,
                encode(row.token),
                row.position as i32,
                row.slot.map_or(-1, |slot| slot as i32),
            ];
            for (field, value) in fields.into_iter().chain(row.choice).enumerate() {
                values[field * self.num_rows + i] = value;
            }
            let blocks = &row.block_table[..num_blocks];
            values.extend(blocks.iter().map(|&block| block as i32));
        }
        let len = values.len();
        let device = self.values.device();
        let values = Tensor::from_data(TensorData::new(values, [len]), (&device, DType::I32));
        kernels::overwrite(&self.values, values);
    }
}

/// Ids as they are; rows as -1, -2 and so on.
fn encode(token: DecodeToken) -> i32 {
    match token {
        DecodeToken::Id(id) => id as i32,
        DecodeToken::ChosenIn(row) => -1 - row as i32,
    }
}

/// Attention of a [`DecodeStep`] over a cache, of which it holds handles.
#[derive(Debug)]
pub struct DecodeAttention {
    step: DecodeStep,
    /// Keys and values of each layer, `[slots, kv_heads, head_dim]`.
    layers: Vec<(Tensor<3>, Tensor<3>)>,
}

impl DecodeAttention {
    /// Reads what `step` holds whenever it runs, and writes to the memory of `cache`.
    pub fn new(step: DecodeStep, cache: &PagedKvCache) -> Self {
        let layers = 0..cache.shape().num_layers;
        Self {
            step,
            layers: layers.map(|layer| cache.layer(layer)).collect(),
        }
    }
}

impl KvCache for DecodeAttention {
    fn attend(&mut self, layer: usize, q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
        let (keys, values) = &self.layers[layer];
        let step = self.step.values.clone();
        kernels::decode_attention(q, [k, v], [keys, values], step, self.step.block_size)
    }

    fn rotate_and_attend(
        &mut self,
        layer: usize,
        qkv: [&Tensor<3>; 3],
        angles: [&Tensor<3>; 2],
        dtype: DType,
    ) -> Option<Tensor<3>> {
        let (keys, values) = &self.layers[layer];
        let step = self.step.values.clone();
        let (caches, block_size) = ([keys, values], self.step.block_size);
        let out = kernels::step_attention(qkv, angles, caches, step, block_size, dtype);
        Some(out)
    }
}
