//! The allocations of a layer's backward pass.

use super::full::{INPUT_NORM, POST_NORM};
use super::gradients::{LayerGradientLedger, ModuleTensor};
use super::groups::{AdapterPart, GroupAllocation};
use super::ledger::{Held, Ledger, Use};
use super::shape::StepShape;
use super::step::Activations;

impl StepShape<'_> {
    /// What a group's backward pass takes: the gradient of its input is left.
    fn group_backward(
        &self,
        ledger: &mut Ledger,
        group: GroupAllocation,
        (x, h): (Option<Held>, Option<Held>),
        found: &mut LayerGradientLedger<'_>,
    ) -> Held {
        self.weight_gradients(ledger, &group, found);
        self.magnitude_gradients(ledger, &group, found);
        let dz = self.scaled(ledger, &group);
        let dh = self.adapter_input(ledger, &group);
        self.adapter_gradients(ledger, &group, (x, h), found);
        let dx = self.input_gradient(ledger, &group);
        ledger.free(dz.into_iter().chain(dh).chain(group.held));
        dx
    }

    fn adapter_input(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Option<Held> {
        let shape = [self.rows(), group.ranks, group.outputs];
        (group.ranks > 0).then(|| self.product(ledger, Use::Layer, shape, self.value))
    }

    fn adapter_gradients(
        &self,
        ledger: &mut Ledger,
        group: &GroupAllocation,
        (x, h): (Option<Held>, Option<Held>),
        found: &mut LayerGradientLedger<'_>,
    ) {
        if group.ranks == 0 {
            ledger.free(x.into_iter().chain(h));
            return;
        }
        let (rows, ranks) = (self.rows(), group.ranks);
        let shape = [group.outputs, ranks, rows];
        let db = self.product(ledger, Use::Layer, shape, 4);
        ledger.free(h);
        let da = match self.dropout {
            true => self.dropped_sums(ledger, group),
            false => self.product(ledger, Use::Layer, [group.inputs, ranks, rows], 4),
        };
        ledger.free(x);
        for &AdapterPart {
            module,
            rank,
            outputs,
        } in &group.parts
        {
            let both = [rank * group.inputs, rank * outputs];
            // A kernel adds them to sums that are there.
            if both.into_iter().all(|values| self.is_flat(values)) {
                continue;
            }
            for (tensor, values) in [ModuleTensor::LoraA, ModuleTensor::LoraB]
                .into_iter()
                .zip(both)
            {
                match self.is_flat(values) {
                    true => {
                        let part = ledger.take(Use::Layer, 4 * values);
                        ledger.free([part]);
                    }
                    false => found.add(ledger, module, tensor, 4 * values),
                }
            }
        }
        ledger.free([da, db]);
    }

    fn input_gradient(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Held {
        if self.dropout && group.ranks > 0 {
            return self.dropped_gradient(ledger, group);
        }
        let shape = [self.rows(), group.inputs, group.outputs + group.ranks];
        self.product(ledger, Use::Layer, shape, self.value)
    }

    /// A layer from the gradient of its result to that of its input.
    pub(super) fn backward(
        &self,
        ledger: &mut Ledger,
        groups: [GroupAllocation; 4],
        (x, a, dy): (Held, Activations, Held),
        found: &mut LayerGradientLedger<'_>,
    ) -> Held {
        let [hidden, _, qkv] = self.widths();
        let [of_qkv, of_o, of_gate_up, of_down] = groups;
        let dz = self.scaled(ledger, &of_down);
        let dh = self.adapter_input(ledger, &of_down);
        // The gradient becomes what it is the gradient of, and `gate_up` its own.
        let activated = self.input_gradient(ledger, &of_down);
        self.weight_gradients(ledger, &of_down, found);
        let h = self.shrink(ledger, &of_down);
        self.magnitude_gradients(ledger, &of_down, found);
        self.adapter_gradients(ledger, &of_down, (Some(activated), h), found);
        ledger.free(dz.into_iter().chain(dh).chain(of_down.held));
        let of_normed = (Some(a.middle_normed), a.gate_up_h);
        let d = self.group_backward(ledger, of_gate_up, of_normed, found);
        ledger.free([a.gate_up]);
        self.norm_gradient(ledger, POST_NORM, found);
        let dx = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([a.middle, d, dy]);
        let dy = dx;

        let d = self.group_backward(ledger, of_o, (None, a.o_h), found);
        let d_qkv = ledger.take(Use::Layer, self.wide(qkv));
        let delta = ledger.take(Use::Layer, 4 * self.rows() * self.model.num_attention_heads);
        let sums = ledger.take_some(Use::Layer, self.attention_sums());
        ledger.free(sums);
        ledger.free([a.qkv, a.attended, a.lse, d, delta]);
        let d = match a.unrotated {
            Some(unrotated) => {
                self.head_norm_gradients(ledger, found);
                let turned = ledger.take(Use::Layer, self.wide(qkv));
                ledger.free([unrotated, d_qkv]);
                turned
            }
            None => d_qkv,
        };
        let dx = self.group_backward(ledger, of_qkv, (Some(a.normed), a.qkv_h), found);
        ledger.free([d]);
        self.norm_gradient(ledger, INPUT_NORM, found);
        let to = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([x, dx, dy]);
        to
    }
}
