//! The allocations of a step whose adapters' inputs lose what dropout drops, see [`lora_4bit::training::Group`].

use super::ledger::{Held, Ledger, Use};
use super::step::{Group, StepShape};

impl StepShape<'_> {
    /// What the adapters of a group make of its masked input, each with a mask of its own.
    pub(super) fn dropped_shrink(&self, ledger: &mut Ledger, group: &Group) -> Held {
        let mut parts = Vec::new();
        for &[_, rank, _] in &group.parts {
            let masked = self.mask(ledger, group);
            let shape = [self.rows(), rank, group.inputs];
            parts.push(self.product(ledger, Use::Layer, shape, self.value));
            ledger.free([masked]);
        }
        let all = ledger.take(Use::Layer, self.wide(group.ranks));
        ledger.free(parts);
        all
    }

    /// A mask in the type of the activations, whose memory the masked input takes.
    fn mask(&self, ledger: &mut Ledger, group: &Group) -> Held {
        let mask = ledger.take(Use::Layer, 4 * self.rows() * group.inputs);
        if self.value == 4 {
            return mask;
        }
        let cast = ledger.take(Use::Layer, self.wide(group.inputs));
        ledger.free([mask]);
        cast
    }

    /// [`Self::group_backward`] from the gradient of the inner products on, where inputs are masked.
    pub(super) fn dropped_backward(
        &self,
        ledger: &mut Ledger,
        group: Group,
        (x, dh, db): (Option<Held>, Held, Held),
        add: &mut impl FnMut(&mut Ledger, [usize; 2], usize),
    ) -> Held {
        let rows = self.rows();
        let shape = [rows, group.inputs, group.outputs];
        let dx = self.product(ledger, Use::Layer, shape, self.value);
        let mut all = Vec::new();
        for &[_, rank, _] in &group.parts {
            let mask = self.mask(ledger, &group);
            let shape = [rows, group.inputs, rank];
            let through = self.product(ledger, Use::Layer, shape, self.value);
            let masked = ledger.take(Use::Layer, self.wide(group.inputs));
            ledger.free([through, mask]);
            let shape = [group.inputs, rank, rows];
            all.push(self.product(ledger, Use::Layer, shape, 4));
            ledger.free([masked]);
        }
        let da = ledger.take(Use::Layer, 4 * group.ranks * group.inputs);
        ledger.free(all.into_iter().chain(x).chain([dh]));
        for &[place, rank, outputs] in &group.parts {
            add(ledger, [place, 0], 4 * rank * group.inputs);
            add(ledger, [place, 1], 4 * rank * outputs);
        }
        ledger.free(group.held);
        ledger.free([da, db]);
        dx
    }
}
