//! The part of a step's micro-batches that one of several devices computes.

use super::Batch;

/// Which micro-batches of a step a device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    rank: usize,
    of: usize,
}

impl Share {
    /// All of them.
    pub(crate) const ALL: Self = Self { rank: 0, of: 1 };

    /// Those of device `rank` of `of` devices.
    pub(crate) fn new(rank: usize, of: usize) -> Self {
        Self { rank, of }
    }

    /// The items of this share with their indices.
    pub(crate) fn items<T>(self, all: &[T]) -> impl Iterator<Item = (usize, &T)> {
        all.iter()
            .enumerate()
            .skip(self.rank)
            .step_by(self.of.max(1))
    }
}

/// The micro-batches of a step, and which of them a device computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepShare<'a> {
    /// All micro-batches of the step.
    pub(crate) batches: &'a [Batch],
    pub(crate) share: Share,
}

impl<'a> StepShare<'a> {
    /// Of a device that computes the whole step.
    pub(crate) fn whole(batches: &'a [Batch]) -> Self {
        Self {
            batches,
            share: Share::ALL,
        }
    }

    /// Of device `rank` of `of` devices.
    pub(crate) fn new(batches: &'a [Batch], rank: usize, of: usize) -> Self {
        Self {
            batches,
            share: Share::new(rank, of),
        }
    }

    /// The micro-batches that the device computes, with their indices in the step.
    pub(crate) fn own(self) -> impl Iterator<Item = (usize, &'a Batch)> {
        self.share.items(self.batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_dealt_out() {
        let all = [10, 11, 12, 13, 14];
        let of = |rank, of| {
            let items = Share::new(rank, of).items(&all);
            items.map(|(index, _)| index).collect::<Vec<_>>()
        };
        assert_eq!([of(0, 2), of(1, 2)], [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!(of(6, 7), Vec::<usize>::new());
        assert_eq!(Share::ALL.items(&all).count(), 5);
    }
}
