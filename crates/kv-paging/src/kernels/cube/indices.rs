//! The tensor of integers that says what a step reads and writes, uploaded once and used by all layers.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::batch_layout::BatchLayout;
use crate::kernels::device_ops::Tiles;

/// Queries of a tile, and rows of a tensor core's instruction.
pub(super) const QUERIES: usize = 16;

/// The tiles that [`indices`] appends.
pub(in crate::kernels) fn tiles_of(layout: &BatchLayout) -> Tiles {
    Tiles {
        at: 3 * layout.slot_mapping.len() + layout.block_tables.len(),
        num: tiles(layout).count(),
    }
}

/// First token and number of tokens of each tile.
fn tiles(layout: &BatchLayout) -> impl Iterator<Item = [usize; 2]> {
    let single = layout
        .sequences
        .iter()
        .all(|sequence| sequence.query_len == 1);
    let sequences = if single { &[][..] } else { &layout.sequences };
    sequences.iter().flat_map(|sequence| {
        let tiles = (0..sequence.query_len).step_by(QUERIES);
        tiles.map(|first| {
            let num = (sequence.query_len - first).min(QUERIES);
            [sequence.query_start + first, num]
        })
    })
}

/// What the kernels read of a step, as 32-bit integers: for each token its cache row, the number of keys it sees and where
/// its block table starts, then all block tables, then the [`Tiles`].
pub(in crate::kernels) fn indices(layout: &BatchLayout, device: &Device) -> Tensor<1, Int> {
    let num_tokens = layout.slot_mapping.len();
    let mut values = Vec::with_capacity(3 * num_tokens + layout.block_tables.len());
    values.extend(layout.slot_mapping.iter().map(|&slot| slot as i32));
    for sequence in &layout.sequences {
        let first = sequence.context_len - sequence.query_len + 1;
        values.extend((first..=sequence.context_len).map(|keys| keys as i32));
    }
    for sequence in &layout.sequences {
        let table = (3 * num_tokens + sequence.blocks.start) as i32;
        values.extend(std::iter::repeat_n(table, sequence.query_len));
    }
    values.extend(layout.block_tables.iter().map(|&block| block as i32));
    values.extend(tiles(layout).flatten().map(|value| value as i32));
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
}
