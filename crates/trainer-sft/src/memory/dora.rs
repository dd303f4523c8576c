//! The allocations of a step whose adapters have DoRA, see [`lora_4bit::training::Group`].

use super::gradients::{LayerGradientLedger, ModuleTensor};
use super::groups::{AdapterPart, GroupAllocation};
use super::ledger::{Held, Ledger, Use};
use super::shape::StepShape;

/// Columns of ones that sum over rows.
pub(super) const ONES: usize = 64;

impl StepShape<'_> {
    /// Whether a group has DoRA.
    pub(super) fn has_dora(&self, group: &GroupAllocation) -> bool {
        self.dora && group.ranks > 0
    }

    /// What a group makes of its input.
    pub(super) fn result_with_dora(
        &self,
        ledger: &mut Ledger,
        usage: Use,
        group: &GroupAllocation,
    ) -> Held {
        let rows = self.rows();
        if !self.dropout {
            let shape = [rows, group.outputs, group.inputs + group.ranks];
            let z = self.product(ledger, Use::Layer, shape, self.value);
            let y = ledger.take(usage, self.wide(group.outputs));
            ledger.free([z]);
            return y;
        }
        let masked = self.through_masked(ledger, group);
        let shape = [rows, group.outputs, group.inputs];
        let base = self.product(ledger, Use::Layer, shape, self.value);
        let part = ledger.take(Use::Layer, self.wide(group.outputs));
        ledger.free([masked, base]);
        let update = self.expand(ledger, group);
        let y = ledger.take(usage, self.wide(group.outputs));
        ledger.free([update, part]);
        y
    }

    /// What the weights make of the masked inputs of a group's layers.
    fn through_masked(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        let mut parts = Vec::new();
        for layer in &group.layers {
            let has_adapter = |part: &AdapterPart| part.module == layer.module;
            if !group.parts.iter().any(has_adapter) {
                parts.push(ledger.take(Use::Layer, self.wide(layer.outputs)));
                continue;
            }
            let masked = ledger.take(Use::Layer, self.wide(group.inputs));
            let shape = [self.rows(), layer.outputs, group.inputs];
            parts.push(self.product(ledger, Use::Layer, shape, self.value));
            ledger.free([masked]);
        }
        if parts.len() == 1 {
            return parts.swap_remove(0);
        }
        let all = ledger.take(Use::Layer, self.wide(group.outputs));
        ledger.free(parts);
        all
    }

    /// What the adapters add to it.
    fn expand(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        let shape = [self.rows(), group.outputs, group.ranks];
        self.product(ledger, Use::Layer, shape, self.value)
    }

    /// The gradient of a group's result times its factors.
    pub(super) fn scaled(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Option<Held> {
        (self.has_dora(group)).then(|| ledger.take(Use::Layer, self.wide(group.outputs)))
    }

    /// The gradients of the magnitudes.
    pub(super) fn magnitude_gradients(
        &self,
        ledger: &mut Ledger,
        group: &GroupAllocation,
        found: &mut LayerGradientLedger<'_>,
    ) {
        if !self.has_dora(group) {
            return;
        }
        let z = match self.dropout {
            false => {
                let shape = [self.rows(), group.outputs, group.inputs + group.ranks];
                self.product(ledger, Use::Layer, shape, self.value)
            }
            true => {
                let masked = self.through_masked(ledger, group);
                let update = self.expand(ledger, group);
                // The sum takes the place of the first.
                ledger.free([update]);
                masked
            }
        };
        let sums = self.summed_rows(ledger, group.outputs);
        ledger.free([z]);
        for part in &group.parts {
            let bytes = 4 * part.outputs;
            match self.is_flat(part.outputs) {
                true => {
                    let gradient = ledger.take(Use::Layer, bytes);
                    ledger.free([gradient]);
                }
                false => found.add(ledger, part.module, ModuleTensor::Magnitude, bytes),
            }
        }
        ledger.free([sums]);
    }

    /// Sums over all rows: `[columns]`.
    pub(super) fn summed_rows(&self, ledger: &mut Ledger, columns: usize) -> Held {
        let ones = ledger.take(Use::Layer, self.wide(ONES));
        let sums = self.product(ledger, Use::Layer, [columns, ONES, self.rows()], 4);
        ledger.free([ones]);
        let first = ledger.take(Use::Layer, 4 * columns);
        ledger.free([sums]);
        first
    }
}
