//! How long the rows of a run are.

use crate::config::{Config, Method};
use crate::data::{Datasets, Examples, TrainData};

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
        match &datasets.train {
            TrainData::Loaded(data) => Self::of_examples(config, &data.examples, max_length),
            TrainData::Streamed(_) => Self::any(usize::MAX, max_length),
        }
    }

    /// The rows of examples that are all there.
    pub(crate) fn of_examples(config: &Config, examples: &Examples, max_length: usize) -> Self {
        let length = |index| examples.length(index);
        if config.method.method == Method::Grpo {
            // Of prompts, whose answers are not there yet.
            let prompts = (0..examples.len()).map(length).collect();
            return Self::known(prompts, max_length, 1);
        }
        if config.data.packing {
            return Self::any((0..examples.len()).map(length).sum(), max_length);
        }
        let per_row = examples.per_pair();
        let starts = (0..examples.len()).step_by(per_row);
        let rows = starts.map(|start| (start..start + per_row).map(length).sum());
        Self::known(rows.collect(), max_length, per_row)
    }

    pub(super) fn known(mut lengths: Vec<usize>, max_length: usize, per_row: usize) -> Self {
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

    /// Tokens of the largest batch of a run.
    pub(crate) fn most_tokens(&self, config: &Config) -> usize {
        let rows = config.run.batch_size;
        if config.method.method == Method::Grpo {
            // All answers to the longest prompt.
            let answer = config.grpo.max_completion_length();
            return rows.saturating_mul(self.of_rows(1, usize::MAX) + answer);
        }
        self.of_rows(rows, config.data.max_length)
    }

    /// Of so many rows, whose documents have `max_length` tokens at most.
    fn of_rows(&self, rows: usize, max_length: usize) -> usize {
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
        assert_eq!(rows.of_rows(2, 200), 14);
        assert_eq!(rows.of_rows(2, 4), 8);
        assert_eq!(rows.of_rows(9, 100), 17);
        let any = RowLengths::any(50, 10);
        assert_eq!([any.of_rows(3, 20), any.of_rows(9, 20)], [30, 50]);
    }
}
