//! The plain description of one packed step: which cache rows each sequence reads and writes.

/// What one sequence contributes to a step.
#[derive(Clone, Copy, Debug)]
pub struct SequenceChunk<'a> {
    /// Tokens computed in this step: 1 for a decode, more for a prefill chunk.
    pub query_len: usize,
    /// Tokens of the sequence in the cache after this step's writes, the queries included.
    pub context_len: usize,
    /// Block of every `block_size` context tokens, in order; longer tables are fine.
    pub block_table: &'a [u32],
}

/// Where one sequence lies in the packed step.
#[derive(Clone, Debug)]
pub struct SequenceSpan {
    /// Packed row of its first query.
    pub query_start: usize,
    /// Number of queries.
    pub query_len: usize,
    /// Context tokens including the queries; query `i` is at position `context_len - query_len + i`.
    pub context_len: usize,
    /// Its blocks, as a range of [`BatchLayout::block_tables`].
    pub blocks: std::ops::Range<usize>,
}

/// The sequences of a packed step and their cache rows.
#[derive(Debug)]
pub struct BatchLayout {
    /// Tokens per block.
    pub block_size: usize,
    /// One entry per sequence, in packed order.
    pub sequences: Vec<SequenceSpan>,
    /// All block tables, one after another, cut to the blocks in use.
    pub block_tables: Vec<u32>,
    /// Cache row of every packed token.
    pub slot_mapping: Vec<u32>,
    /// Cache rows the batch needs: one past the last row of its highest block.
    pub num_slots: usize,
}

impl BatchLayout {
    /// Lays out the chunks one after another.
    ///
    /// # Panics
    ///
    /// If `block_size` is zero, if a chunk has no query or more queries than context, or if its
    /// block table is too short for its context. The scheduler never builds such a chunk; the
    /// kernels rely on these checks and make none of their own.
    pub fn new(chunks: &[SequenceChunk<'_>], block_size: usize) -> Self {
        assert!(block_size > 0, "block_size must be positive");
        let num_tokens = chunks.iter().map(|chunk| chunk.query_len).sum();
        let mut layout = Self {
            block_size,
            sequences: Vec::with_capacity(chunks.len()),
            block_tables: Vec::new(),
            slot_mapping: Vec::with_capacity(num_tokens),
            num_slots: 0,
        };
        for (index, chunk) in chunks.iter().enumerate() {
            layout.push(index, chunk);
        }
        layout
    }

    fn push(&mut self, index: usize, chunk: &SequenceChunk<'_>) {
        let block_size = self.block_size;
        let num_blocks = chunk.context_len.div_ceil(block_size);
        assert!(
            (1..=chunk.context_len).contains(&chunk.query_len)
                && num_blocks <= chunk.block_table.len(),
            "chunk {index}: {} queries, {} context tokens and {} blocks of {block_size} do not fit together",
            chunk.query_len,
            chunk.context_len,
            chunk.block_table.len(),
        );
        let query_start = self.slot_mapping.len();
        let blocks_start = self.block_tables.len();
        let table = &chunk.block_table[..num_blocks];
        self.block_tables.extend_from_slice(table);
        for position in chunk.context_len - chunk.query_len..chunk.context_len {
            let slot = table[position / block_size] as usize * block_size;
            self.slot_mapping
                .push((slot + position % block_size) as u32);
        }
        for &block in table {
            let end = (block as usize + 1) * block_size;
            self.num_slots = self.num_slots.max(end);
        }
        self.sequences.push(SequenceSpan {
            query_start,
            query_len: chunk.query_len,
            context_len: chunk.context_len,
            blocks: blocks_start..blocks_start + num_blocks,
        });
    }

    /// Packed tokens of the step.
    pub fn num_tokens(&self) -> usize {
        self.slot_mapping.len()
    }

    /// Block table of `sequence`.
    pub fn block_table(&self, sequence: &SequenceSpan) -> &[u32] {
        &self.block_tables[sequence.blocks.clone()]
    }

    /// Cache rows of the first `len` context tokens of `sequence`.
    pub fn context_slots(&self, sequence: &SequenceSpan, len: usize) -> impl Iterator<Item = u32> {
        let block_size = self.block_size;
        let table = self.block_table(sequence);
        (0..len).map(move |p| table[p / block_size] * block_size as u32 + (p % block_size) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_block_table() {
        let chunks = [
            SequenceChunk {
                query_len: 3,
                context_len: 6,
                block_table: &[5, 2, 9],
            },
            SequenceChunk {
                query_len: 1,
                context_len: 4,
                block_table: &[0],
            },
        ];
        let layout = BatchLayout::new(&chunks, 4);
        assert_eq!(layout.slot_mapping, [23, 8, 9, 3]);
        assert_eq!(layout.num_tokens(), 4);
        assert_eq!(layout.num_slots, 24);
        assert_eq!(layout.block_table(&layout.sequences[0]), [5, 2]);
        assert_eq!(layout.sequences[1].query_start, 3);
        let context: Vec<u32> = layout.context_slots(&layout.sequences[0], 6).collect();
        assert_eq!(context, [20, 21, 22, 23, 8, 9]);
    }

    #[test]
    #[should_panic(expected = "chunk 0: 1 queries, 9 context tokens and 2 blocks of 4")]
    fn a_short_block_table_is_refused() {
        let chunk = SequenceChunk {
            query_len: 1,
            context_len: 9,
            block_table: &[0, 1],
        };
        BatchLayout::new(&[chunk], 4);
    }
}
