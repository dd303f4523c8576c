//! The allocations of gradients of the model's own tensors, and of the loss of tokens, see [`crate::step::explicit`].

use super::ledger::{Held, Ledger, Use};
use super::step::{Found, Gradients, Group, StepShape, add};
use crate::step::explicit::{ROWS, loss_chunk_rows};

/// Places of the norms of a layer, behind those of its linear layers.
pub(super) const INPUT_NORM: usize = 7;
/// See [`INPUT_NORM`].
pub(super) const POST_NORM: usize = 8;
const HEAD_NORMS: [usize; 2] = [9, 10];
/// Places of what is behind the last layer.
const TABLES: [usize; 2] = [0, 1];
const FINAL_NORM: usize = 2;

impl StepShape<'_> {
    /// The gradients of a group's weights and biases.
    pub(super) fn weight_gradients(
        &self,
        ledger: &mut Ledger,
        group: &Group,
        found: &mut Found<'_>,
    ) {
        if !self.full {
            return;
        }
        let shape = [group.outputs, group.inputs, self.rows()];
        let is_sum = found.has([group.layers[0][0], 0]);
        let all = self.product(ledger, Use::Trained, shape, 4);
        match is_sum {
            // Gradients that are parts of one tensor cannot take its place.
            true => {
                let bytes = 4 * group.outputs * group.inputs;
                let sums = (group.layers.len() > 1).then(|| ledger.take(Use::Trained, bytes));
                ledger.free(sums.into_iter().chain([all]));
            }
            false => {
                ledger.free([all]);
                for &[place, outputs] in &group.layers {
                    found.add(ledger, [place, 0], 4 * outputs * group.inputs);
                }
            }
        }
        if self.model.attention_bias && group.layers.len() == 3 {
            let sums = self.summed_rows(ledger, group.outputs);
            for &[place, outputs] in &group.layers {
                found.add(ledger, [place, 1], 4 * outputs);
            }
            ledger.free([sums]);
        }
    }

    /// The gradient of the weight of a norm.
    pub(super) fn norm_gradient(&self, ledger: &mut Ledger, place: usize, found: &mut Found<'_>) {
        if self.full {
            let hidden = self.model.hidden_size;
            // Its product with the gradient takes its place.
            let normed = ledger.take(Use::Layer, self.wide(hidden));
            let sums = self.summed_rows(ledger, hidden);
            ledger.free([normed]);
            found.add(ledger, [place, 0], 4 * hidden);
            ledger.free([sums]);
        }
    }

    /// Those of the norms of heads.
    pub(super) fn head_norm_gradients(&self, ledger: &mut Ledger, found: &mut Found<'_>) {
        if !self.full {
            return;
        }
        let (model, [_, queries, qkv]) = (self.model, self.widths());
        let turned = ledger.take(Use::Layer, self.wide(qkv));
        for (place, width) in HEAD_NORMS.into_iter().zip([queries, (qkv - queries) / 2]) {
            // The input, its gradient and the input after the norm.
            let all = [(); 3].map(|()| ledger.take(Use::Layer, self.wide(width)));
            found.add(ledger, [place, 0], 4 * model.head_dim);
            ledger.free(all);
        }
        ledger.free([turned]);
    }

    /// The gradient of the last layer's result, by the cross-entropy of all rows.
    pub(super) fn loss(&self, ledger: &mut Ledger, gradients: &mut Gradients) -> Held {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let head = (self.head != self.value).then_some(self.table(self.value));
        let head = head.map(|bytes| ledger.take(Use::Loss, bytes));
        let chunk = loss_chunk_rows(vocab);
        let mut parts = Vec::new();
        let mut left = self.tokens;
        while left > 0 {
            let rows = left.min(chunk);
            left -= rows;
            let wide = rows * hidden * self.value;
            let x = ledger.take(Use::Loss, wide);
            let normed = ledger.take(Use::Loss, wide);
            let logits = ledger.take(Use::Loss, rows * vocab * self.value);
            if self.tables[1] {
                self.head_gradient(ledger, rows, gradients);
            }
            ledger.free([normed]);
            let d = self.product(ledger, Use::Loss, [rows, hidden, vocab], self.value);
            ledger.free([logits]);
            if self.full {
                self.final_norm_gradient(ledger, rows, gradients);
            }
            parts.push(ledger.take(Use::Loss, wide));
            ledger.free([x, d]);
        }
        ledger.free(head);
        // All rows, and a zero behind them.
        let all = ledger.take(Use::Loss, self.wide(hidden));
        ledger.free(parts);
        let dy = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([all]);
        dy
    }

    /// The gradient of the head of some rows.
    fn head_gradient(&self, ledger: &mut Ledger, rows: usize, gradients: &mut Gradients) {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let full = rows.next_multiple_of(ROWS);
        // Rows of zeros are put behind a copy.
        let copies = (full != rows).then(|| {
            [hidden, vocab].map(|width| ledger.take(Use::Loss, full * width * self.value))
        });
        let splits = self.product(ledger, Use::Loss, [vocab, hidden, full], 4);
        ledger.free([splits]);
        self.add_table(ledger, 1, gradients);
        ledger.free(copies.into_iter().flatten());
    }

    /// The same of the final norm.
    fn final_norm_gradient(&self, ledger: &mut Ledger, rows: usize, gradients: &mut Gradients) {
        let wide = rows.next_multiple_of(ROWS) * self.model.hidden_size * self.value;
        // The input, its gradient and the input after the norm.
        let all = [(); 3].map(|()| ledger.take(Use::Loss, wide));
        let name = [self.model.num_hidden_layers, FINAL_NORM, 0];
        add(ledger, gradients, name, 4 * self.model.hidden_size);
        ledger.free(all);
    }

    /// Adds the gradient of the embeddings (0) or the head (1). Where they are one, so are their gradients.
    pub(super) fn add_table(&self, ledger: &mut Ledger, table: usize, gradients: &mut Gradients) {
        let is_one = self.full && self.model.tie_word_embeddings;
        let place = TABLES[if is_one { 0 } else { table }];
        let name = [self.model.num_hidden_layers, place, 0];
        add(ledger, gradients, name, self.table(4));
    }

    /// The gradient of the embeddings, from sums of the rows of the same token.
    pub(super) fn embedding_gradient(&self, ledger: &mut Ledger, gradients: &mut Gradients) {
        let hidden = self.model.hidden_size;
        let [rows, more] = [self.tokens, self.tokens + 1].map(|rows| 4 * rows * hidden);
        let dx = ledger.take(Use::Layer, rows);
        let padded = ledger.take(Use::Layer, more);
        ledger.free([dx]);
        let [left, right] = [(); 2].map(|()| ledger.take(Use::Layer, rows));
        ledger.free([padded, right]);
        let padded = ledger.take(Use::Layer, more);
        ledger.free([left]);
        self.add_table(ledger, 0, gradients);
        ledger.free([padded]);
    }
}
