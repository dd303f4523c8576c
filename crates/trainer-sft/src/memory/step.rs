//! The allocations of [`crate::step::explicit`], in its order: what changes there changes here.
//!
//! The program is ahead of the device. When the device comes to an allocation, the program has dropped what it does not need
//! later. So a tensor lives from the launch that writes it to the last launch that reads it.

use std::collections::BTreeMap;

use kv_paging::TrainingAttention;
use lora_4bit::training::{RANKS, splits};
use model_qwen::{QwenConfig, linear_features};

use super::ledger::{Held, Ledger, Use};
use crate::step::explicit::{ROWS, chunk_rows};

/// The layers that share an input, by their places in [`linear_features`].
const GROUPS: [&[usize]; 4] = [&[0, 1, 2], &[3], &[4, 5], &[6]];

/// What decides the sizes of a step.
#[derive(Clone, Debug)]
pub(super) struct StepShape<'a> {
    pub(super) model: &'a QwenConfig,
    /// Rank of the adapter of each layer of [`linear_features`]; 0 without one.
    pub(super) ranks: [usize; 7],
    /// Bytes of an activation, and of a value of an embedding.
    pub(super) value: usize,
    pub(super) embedding: usize,
    /// Whether weights have the type of activations already.
    pub(super) weights_as_they_are: bool,
    /// Whether the output head has it.
    pub(super) head_as_it_is: bool,
    /// Whether the activations of all layers are kept.
    pub(super) keeps_all: bool,
    /// Whether the inputs of layers wait on the host.
    pub(super) offloads: bool,
    /// Whether inputs of adapters are masked, and embeddings get noise.
    pub(super) dropout: bool,
    pub(super) noise: bool,
    /// Whether large moments have 8 bits a value.
    pub(super) eight_bit: bool,
    /// Multiprocessors of the card.
    pub(super) multiprocessors: usize,
    /// Tokens of a micro-batch, and micro-batches of a step.
    pub(super) tokens: usize,
    pub(super) micro_batches: usize,
}

/// A matrix of an adapter: decoder layer, place in [`linear_features`], A or B.
type Matrix = [usize; 3];

/// What is allocated between steps: the adapter's matrices, their gradients and moments.
#[derive(Debug, Default)]
struct State {
    matrices: Vec<Held>,
    gradients: BTreeMap<Matrix, Held>,
    moments: Vec<Held>,
}

/// A group of layers with their weights unpacked.
pub(super) struct Group {
    pub(super) held: Vec<Held>,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) ranks: usize,
    /// Place, rank and outputs of each layer that has an adapter.
    pub(super) parts: Vec<[usize; 3]>,
}

/// Activations of a layer; the names are those of `explicit`.
struct Activations {
    normed: Held,
    qkv_h: Option<Held>,
    unrotated: Option<Held>,
    qkv: Held,
    attended: Held,
    lse: Held,
    o_h: Option<Held>,
    middle: Held,
    middle_normed: Held,
    gate_up_h: Option<Held>,
    gate_up: Held,
}

/// Two steps of this shape, with what is trained.
pub(super) fn walk(shape: &StepShape<'_>) -> Ledger {
    // The first step is compiled with one layer, which shows CubeCL the largest allocation.
    let layer = QwenConfig {
        num_hidden_layers: 1,
        ..shape.model.clone()
    };
    let dry = StepShape {
        model: &layer,
        ..shape.clone()
    };
    let mut seen = Ledger::default();
    let mut state = State::default();
    dry.matrices(&mut seen, &mut state);
    dry.step(&mut seen, &mut state);

    let mut state = State::default();
    let mut ledger = Ledger::with_pages_of(&seen, |ledger| shape.matrices(ledger, &mut state));
    for _ in 0..2 {
        shape.step(&mut ledger, &mut state);
    }
    ledger
}

