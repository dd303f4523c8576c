//! The allocations of [`crate::step::explicit`], in its order: what changes there changes here.
//!
//! The program is ahead of the device. When the device comes to an allocation, the program has dropped what it does not need
//! later. So a tensor lives from the launch that writes it to the last launch that reads it.

use kv_paging::TrainingAttention;
use lora_4bit::training::splits;
use model_qwen::{QwenConfig, linear_features};

use super::gradients::{Gradients, LayerGradientLedger};
use super::groups::GroupAllocation;
use super::ledger::{Held, Ledger, Use};
use super::shape::{Objective, StepShape};
use crate::flat;
use crate::step::explicit::ROWS;

/// What is allocated between steps: what is trained where it is none of the model's own, gradients and moments.
#[derive(Debug, Default)]
struct State {
    values: Vec<Held>,
    /// Of an adapter before it lies in buffers, and the bytes of that.
    loose: Vec<Held>,
    flat: usize,
    /// Buffers of values, gradients and moments.
    buffers: Vec<Held>,
    gradients: Gradients,
    moments: Vec<Held>,
}

impl State {
    /// Values and gradients of an adapter in buffers.
    fn lay_flat(&mut self, ledger: &mut Ledger) {
        self.take_buffers(ledger);
        ledger.free(std::mem::take(&mut self.loose));
    }

    fn take_buffers(&mut self, ledger: &mut Ledger) {
        if self.flat > 0 {
            let both = [(); 2].map(|()| ledger.take_own(Use::Trained, self.flat));
            self.buffers.extend(both);
        }
    }
}

/// Activations of a layer; the names are those of `explicit`.
pub(super) struct Activations {
    pub(super) normed: Held,
    pub(super) qkv_h: Option<Held>,
    pub(super) unrotated: Option<Held>,
    pub(super) qkv: Held,
    pub(super) attended: Held,
    pub(super) lse: Held,
    pub(super) o_h: Option<Held>,
    pub(super) middle: Held,
    pub(super) middle_normed: Held,
    pub(super) gate_up_h: Option<Held>,
    pub(super) gate_up: Held,
}

