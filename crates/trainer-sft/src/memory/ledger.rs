//! What is allocated at the same time, by what it is for.

use super::pages::{Pages, Slice};
use crate::optimizer::{BLOCK, MIN_VALUES};

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// What is trained, its gradients and moments.
    Trained,
    /// What the forward pass keeps of each layer.
    Kept,
    /// What one layer computes.
    Layer,
    /// What a chunk of the loss computes.
    Loss,
}

/// A tensor.
#[derive(Debug)]
pub(super) struct Held {
    slice: Slice,
    usage: Use,
}

/// Tensors of a step.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pages: Pages,
    live: [u64; 4],
    most: [u64; 4],
    peak: u64,
    largest: u64,
}

impl Ledger {
    /// A ledger whose pages take what `other` has seen.
    pub(super) fn with_pages_of(other: &Self, before: impl FnOnce(&mut Self)) -> Self {
        let mut ledger = Self::default();
        before(&mut ledger);
        ledger.pages.grow(other.largest);
        ledger
    }

    /// Allocates.
    pub(super) fn take(&mut self, usage: Use, bytes: usize) -> Held {
        let slice = self.pages.take(bytes as u64);
        self.largest = self.largest.max(slice.len);
        self.hold(slice, usage)
    }

    /// Allocates outside of the pages.
    pub(super) fn take_own(&mut self, usage: Use, bytes: usize) -> Held {
        let slice = self.pages.take_own(bytes as u64);
        self.hold(slice, usage)
    }

    fn hold(&mut self, slice: Slice, usage: Use) -> Held {
        let (live, most) = (
            &mut self.live[usage as usize],
            &mut self.most[usage as usize],
        );
        *live += slice.len;
        *most = (*most).max(*live);
        self.peak = self.peak.max(self.pages.num_bytes());
        Held { slice, usage }
    }

    /// Allocates the moments of a parameter with this gradient.
    pub(super) fn take_moments(&mut self, gradient: &Held, eight_bit: bool) -> Vec<Held> {
        let values = gradient.slice.len as usize / size_of::<f32>();
        let parts = match eight_bit && values >= MIN_VALUES {
            false => vec![4 * values; 2],
            true => {
                // Codes, scales, and the levels of both maps.
                let blocks = values.div_ceil(BLOCK);
                vec![2 * BLOCK * blocks, 2 * 4 * blocks, 2 * 4 * 256]
            }
        };
        let taken = parts.into_iter();
        taken
            .map(|bytes| self.take(gradient.usage, bytes))
            .collect()
    }

    /// Allocates where there is something to hold.
    pub(super) fn take_some(&mut self, usage: Use, bytes: usize) -> Option<Held> {
        (bytes > 0).then(|| self.take(usage, bytes))
    }

    /// Frees.
    pub(super) fn free(&mut self, held: impl IntoIterator<Item = Held>) {
        for Held { slice, usage } in held {
            self.live[usage as usize] -= slice.len;
            self.pages.give_back(&slice);
        }
    }

    /// Bytes of a use now.
    #[cfg(test)]
    pub(super) fn live(&self, usage: Use) -> u64 {
        self.live[usage as usize]
    }

    /// The most bytes of a use at a time.
    pub(super) fn most(&self, usage: Use) -> u64 {
        self.most[usage as usize]
    }

    /// The most bytes of pages at a time.
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }
}
