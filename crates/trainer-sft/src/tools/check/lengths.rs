//! How long examples are.

use serde::Serialize;

use crate::data::Examples;

/// Bars of the histogram, at most.
const MAX_BARS: usize = 12;

/// Tokens of the examples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// Half of the examples are no longer.
    pub median: usize,
    /// Nine of ten are no longer.
    pub p90: usize,
    /// The longest.
    pub max: usize,
    /// Numbers of examples by their length.
    pub histogram: Vec<Bar>,
}

/// Examples of about one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// The least number of tokens.
    pub from: usize,
    /// The largest number of tokens.
    pub to: usize,
    /// Examples.
    pub count: usize,
}

impl Lengths {
    pub(super) fn of(examples: &Examples) -> Self {
        let lengths = (0..examples.len()).map(|index| examples.length(index));
        let mut lengths: Vec<usize> = lengths.collect();
        lengths.sort_unstable();
        let (Some(&min), Some(&max)) = (lengths.first(), lengths.last()) else {
            return Self::default();
        };
        // The nearest rank.
        let part = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100) - 1];
        Self {
            min,
            median: part(50),
            p90: part(90),
            max,
            histogram: histogram(&lengths, min, max),
        }
    }
}

/// Bars of one width, a power of two, from the shortest to the longest.
fn histogram(lengths: &[usize], min: usize, max: usize) -> Vec<Bar> {
    let mut width = 1;
    while max / width - min / width >= MAX_BARS {
        width *= 2;
    }
    let bars = (min / width..=max / width).map(|index| Bar {
        from: index * width,
        to: (index + 1) * width - 1,
        count: 0,
    });
    let mut bars: Vec<Bar> = bars.collect();
    for length in lengths {
        bars[length / width - min / width].count += 1;
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Example, Place, Source};

    fn lengths(of: &[usize]) -> Lengths {
        let source = Source {
            file: std::path::Path::new("x").into(),
            place: Place::Line(1),
        };
        let examples = of.iter().map(|&len| Example {
            tokens: vec![0; len],
            mask: vec![true; len],
            is_wanted: true,
            source: source.clone(),
        });
        Lengths::of(&examples.collect::<Vec<_>>().into())
    }

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let found = lengths(&[9, 1, 2, 3, 4, 5, 6, 7, 8, 100]);
        let Lengths {
            min,
            median,
            p90,
            max,
            ..
        } = found;
        assert_eq!([min, median, p90, max], [1, 5, 9, 100]);
        assert_eq!(lengths(&[]), Lengths::default());
    }

    #[test]
    fn each_example_is_in_one_bar() {
        for of in [&[7][..], &[3, 3, 3], &[1, 1000, 17, 500], &[1023, 1024]] {
            let bars = lengths(of).histogram;
            assert!(bars.len() <= MAX_BARS, "{bars:?}");
            for bar in &bars {
                let inside = |len: &&usize| (bar.from..=bar.to).contains(*len);
                assert_eq!(of.iter().filter(inside).count(), bar.count);
            }
            assert_eq!(bars.iter().map(|bar| bar.count).sum::<usize>(), of.len());
        }
    }
}
