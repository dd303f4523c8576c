//! How long the rows of a run are.

use crate::config::{Config, Method};
use crate::data::{Datasets, TrainData};

/// Tokens of each row, the longest first.
#[derive(Clone, Debug)]
pub(crate) struct RowLengths {
    lengths: Lengths,
    /// Tokens of a document, at most, as the model's context has them.
    max_length: usize,
    /// Documents in a row, both of a pair.
    per_row: usize,
}

#[derive(Clone, Debug)]
enum Lengths {
    Known(Vec<usize>),
    /// Rows are filled, or read later; together they have so many tokens.
    Any(usize),
}

impl RowLengths {
    /// The rows of a run.
    pub(crate) fn of(config: &Config, datasets: &Datasets) -> Self {
        let max_length = datasets.max_length;
        let TrainData::Loaded(data) = &datasets.train else {
            return Self::any(usize::MAX, max_length);
        };
        let examples = &data.examples;
        let length = |index| examples.length(index);
        if config.method.method == Method::Grpo {
            // Of answers that are not there yet.
            return Self::any(usize::MAX, max_length);
        }
        if config.data.packing {
            return Self::any((0..examples.len()).map(length).sum(), max_length);
        }
        let per_row = examples.per_pair();
        let starts = (0..examples.len()).step_by(per_row);
        let rows = starts.map(|start| (start..start + per_row).map(length).sum());
        Self::known(rows.collect(), max_length, per_row)
    }

    fn known(mut lengths: Vec<usize>, max_length: usize, per_row: usize) -> Self {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        Self {
            lengths: Lengths::Known(lengths),
            max_length,
            per_row,
        }
    }

    pub(super) fn any(tokens: usize, max_length: usize) -> Self {
        Self {
            lengths: Lengths::Any(tokens),
            max_length,
            per_row: 1,
        }
    }

    /// Tokens of the largest batch of so many rows, whose documents have `max_length` tokens at most.
    pub(crate) fn most_tokens(&self, rows: usize, max_length: usize) -> usize {
        let most = self.per_row * max_length.min(self.max_length);
        match &self.lengths {
            Lengths::Any(all) => rows.saturating_mul(most).min(*all),
            Lengths::Known(lengths) => {
                let lengths = lengths.iter().take(rows);
                lengths.map(|&length| length.min(most)).sum()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_rows_come_together() {
        let rows = RowLengths::known(vec![3, 9, 5], 100, 1);
        assert_eq!(rows.most_tokens(2, 200), 14);
        assert_eq!(rows.most_tokens(2, 4), 8);
        assert_eq!(rows.most_tokens(9, 100), 17);
        let any = RowLengths::any(50, 10);
        assert_eq!([any.most_tokens(3, 20), any.most_tokens(9, 20)], [30, 50]);
    }
}
