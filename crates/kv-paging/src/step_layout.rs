//! The plain description of a recorded step, as one list of 32-bit integers.
//!
//! The list has one field after the other, each with a value for every row; the block tables of all rows follow. See
//! [`StepLayout::encode`].

/// The token that a row of a step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeToken {
    /// A token that the host knows.
    Id(u32),
    /// The token that the step before chose in that row: the host need not know it yet.
    ChosenIn(usize),
}

impl DecodeToken {
    /// Ids as they are; rows as -1, -2 and so on.
    fn encode(self) -> i32 {
        match self {
            Self::Id(id) => id as i32,
            Self::ChosenIn(row) => -1 - row as i32,
        }
    }
}

/// One token of a step: the next one of a sequence, or a guessed one after it.
#[derive(Clone, Copy, Debug)]
pub struct StepRow<'a> {
    /// The token to compute.
    pub token: DecodeToken,
    /// Its position: the number of tokens before it.
    pub position: usize,
    /// The slot of the sequence's adapter.
    pub adapter_slot: Option<usize>,
    /// Block of every `block_size` tokens up to this one.
    pub block_table: &'a [u32],
    /// How the caller's kernels choose the token that follows. This crate does not read it.
    pub choice: [i32; CHOICE_WORDS],
}

/// Integers of [`StepRow::choice`].
pub const CHOICE_WORDS: usize = 5;

/// Integers of a row, besides its block table.
pub(crate) const FIELDS: usize = CHOICE + CHOICE_WORDS;

// Fields in the order of the list. Kernels of attention read the first three.

/// Cache row that the row's key and value are written to.
const SLOT_MAPPING: usize = 0;
/// Keys that the row sees; 0 in a row without a token.
const CONTEXT: usize = 1;
/// Where the row's block table starts.
const TABLE: usize = 2;
/// The token's id, or -1, -2, ... for the token that the step before chose in row 0, 1, ...
const TOKEN: usize = 3;
/// The token's position.
const POSITION: usize = 4;
/// The slot of the row's adapter; -1 without one.
const ADAPTER: usize = 5;
/// The first of [`CHOICE_WORDS`] fields.
const CHOICE: usize = 6;

/// Where the fields of a step lie in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StepLayout {
    /// Rows, with and without a token.
    pub(crate) num_rows: usize,
    /// Blocks of a row at most.
    pub(crate) max_blocks: usize,
    /// Tokens per block.
    pub(crate) block_size: usize,
}

impl StepLayout {
    /// Integers of a list whose rows all have `max_blocks` blocks.
    pub(crate) fn len(&self) -> usize {
        self.num_rows * (FIELDS + self.max_blocks)
    }

    /// Where the tokens start.
    pub(crate) fn tokens_at(&self) -> usize {
        TOKEN * self.num_rows
    }

    /// Where the positions start.
    pub(crate) fn positions_at(&self) -> usize {
        POSITION * self.num_rows
    }

    /// Where the slots of the adapters start.
    pub(crate) fn adapter_slots_at(&self) -> usize {
        ADAPTER * self.num_rows
    }

    /// Where [`StepRow::choice`] starts: its first integer for all rows, then the second, and so on.
    pub(crate) fn choices_at(&self) -> usize {
        CHOICE * self.num_rows
    }

    /// The list of `rows`; further rows of the step have no token.
    ///
    /// # Panics
    ///
    /// If `rows` are more than the step's, or if a block table is too short or too long.
    pub(crate) fn encode(&self, rows: &[StepRow<'_>]) -> Vec<i32> {
        assert!(rows.len() <= self.num_rows, "{} rows", rows.len());
        let mut values = vec![0; FIELDS * self.num_rows];
        values[self.adapter_slots_at()..self.choices_at()].fill(-1);
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
                (SLOT_MAPPING, slot as i32),
                (CONTEXT, row.position as i32 + 1),
                (TABLE, table as i32),
                (TOKEN, row.token.encode()),
                (POSITION, row.position as i32),
                (ADAPTER, row.adapter_slot.map_or(-1, |slot| slot as i32)),
            ];
            for (field, value) in fields.into_iter().chain((CHOICE..).zip(row.choice)) {
                values[field * self.num_rows + i] = value;
            }
            let blocks = &row.block_table[..num_blocks];
            values.extend(blocks.iter().map(|&block| block as i32));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_one_after_the_other_and_tables_follow() {
        let layout = StepLayout {
            num_rows: 3,
            max_blocks: 2,
            block_size: 4,
        };
        let row = |token, position, adapter_slot, block_table| StepRow {
            token,
            position,
            adapter_slot,
            block_table,
            choice: [1, 2, 3, 4, 5],
        };
        let values = layout.encode(&[
            row(DecodeToken::Id(9), 5, Some(2), &[7, 3, 0]),
            row(DecodeToken::ChosenIn(1), 0, None, &[6]),
        ]);
        let tables = FIELDS * 3;
        assert_eq!(values[..3], [13, 24, 0], "cache rows");
        assert_eq!(values[3..6], [6, 1, 0], "keys that are seen");
        assert_eq!(values[6..9], [tables as i32, tables as i32 + 2, 0]);
        assert_eq!(values[layout.tokens_at()..][..3], [9, -2, 0]);
        assert_eq!(values[layout.positions_at()..][..3], [5, 0, 0]);
        assert_eq!(values[layout.adapter_slots_at()..][..3], [2, -1, -1]);
        assert_eq!(values[layout.choices_at()..][..6], [1, 1, 0, 2, 2, 0]);
        assert_eq!(values[tables..], [7, 3, 6]);
        assert!(values.len() <= layout.len());
    }

    #[test]
    #[should_panic(expected = "row 0: position 4 with 1 blocks, 2 fit")]
    fn a_short_block_table_is_refused() {
        let layout = StepLayout {
            num_rows: 1,
            max_blocks: 2,
            block_size: 4,
        };
        layout.encode(&[StepRow {
            token: DecodeToken::Id(0),
            position: 4,
            adapter_slot: None,
            block_table: &[0],
            choice: [0; CHOICE_WORDS],
        }]);
    }
}