/// Two steps of this shape, with what is trained.
pub(super) fn walk(shape: &StepShape<'_>) -> Ledger {
    // The first step is compiled with one layer of each kind, which shows CubeCL the largest allocation.
    let is_mixed = (1..shape.model.num_hidden_layers).contains(&shape.first_kept);
    let layers = QwenConfig {
        num_hidden_layers: if is_mixed { 2 } else { 1 },
        ..shape.model.clone()
    };
    let dry = StepShape {
        model: &layers,
        first_kept: shape.first_kept.min(1),
        ..shape.clone()
    };
    let mut seen = Ledger::default();
    let mut state = State::default();
    dry.values(&mut seen, &mut state);
    state.lay_flat(&mut seen);
    dry.step(&mut seen, &mut state);

    let mut state = State::default();
    let mut ledger = Ledger::with_pages_of(&seen, |ledger| shape.values(ledger, &mut state));
    state.lay_flat(&mut ledger);
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

    pub(super) fn widths(&self) -> [usize; 3] {
        let model = self.model;
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        [model.hidden_size, queries, queries + 2 * keys]
    }

    /// What is trained and none of the weights, and what DoRA keeps beside it.
    fn values(&self, ledger: &mut Ledger, state: &mut State) {
        for _ in 0..self.model.num_hidden_layers {
            for ((_, [inputs, outputs]), rank) in linear_features(self.model).iter().zip(self.ranks)
            {
                for width in [inputs, outputs] {
                    let held = ledger.take_some(Use::Trained, 4 * rank * width);
                    self.keep(state, held, rank * width);
                }
                if self.dora && rank > 0 {
                    // The weight and its squares, in f32, of which the magnitudes come.
                    let both = [(); 2].map(|()| ledger.take(Use::Layer, 4 * inputs * outputs));
                    ledger.free(both);
                    // The magnitudes, the base's squared norms, and the norms of the rows as they are.
                    let [magnitudes, rest @ ..] =
                        [(); 3].map(|()| ledger.take(Use::Trained, 4 * outputs));
                    self.keep(state, Some(magnitudes), *outputs);
                    state.values.extend(rest);
                }
            }
        }
        let tables = [self.trains_embedding, self.trains_lm_head].into_iter();
        let saved = tables.filter(|saved| *saved && !self.full);
        for _ in saved {
            let table = ledger.take(Use::Trained, self.table(4));
            state.values.push(table);
        }
    }

    /// Whether a tensor of an adapter with so many values lies in a buffer with others.
    pub(super) fn is_flat(&self, values: usize) -> bool {
        !self.eight_bit && values.is_multiple_of(flat::ALIGNMENT)
    }

    /// Holds a tensor of an adapter with so many values.
    fn keep(&self, state: &mut State, held: Option<Held>, values: usize) {
        match self.is_flat(values) {
            true => {
                state.flat += 4 * values;
                state.loose.extend(held);
            }
            false => state.values.extend(held),
        }
    }

    /// Bytes of embeddings or lm_head, given those of a value.
    pub(super) fn table(&self, value: usize) -> usize {
        self.model.vocab_size * self.model.hidden_size * value
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
    pub(super) fn result(&self, ledger: &mut Ledger, usage: Use, group: &GroupAllocation) -> Held {
        if self.has_dora(group) {
            return self.result_with_dora(ledger, usage, group);
        }
        let shape = [self.rows(), group.outputs, group.inputs + group.ranks];
        self.product(ledger, usage, shape, self.value)
    }

    /// Sums of the gradients of keys and values, in parts of the query heads where there are few cubes.
    pub(super) fn attention_sums(&self) -> usize {
        let model = self.model;
        let (heads, kv_heads) = (model.num_attention_heads, model.num_key_value_heads);
        match TrainingAttention::gradient_parts(self.tokens, heads, kv_heads) {
            1 => 0,
            parts => 4 * parts * self.tokens * 2 * model.num_key_value_heads * model.head_dim,
        }
    }

    /// What the adapters of a group make of its input.
    pub(super) fn shrink(&self, ledger: &mut Ledger, group: &GroupAllocation) -> Option<Held> {
        if self.dropout && group.ranks > 0 {
            return Some(self.dropped_shrink(ledger, group));
        }
        let shape = [self.rows(), group.ranks, group.inputs];
        (group.ranks > 0).then(|| self.product(ledger, Use::Layer, shape, self.value))
    }

    fn activations(
        &self,
        ledger: &mut Ledger,
        groups: &[GroupAllocation; 4],
        usage: Use,
    ) -> Activations {
        let [hidden, queries, qkv] = self.widths();
        let mut take = |width| ledger.take(usage, self.wide(width));
        let normed = take(hidden);
        let qkv_h = self.shrink(ledger, &groups[0]);
        let mut rotated = self.result(ledger, usage, &groups[0]);
        let mut unrotated = None;
        if self.model.qk_norm {
            let turned = ledger.take(usage, self.wide(qkv));
            unrotated = Some(std::mem::replace(&mut rotated, turned));
        }
        let attended = ledger.take(usage, self.wide(queries));
        let lse = ledger.take(usage, 4 * self.rows() * self.model.num_attention_heads);
        let o_h = self.shrink(ledger, &groups[1]);
        let middle = self.result(ledger, usage, &groups[1]);
        let middle_normed = ledger.take(usage, self.wide(hidden));
        let gate_up_h = self.shrink(ledger, &groups[2]);
        let gate_up = self.result(ledger, usage, &groups[2]);
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
    pub(super) fn forward(&self, ledger: &mut Ledger, groups: [GroupAllocation; 4]) -> Held {
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
        // Only without DoRA one kernel does both.
        let gate_up = (self.has_dora(&of_gate_up))
            .then(|| self.result_with_dora(ledger, Use::Layer, &of_gate_up));
        let activated = ledger.take(Use::Layer, self.wide(inner));
        ledger.free(gate_up);
        ledger.free(of_gate_up.held.into_iter().chain(h).chain([normed]));
        let h = self.shrink(ledger, &of_down);
        let y = self.result(ledger, Use::Kept, &of_down);
        ledger.free(of_down.held.into_iter().chain(h).chain([activated, middle]));
        y
    }

    /// A layer whose activations stay.
    fn forward_kept(
        &self,
        ledger: &mut Ledger,
        groups: [GroupAllocation; 4],
    ) -> (Held, Option<Activations>) {
        let activations = self.activations(ledger, &groups, Use::Kept);
        let inner = self.wide(self.model.intermediate_size);
        let activated = ledger.take(Use::Layer, inner);
        let h = self.shrink(ledger, &groups[3]);
        let y = self.result(ledger, Use::Kept, &groups[3]);
        ledger.free(h.into_iter().chain([activated]));
        ledger.free(groups.into_iter().flat_map(|group| group.held));
        (y, Some(activations))
    }

    fn step(&self, ledger: &mut Ledger, state: &mut State) {
        for _ in 0..self.micro_batches {
            self.forward_backward(ledger, &mut state.gradients);
        }
        let is_first = state.moments.is_empty() && state.buffers.len() <= 2;
        if is_first {
            state.take_buffers(ledger);
        }
        for gradient in std::mem::take(&mut state.gradients).into_held() {
            if is_first {
                let moments = ledger.take_moments(&gradient, self.eight_bit);
                state.moments.extend(moments);
            }
            ledger.free([gradient]);
        }
    }

    fn forward_backward(&self, ledger: &mut Ledger, gradients: &mut Gradients) {
        if let Objective::Answers { reference: true } = self.objective {
            self.reference(ledger);
        }
        let hidden = self.model.hidden_size;
        let layers = self.model.num_hidden_layers;
        let mut kept = Vec::with_capacity(layers);
        let angles = self.angles(ledger);
        let mut x = self.embedded(ledger);
        if self.noise {
            // It is added in f32.
            let both = [(); 2].map(|()| ledger.take(Use::Layer, 4 * self.rows() * hidden));
            ledger.free(both);
        }
        let mut read = None;
        for layer in 0..layers {
            let groups = self.groups(ledger);
            let (y, activations) = match layer >= self.first_kept {
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
        let mut dy = match self.objective {
            Objective::Tokens => self.loss(ledger, gradients),
            Objective::Answers { .. } => self.loss_of_answers(ledger, gradients),
        };
        ledger.free([x]);
        ledger.free(read);
        for (layer, (x, activations)) in kept.into_iter().enumerate().rev() {
            let groups = self.groups(ledger);
            let x = x.unwrap_or_else(|| ledger.take(Use::Kept, self.wide(hidden)));
            let activations =
                activations.unwrap_or_else(|| self.activations(ledger, &groups, Use::Layer));
            let mut found = LayerGradientLedger { layer, gradients };
            dy = self.backward(ledger, groups, (x, activations, dy), &mut found);
        }
        if self.trains_embedding {
            self.embedding_gradient(ledger, gradients);
        }
        ledger.free([dy]);
        ledger.free(angles);
    }

    /// Cosines and sines.
    pub(super) fn angles(&self, ledger: &mut Ledger) -> [Held; 2] {
        let half = self.model.head_dim / 2;
        [(); 2].map(|()| ledger.take(Use::Kept, 4 * self.rows() * half))
    }

    /// The embeddings of the tokens.
    pub(super) fn embedded(&self, ledger: &mut Ledger) -> Held {
        let hidden = self.model.hidden_size;
        let cast = (self.embedding != self.value)
            .then(|| ledger.take(Use::Layer, self.embedding * self.rows() * hidden));
        let x = ledger.take(Use::Kept, self.wide(hidden));
        ledger.free(cast);
        x
    }
}
