//! The allocations of a step whose adapters' inputs lose what dropout drops, see [`lora_4bit::training::Group`].

use super::groups::GroupAllocation;
use super::ledger::{Held, Ledger, Use};
use super::shape::StepShape;

impl StepShape<'_> {
    /// What the adapters of a group make of its masked input, each with a mask of its own.
    pub(super) fn dropped_shrink(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        let mut parts = Vec::new();
        for part in &group.parts {
            let masked = self.mask(ledger, group);
            let shape = [self.rows(), part.rank, group.inputs];
            parts.push(self.product(ledger, Use::Layer, shape, self.value));
            ledger.free([masked]);
        }
        let all = ledger.take(Use::Layer, self.wide(group.ranks));
        ledger.free(parts);
        all
    }

    /// A masked input; the mask itself is drawn where it is read.
    fn mask(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        ledger.take(Use::Layer, self.wide(group.inputs))
    }

    /// The gradients of all A of a group, each from its own masked input.
    pub(super) fn dropped_sums(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        let mut all = Vec::new();
        for part in &group.parts {
            let masked = self.mask(ledger, group);
            let shape = [group.inputs, part.rank, self.rows()];
            all.push(self.product(ledger, Use::Layer, shape, 4));
            ledger.free([masked]);
        }
        let sums = ledger.take(Use::Layer, 4 * group.ranks * group.inputs);
        ledger.free(all);
        sums
    }

    /// The gradient of a group's input, to which each adapter adds its masked part.
    pub(super) fn dropped_gradient(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        let rows = self.rows();
        let change = self.scaled(ledger, group);
        let shape = [rows, group.inputs, group.outputs];
        let dx = self.product(ledger, Use::Layer, shape, self.value);
        for part in &group.parts {
            let shape = [rows, group.inputs, part.rank];
            let mut through = self.product(ledger, Use::Layer, shape, self.value);
            if self.dora {
                // A layer's own columns are copied where there are others.
                let copied = (group.layers.len() > 1).then(|| self.wide(part.outputs));
                let copied = copied.map(|bytes| ledger.take(Use::Layer, bytes));
                let shape = [rows, group.inputs, part.outputs];
                let both = self.product(ledger, Use::Layer, shape, self.value);
                ledger.free(copied);
                ledger.free([std::mem::replace(&mut through, both)]);
            }
            let masked = self.mask(ledger, group);
            ledger.free([through, masked]);
        }
        ledger.free(change);
        dx
    }
}
