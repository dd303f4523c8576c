//! The index tensors with which the twins gather a step's rows, on the device.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use crate::batch_layout::{BatchLayout, SequenceSpan};

/// Index tensors of one packed step over a paged cache.
#[derive(Debug)]
pub(super) struct Gather {
    /// Cache row of every packed token, `[tokens]`.
    pub(super) slot_mapping: Tensor<1, Int>,
    pub(super) groups: Vec<QueryGroup>,
    /// Packed token → row in the concatenated groups, `[tokens]`; `None` if the groups are in order.
    pub(super) order: Option<Tensor<1, Int>>,
}

/// Sequences with the same number of queries, computed as one batch padded to the longest context.
#[derive(Debug)]
pub(super) struct QueryGroup {
    pub(super) num_sequences: usize,
    pub(super) query_len: usize,
    pub(super) context_len: usize,
    /// Packed rows of the queries, `[num_sequences * query_len]`; `None` if the
    /// group is the whole step, in order.
    pub(super) rows: Option<Tensor<1, Int>>,
    /// Cache rows of the keys, `[num_sequences * context_len]`.
    pub(super) keys: Tensor<1, Int>,
    /// True where a query must not see a key, `[num_sequences, 1, query_len, context_len]`.
    pub(super) hidden: Tensor<4, Bool>,
}

fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32)) // [len]
}

impl Gather {
    pub(super) fn new(layout: &BatchLayout, device: &Device) -> Self {
        let mut lengths: Vec<usize> = layout.sequences.iter().map(|s| s.query_len).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut order = vec![0; layout.slot_mapping.len()];
        let mut next = 0;
        let mut groups = Vec::with_capacity(lengths.len());
        for query_len in lengths {
            let members = layout.sequences.iter().filter(|s| s.query_len == query_len);
            let members: Vec<&SequenceSpan> = members.collect();
            let mut rows = Vec::with_capacity(members.len() * query_len);
            for row in members
                .iter()
                .flat_map(|s| s.query_start..s.query_start + query_len)
            {
                rows.push(row as i32);
                order[row] = next;
                next += 1;
            }
            groups.push(QueryGroup::new(layout, &members, rows, device));
        }
        let in_order = groups.iter().all(|group| group.rows.is_none());
        let slots = layout.slot_mapping.iter().map(|&slot| slot as i32);
        Self {
            slot_mapping: indices(slots.collect(), device),
            groups,
            order: (!in_order).then(|| indices(order, device)),
        }
    }
}

impl QueryGroup {
    fn new(
        layout: &BatchLayout,
        members: &[&SequenceSpan],
        rows: Vec<i32>,
        device: &Device,
    ) -> Self {
        let query_len = rows.len() / members.len();
        let context_len = members.iter().map(|s| s.context_len).max().unwrap_or(0);
        let mut keys = Vec::with_capacity(members.len() * context_len);
        let mut hidden = Vec::with_capacity(rows.len() * context_len);
        for sequence in members {
            let context = layout.context_slots(sequence, sequence.context_len);
            keys.extend(context.map(|slot| slot as i32));
            // Padding repeats a row of the sequence; the mask hides it.
            let last = keys[keys.len() - 1];
            keys.resize(keys.len() + context_len - sequence.context_len, last);
            let first_position = sequence.context_len - query_len;
            for position in first_position..sequence.context_len {
                hidden.extend((0..context_len).map(|key| key > position));
            }
        }
        let all_in_order = rows.len() == layout.slot_mapping.len() && rows.is_sorted();
        let shape = [members.len(), 1, query_len, context_len];
        Self {
            num_sequences: members.len(),
            query_len,
            context_len,
            rows: (!all_in_order).then(|| indices(rows, device)),
            keys: indices(keys, device),
            hidden: Tensor::from_data(TensorData::new(hidden, shape), device), // [n, 1, q, c]
        }
    }
}

/// Index tensors of packed documents.
#[derive(Debug)]
pub(super) struct Padding {
    /// `None` if all documents have the same length, so that packed and batched agree.
    pub(super) rows: Option<PaddedRows>,
    /// True above the diagonal, `[1, 1, max_len, max_len]`.
    pub(super) hidden: Tensor<4, Bool>,
}

/// Packed rows to documents padded to the longest, and back.
#[derive(Debug)]
pub(super) struct PaddedRows {
    /// Packed row of every padded row, `[documents * max_len]`.
    pub(super) pad: Tensor<1, Int>,
    /// Padded row of every packed row, `[tokens]`.
    pub(super) unpad: Tensor<1, Int>,
}

/// What stands in the rows behind a document.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fill {
    /// The last row of the document.
    LastRow,
    /// The row behind all documents.
    RowBehind,
}

impl PaddedRows {
    /// `None` if all documents have the same length, so that packed and batched agree. No length is zero.
    pub(super) fn new(lengths: &[usize], fill: Fill, device: &Device) -> Option<Self> {
        let max_len = lengths.iter().copied().max().unwrap_or(0);
        if lengths.iter().all(|&len| len == max_len) {
            return None;
        }
        let num_tokens: usize = lengths.iter().sum();
        let (mut pad, mut unpad, mut start) = (Vec::new(), Vec::new(), 0);
        for (document, &len) in lengths.iter().enumerate() {
            unpad.extend((0..len).map(|i| (document * max_len + i) as i32));
            let behind = match fill {
                Fill::LastRow => start + len - 1,
                Fill::RowBehind => num_tokens,
            };
            pad.extend((0..max_len).map(|i| if i < len { start + i } else { behind } as i32));
            start += len;
        }
        Some(Self {
            pad: indices(pad, device),
            unpad: indices(unpad, device),
        })
    }
}

impl Padding {
    pub(super) fn new(lengths: &[usize], device: &Device) -> Self {
        let max_len = lengths.iter().copied().max().unwrap_or(0);
        let hidden = Tensor::<2, Bool>::tril_mask([max_len, max_len], 0, device); // [max_len, max_len]
        Self {
            // Padding follows the document, so that the causal mask hides it from real rows.
            rows: PaddedRows::new(lengths, Fill::LastRow, device),
            hidden: hidden.reshape([1, 1, max_len, max_len]), // [1, 1, max_len, max_len]
        }
    }
}
