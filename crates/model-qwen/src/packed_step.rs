//! One step of many sequences, packed one after the other: what the model computes in one forward pass over a paged cache.

use burn::tensor::Tensor;
use kv_paging::{AttentionBatch, PagedAttention, PagedKvCache, SequenceChunk};
use lora_4bit::AdapterSelection;

use crate::model::QwenModel;

/// Tokens of sequences that one step computes.
///
/// On a GPU, adapters must be [stacked](QwenModel::stack_adapters) since they changed.
#[derive(Clone, Debug, Default)]
pub struct PackedStep<'a> {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// The adapter of each token.
    slots: Vec<Option<usize>>,
    chunks: Vec<SequenceChunk<'a>>,
}

impl<'a> PackedStep<'a> {
    /// Adds the next tokens of a sequence that has `start` tokens before them.
    ///
    /// `slot` is that of the sequence's adapter. `block_table` has the block of every `block_size` tokens of the sequence, up to
    /// the last one of `tokens` or beyond.
    pub fn push(
        &mut self,
        tokens: &[u32],
        start: usize,
        slot: Option<usize>,
        block_table: &'a [u32],
    ) {
        let end = start + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(start as u32..end as u32);
        self.slots.resize(self.tokens.len(), slot);
        self.chunks.push(SequenceChunk {
            query_len: tokens.len(),
            context_len: end,
            block_table,
        });
    }

    /// Tokens of the step, which are its rows.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The row of the last token of each [`PackedStep::push`].
    pub fn last_rows(&self) -> Vec<usize> {
        let ends = self.chunks.iter().scan(0, |end, chunk| {
            *end += chunk.query_len;
            Some(*end - 1)
        });
        ends.collect()
    }

    /// Hidden states of all tokens, see [`QwenModel::forward`]; their keys and values are in the cache then.
    ///
    /// # Shapes
    /// Result `[tokens, hidden]`.
    ///
    /// # Panics
    /// As [`QwenModel::forward`] and [`BatchLayout::new`](kv_paging::BatchLayout::new).
    pub fn forward(&self, model: &QwenModel, cache: &mut PagedKvCache) -> Tensor<2> {
        self.forward_with(model, cache, &self.adapters(model))
    }

    /// As [`PackedStep::forward`], with another selection of adapters than the one that the slots of the tokens give.
    pub(crate) fn forward_with(
        &self,
        model: &QwenModel,
        cache: &mut PagedKvCache,
        adapters: &AdapterSelection,
    ) -> Tensor<2> {
        let batch = AttentionBatch::new(&self.chunks, cache.shape().block_size);
        let mut kv = PagedAttention::new(cache, &batch);
        model.forward(&self.tokens, &self.positions, adapters, &mut kv)
    }

    /// Hidden states of some rows, see [`QwenModel::forward_rows`]; the keys and values of all tokens are in the cache then.
    ///
    /// # Shapes
    /// Result `[rows, hidden]`.
    ///
    /// # Panics
    /// As [`PackedStep::forward`], and when a row is not below the number of tokens.
    pub fn forward_rows(
        &self,
        model: &QwenModel,
        cache: &mut PagedKvCache,
        rows: &[usize],
    ) -> Tensor<2> {
        let adapters = self.adapters(model);
        let batch = AttentionBatch::new(&self.chunks, cache.shape().block_size);
        let mut kv = PagedAttention::new(cache, &batch);
        model.forward_rows(&self.tokens, &self.positions, rows, &adapters, &mut kv)
    }

    fn adapters(&self, model: &QwenModel) -> AdapterSelection {
        AdapterSelection::per_row(&self.slots, &model.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_lie_one_after_the_other() {
        let mut step = PackedStep::default();
        step.push(&[7, 8, 9], 16, Some(2), &[4, 5]);
        step.push(&[6], 0, None, &[1]);
        assert_eq!(step.tokens, [7, 8, 9, 6]);
        assert_eq!(step.positions, [16, 17, 18, 0]);
        assert_eq!(step.slots, [Some(2), Some(2), Some(2), None]);
        let lens = |chunk: &SequenceChunk<'_>| (chunk.query_len, chunk.context_len);
        let lens: Vec<_> = step.chunks.iter().map(lens).collect();
        assert_eq!(lens, [(3, 19), (1, 1)]);
        assert_eq!(step.last_rows(), [2, 3]);
        assert_eq!(step.num_tokens(), 4);
    }
}