impl StepShape<'_> {
    pub(super) fn rows(&self) -> usize {
        self.tokens.next_multiple_of(ROWS)
    }

    /// `[tokens, width]` of activations.
    pub(super) fn wide(&self, width: usize) -> usize {
        self.rows() * width * self.value
    }

    fn widths(&self) -> [usize; 3] {
        let model = self.model;
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        [model.hidden_size, queries, queries + 2 * keys]
    }

    fn matrices(&self, ledger: &mut Ledger, state: &mut State) {
        for _ in 0..self.model.num_hidden_layers {
            for ((_, [inputs, outputs]), rank) in linear_features(self.model).iter().zip(self.ranks)
            {
                for width in [inputs, outputs] {
                    let held = ledger.take_some(Use::Trained, 4 * rank * width);
                    state.matrices.extend(held);
                }
            }
        }
    }

    fn group(&self, ledger: &mut Ledger, layers: &[usize]) -> Group {
        let features = linear_features(self.model);
        let inputs = features[layers[0]].1[0];
        let outputs = layers.iter().map(|&layer| features[layer].1[1]).sum();
        let parts: Vec<_> = layers
            .iter()
            .filter(|&&layer| self.ranks[layer] > 0)
            .map(|&layer| [layer, self.ranks[layer], features[layer].1[1]])
            .collect();
        let ranks = parts.iter().map(|[_, rank, _]| rank).sum::<usize>();
        let ranks = ranks.next_multiple_of(RANKS);
        let mut held = Vec::new();
        let mut take = |bytes| held.extend(ledger.take_some(Use::Layer, bytes));
        if ranks > 0 {
            take(ranks * inputs * self.value);
            take(outputs * ranks * self.value);
        }
        if layers.len() > 1 || !self.weights_as_they_are {
            take(outputs * inputs * self.value);
        }
        if self.model.attention_bias && layers.len() == 3 {
            take(4 * outputs);
        }
        Group {
            held,
            inputs,
            outputs,
            ranks,
            parts,
        }
    }

    fn groups(&self, ledger: &mut Ledger) -> [Group; 4] {
        GROUPS.map(|layers| self.group(ledger, layers))
    }

    /// A product `[m, n]` over `k` inner values, whose result has values of so many bytes. Where there are few tiles, cubes share
    /// a tile and leave partial sums, which are added.
    pub(super) fn product(
        &self,
        ledger: &mut Ledger,
        usage: Use,
        [m, n, k]: [usize; 3],
        value: usize,
    ) -> Held {
        let splits = splits([m, n, k], self.multiprocessors);
        let parts = (splits > 1).then(|| ledger.take(usage, 4 * splits * m * n));
        let y = ledger.take(usage, value * m * n);
        ledger.free(parts);
        y
    }

    /// What a group makes of its input.
    fn result(&self, ledger: &mut Ledger, usage: Use, group: &Group) -> Held {
        let shape = [self.rows(), group.outputs, group.inputs + group.ranks];
        self.product(ledger, usage, shape, self.value)
    }

    /// Sums of the gradients of keys and values, in parts of the query heads where there are few cubes.
    fn attention_sums(&self) -> usize {
        let model = self.model;
        let (heads, kv_heads) = (model.num_attention_heads, model.num_key_value_heads);
        match TrainingAttention::gradient_parts(self.tokens, heads, kv_heads) {
            1 => 0,
            parts => 4 * parts * self.tokens * 2 * model.num_key_value_heads * model.head_dim,
        }
    }

    /// What the adapters of a group make of its input.
    fn shrink(&self, ledger: &mut Ledger, group: &Group) -> Option<Held> {
        if self.dropout && group.ranks > 0 {
            return Some(self.dropped_shrink(ledger, group));
        }
        let shape = [self.rows(), group.ranks, group.inputs];
        (group.ranks > 0).then(|| self.product(ledger, Use::Layer, shape, self.value))
    }

    fn activations(&self, ledger: &mut Ledger, groups: &[Group; 4]) -> Activations {
        let [hidden, queries, qkv] = self.widths();
        let mut take = |width| ledger.take(Use::Layer, self.wide(width));
        let normed = take(hidden);
        let qkv_h = self.shrink(ledger, &groups[0]);
        let mut rotated = self.result(ledger, Use::Layer, &groups[0]);
        let mut unrotated = None;
        if self.model.qk_norm {
            let turned = ledger.take(Use::Layer, self.wide(qkv));
            unrotated = Some(std::mem::replace(&mut rotated, turned));
        }
        let attended = ledger.take(Use::Layer, self.wide(queries));
        let lse = ledger.take(Use::Layer, 4 * self.rows() * self.model.num_attention_heads);
        let o_h = self.shrink(ledger, &groups[1]);
        let middle = self.result(ledger, Use::Layer, &groups[1]);
        let middle_normed = ledger.take(Use::Layer, self.wide(hidden));
        let gate_up_h = self.shrink(ledger, &groups[2]);
        let gate_up = self.result(ledger, Use::Layer, &groups[2]);
        Activations {
            normed,
            qkv_h,
            unrotated,
            qkv: rotated,
            attended,
            lse,
            o_h,
            middle,
            middle_normed,
            gate_up_h,
            gate_up,
        }
    }

    /// A layer whose activations are computed again later.
    fn forward(&self, ledger: &mut Ledger, groups: [Group; 4]) -> Held {
        let [hidden, queries, qkv] = self.widths();
        let inner = self.model.intermediate_size;
        let [of_qkv, of_o, of_gate_up, of_down] = groups;
        let normed = ledger.take(Use::Layer, self.wide(hidden));
        let h = self.shrink(ledger, &of_qkv);
        let mut rotated = self.result(ledger, Use::Layer, &of_qkv);
        ledger.free(of_qkv.held.into_iter().chain(h).chain([normed]));
        if self.model.qk_norm {
            let turned = ledger.take(Use::Layer, self.wide(qkv));
            ledger.free([std::mem::replace(&mut rotated, turned)]);
        }
        let attended = ledger.take(Use::Layer, self.wide(queries));
        let lse = ledger.take(Use::Layer, 4 * self.rows() * self.model.num_attention_heads);
        ledger.free([rotated, lse]);
        let h = self.shrink(ledger, &of_o);
        let middle = self.result(ledger, Use::Layer, &of_o);
        ledger.free(of_o.held.into_iter().chain(h).chain([attended]));
        let normed = ledger.take(Use::Layer, self.wide(hidden));
        let h = self.shrink(ledger, &of_gate_up);
        let activated = ledger.take(Use::Layer, self.wide(inner));
        ledger.free(of_gate_up.held.into_iter().chain(h).chain([normed]));
        let h = self.shrink(ledger, &of_down);
        let y = self.result(ledger, Use::Kept, &of_down);
        ledger.free(of_down.held.into_iter().chain(h).chain([activated, middle]));
        y
    }

    /// A layer whose activations stay.
    fn forward_kept(&self, ledger: &mut Ledger, groups: [Group; 4]) -> (Held, Option<Activations>) {
        let activations = self.activations(ledger, &groups);
        let inner = self.wide(self.model.intermediate_size);
        let activated = ledger.take(Use::Layer, inner);
        let h = self.shrink(ledger, &groups[3]);
        let y = self.result(ledger, Use::Kept, &groups[3]);
        ledger.free(h.into_iter().chain([activated]));
        ledger.free(groups.into_iter().flat_map(|group| group.held));
        (y, Some(activations))
    }

    fn step(&self, ledger: &mut Ledger, state: &mut State) {
        for index in 0..self.micro_batches {
            self.forward_backward(ledger, &mut state.gradients, index == 0);
        }
        let is_first = state.moments.is_empty();
        for gradient in std::mem::take(&mut state.gradients).into_values() {
            if is_first {
                let moments = ledger.take_moments(&gradient, self.eight_bit);
                state.moments.extend(moments);
            }
            ledger.free([gradient]);
        }
    }

    fn forward_backward(
        &self,
        ledger: &mut Ledger,
        gradients: &mut BTreeMap<Matrix, Held>,
        is_first: bool,
    ) {
        let hidden = self.model.hidden_size;
        let layers = self.model.num_hidden_layers;
        let mut kept = Vec::with_capacity(layers);
        // Cosines and sines.
        let half = self.model.head_dim / 2;
        let angles = [(); 2].map(|()| ledger.take(Use::Kept, 4 * self.rows() * half));
        let cast = (self.embedding != self.value)
            .then(|| ledger.take(Use::Layer, self.embedding * self.rows() * hidden));
        let mut x = ledger.take(Use::Kept, self.wide(hidden));
        ledger.free(cast);
        if self.noise {
            // It is added in f32.
            let both = [(); 2].map(|()| ledger.take(Use::Layer, 4 * self.rows() * hidden));
            ledger.free(both);
        }
        let mut read = None;
        for _ in 0..layers {
            let groups = self.groups(ledger);
            let (y, activations) = match self.keeps_all {
                true => self.forward_kept(ledger, groups),
                false => (self.forward(ledger, groups), None),
            };
            // The input of a layer is read while the next one is launched.
            let input = match self.offloads {
                true => {
                    ledger.free(read.replace(x));
                    None
                }
                false => Some(x),
            };
            kept.push((input, activations));
            x = y;
        }
        let rows = self.loss(ledger);
        // All rows, and a zero behind them.
        let all = ledger.take(Use::Loss, self.wide(hidden));
        ledger.free(rows);
        let mut dy = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([all, x]);
        ledger.free(read);
        for (layer, (x, activations)) in kept.into_iter().enumerate().rev() {
            let groups = self.groups(ledger);
            let x = x.unwrap_or_else(|| ledger.take(Use::Kept, self.wide(hidden)));
            let activations = activations.unwrap_or_else(|| self.activations(ledger, &groups));
            let mut add = |ledger: &mut Ledger, [place, which]: [usize; 2], bytes| {
                let part = ledger.take(Use::Trained, bytes);
                match is_first {
                    true => drop(gradients.insert([layer, place, which], part)),
                    // A sum takes the place of one of its parts.
                    false => ledger.free([part]),
                }
            };
            dy = self.backward(ledger, groups, (x, activations, dy), &mut add);
        }
        ledger.free([dy]);
        ledger.free(angles);
    }

    /// The gradients of the rows with a target: all of them.
    fn loss(&self, ledger: &mut Ledger) -> Vec<Held> {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let head = (!self.head_as_it_is).then_some(vocab * hidden * self.value);
        let head = head.map(|bytes| ledger.take(Use::Loss, bytes));
        let chunk = chunk_rows(vocab);
        let mut gradients = Vec::new();
        let mut left = self.tokens;
        while left > 0 {
            let rows = left.min(chunk);
            left -= rows;
            let wide = rows * hidden * self.value;
            let x = ledger.take(Use::Loss, wide);
            let normed = ledger.take(Use::Loss, wide);
            let logits = ledger.take(Use::Loss, rows * vocab * self.value);
            ledger.free([normed]);
            let d = self.product(ledger, Use::Loss, [rows, hidden, vocab], self.value);
            ledger.free([logits]);
            gradients.push(ledger.take(Use::Loss, wide));
            ledger.free([x, d]);
        }
        ledger.free(head);
        gradients
    }

    /// What a group's backward pass takes: the gradient of its input is left.
    fn group_backward(
        &self,
        ledger: &mut Ledger,
        group: Group,
        (x, h): (Option<Held>, Option<Held>),
        add: &mut impl FnMut(&mut Ledger, [usize; 2], usize),
    ) -> Held {
        let dh = self.adapter_input(ledger, &group);
        self.adapter_gradients(ledger, &group, (x, h), add);
        let dx = self.input_gradient(ledger, &group);
        ledger.free(dh.into_iter().chain(group.held));
        dx
    }

    fn adapter_input(&self, ledger: &mut Ledger, group: &Group) -> Option<Held> {
        let shape = [self.rows(), group.ranks, group.outputs];
        (group.ranks > 0).then(|| self.product(ledger, Use::Layer, shape, self.value))
    }

    fn adapter_gradients(
        &self,
        ledger: &mut Ledger,
        group: &Group,
        (x, h): (Option<Held>, Option<Held>),
        add: &mut impl FnMut(&mut Ledger, [usize; 2], usize),
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
        for &[place, rank, outputs] in &group.parts {
            add(ledger, [place, 0], 4 * rank * group.inputs);
            add(ledger, [place, 1], 4 * rank * outputs);
        }
        ledger.free([da, db]);
    }

    fn input_gradient(&self, ledger: &mut Ledger, group: &Group) -> Held {
        if self.dropout && group.ranks > 0 {
            return self.dropped_gradient(ledger, group);
        }
        let shape = [self.rows(), group.inputs, group.outputs + group.ranks];
        self.product(ledger, Use::Layer, shape, self.value)
    }

    fn backward(
        &self,
        ledger: &mut Ledger,
        groups: [Group; 4],
        (x, a, dy): (Held, Activations, Held),
        add: &mut impl FnMut(&mut Ledger, [usize; 2], usize),
    ) -> Held {
        let [hidden, _, qkv] = self.widths();
        let [of_qkv, of_o, of_gate_up, of_down] = groups;
        let dh = self.adapter_input(ledger, &of_down);
        // The gradient becomes what it is the gradient of, and `gate_up` its own.
        let activated = self.input_gradient(ledger, &of_down);
        let h = self.shrink(ledger, &of_down);
        self.adapter_gradients(ledger, &of_down, (Some(activated), h), add);
        ledger.free(dh.into_iter().chain(of_down.held));
        let of_normed = (Some(a.middle_normed), a.gate_up_h);
        let d = self.group_backward(ledger, of_gate_up, of_normed, add);
        ledger.free([a.gate_up]);
        let dx = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([a.middle, d, dy]);
        let dy = dx;

        let d = self.group_backward(ledger, of_o, (None, a.o_h), add);
        let d_qkv = ledger.take(Use::Layer, self.wide(qkv));
        let delta = ledger.take(Use::Layer, 4 * self.rows() * self.model.num_attention_heads);
        let sums = ledger.take_some(Use::Layer, self.attention_sums());
        ledger.free(sums);
        ledger.free([a.qkv, a.attended, a.lse, d, delta]);
        let d = match a.unrotated {
            Some(unrotated) => {
                let turned = ledger.take(Use::Layer, self.wide(qkv));
                ledger.free([unrotated, d_qkv]);
                turned
            }
            None => d_qkv,
        };
        let dx = self.group_backward(ledger, of_qkv, (Some(a.normed), a.qkv_h), add);
        ledger.free([d]);
        let to = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([x, dx, dy]);
        to
    }
}
