//! One sequence's vector.

use std::ops::Range;

use kv_paging::Chunk;
use model_qwen::PoolingType;

/// One sequence's vector as it grows.
#[derive(Debug)]
pub(super) struct Pooler {
    kind: PoolingType,
    sum: Vec<f64>,
    /// Tokens that it has seen.
    num: usize,
}

impl Pooler {
    pub(super) fn new(kind: PoolingType) -> Self {
        Self {
            kind,
            sum: Vec::new(),
            num: 0,
        }
    }

    /// Whether it needs more than the last token, so that no part of the prompt may come from the cache.
    pub(super) fn needs_all(kind: PoolingType) -> bool {
        kind != PoolingType::Last
    }

    /// The tokens of a chunk whose hidden states it takes. After a preemption the chunks start over; what was seen stays.
    pub(super) fn tokens(&self, chunk: &Chunk) -> Range<usize> {
        let len = chunk.tokens.len();
        let unseen = self.num.saturating_sub(chunk.start).min(len);
        match self.kind {
            PoolingType::Last if chunk.samples => len - 1..len,
            PoolingType::Last => 0..0,
            PoolingType::Cls => unseen..usize::from(self.num == 0).max(unseen),
            PoolingType::Mean => unseen..len,
        }
    }

    pub(super) fn add(&mut self, row: &[f32]) {
        self.sum.resize(row.len(), 0.0);
        let values = self.sum.iter_mut().zip(row);
        values.for_each(|(sum, &value)| *sum += f64::from(value));
        self.num += 1;
    }

    pub(super) fn mean(&self) -> Vec<f32> {
        let num = self.num.max(1) as f64;
        self.sum.iter().map(|sum| (sum / num) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(start: usize, len: usize, samples: bool) -> Chunk {
        Chunk {
            id: 1,
            tokens: vec![0; len],
            draft: Vec::new(),
            start,
            block_table: Vec::new(),
            samples,
            reaches_max_len: false,
            num_cached: 0,
        }
    }

    #[test]
    fn tokens_count_once_whatever_the_chunks() {
        let chunks = [
            chunk(0, 3, false),
            chunk(3, 2, false),
            // A preemption.
            chunk(0, 4, false),
            chunk(4, 3, true),
        ];
        for (kind, expected) in [
            (PoolingType::Mean, vec![0..3, 0..2, 4..4, 1..3]),
            (PoolingType::Last, vec![0..0, 0..0, 0..0, 2..3]),
            (PoolingType::Cls, vec![0..1, 0..0, 1..1, 0..0]),
        ] {
            let mut pooler = Pooler::new(kind);
            for (chunk, expected) in chunks.iter().zip(expected) {
                let tokens = pooler.tokens(chunk);
                assert_eq!(tokens, expected, "{kind:?} at {}", chunk.start);
                tokens.for_each(|i| pooler.add(&[(chunk.start + i) as f32]));
            }
            let expected = match kind {
                PoolingType::Mean => 3.0,
                PoolingType::Last => 6.0,
                PoolingType::Cls => 0.0,
            };
            assert_eq!(pooler.mean(), [expected]);
        }
    }
}
