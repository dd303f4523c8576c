//! A part of the training data that is kept for evaluation.

use std::collections::HashSet;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tracing::info;

use super::{DataError, Dataset, Source};

/// The stream of random numbers of the split, which no order of the training data uses.
const STREAM: u64 = 1 << 63;

impl Dataset {
    /// Takes `part` of the records, rounded up, out for evaluation. Which ones depends on `seed`; all examples of a record stay
    /// together.
    ///
    /// # Errors
    /// Fewer than two records, and tokens that cannot be read or written.
    pub(super) fn split(
        &mut self,
        part: f64,
        seed: u64,
        folder: Option<&Path>,
    ) -> Result<Self, DataError> {
        // A file that is given twice has its records twice, and they stay together, too.
        let mut seen = HashSet::new();
        let sources = (0..self.examples.len()).map(|index| self.examples.source(index));
        let mut records: Vec<Source> = sources
            .filter(|source| seen.insert(source.clone()))
            .collect();
        let all = records.len();
        let count = num_taken(part, all).ok_or(DataError::Split { part, records: all })?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(STREAM);
        records.shuffle(&mut rng);
        let taken: HashSet<Source> = records.into_iter().take(count).collect();
        let examples = self
            .examples
            .take(|source| taken.contains(source), folder)?;
        info!(
            "--eval-split {part}: {count} of {all} records are kept for evaluation, {} tokens of them to predict",
            examples.num_targets()
        );
        Ok(Self {
            examples,
            report: Default::default(),
            hash: self.hash.clone(),
        })
    }
}

/// How many of `all` records are taken; `None` where nothing would be left.
fn num_taken(part: f64, all: usize) -> Option<usize> {
    // 0.07 of 100 is 7, whatever its last bit says.
    let count = (part * all as f64 - 1e-9).ceil() as usize;
    (count > 0 && count < all).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Example, Place};

    /// Two examples of each record.
    fn dataset(records: usize) -> Dataset {
        let examples = (0..2 * records).map(|index| Example {
            tokens: vec![index as u32; 3 + index % 5],
            mask: (0..3 + index % 5).map(|position| position > 1).collect(),
            is_wanted: true,
            source: Source {
                file: Path::new("a.jsonl").into(),
                place: Place::Line(index / 2 + 1),
            },
        });
        Dataset {
            examples: examples.collect::<Vec<_>>().into(),
            ..Dataset::default()
        }
    }

    fn lines(data: &Dataset) -> Vec<String> {
        let sources = (0..data.examples.len()).map(|index| data.examples.source(index));
        sources.map(|source| source.to_string()).collect()
    }

    #[test]
    fn records_stay_whole_and_the_seed_decides() {
        let drawn = |seed| {
            let mut train = dataset(40);
            let (all, targets) = (train.examples.num_tokens(), train.examples.num_targets());
            let eval = train.split(0.1, seed, None).unwrap();
            assert_eq!((eval.examples.len(), train.examples.len()), (8, 72));
            let (a, b) = (&eval.examples, &train.examples);
            assert_eq!(a.num_tokens() + b.num_tokens(), all);
            assert_eq!(a.num_targets() + b.num_targets(), targets);
            let (eval, train) = (lines(&eval), lines(&train));
            assert!(eval.iter().all(|line| !train.contains(line)));
            eval
        };
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1), drawn(2));
    }

    #[test]
    fn a_file_that_is_given_twice_has_each_record_once() {
        let mut train = dataset(20);
        let twice = [&train, &train].map(|data| data.examples.iter().map(Result::unwrap));
        let twice: Vec<Example> = twice.into_iter().flatten().collect();
        train.examples = twice.into();
        let eval = train.split(0.1, 1, None).unwrap();
        assert_eq!((eval.examples.len(), train.examples.len()), (8, 72));
        let (eval, train) = (lines(&eval), lines(&train));
        assert!(eval.iter().all(|line| !train.contains(line)));
    }

    #[test]
    fn something_is_left_to_learn() {
        assert_eq!(num_taken(0.05, 21), Some(2));
        assert_eq!(
            (num_taken(0.01, 2), num_taken(0.07, 100)),
            (Some(1), Some(7))
        );
        assert_eq!((num_taken(0.5, 1), num_taken(0.99, 3)), (None, None));
        let message = dataset(1).split(0.5, 1, None).unwrap_err().to_string();
        assert!(message.starts_with("--eval-split: expected"), "{message}");
    }
}
