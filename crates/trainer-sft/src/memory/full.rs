//! The allocations of gradients of the model's own tensors, and of the loss of tokens, see [`crate::step::explicit`].

use super::gradients::{Gradients, LayerGradientLedger, ModuleTensor, ParameterKey};
use super::groups::GroupAllocation;
use super::ledger::{Held, Ledger, Use};
use super::shape::StepShape;
use crate::step::explicit::{ROWS, loss_chunk_rows};

/// Places of the norms of a layer, behind those of its linear layers.
pub(super) const INPUT_NORM: usize = 7;
/// See [`INPUT_NORM`].
pub(super) const POST_NORM: usize = 8;
const HEAD_NORMS: [usize; 2] = [9, 10];
/// Place of the final norm, behind the [`Table`]s.
const FINAL_NORM: usize = 2;

/// A tensor with a row for each token of the vocabulary; its place behind the last layer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    Embedding = 0,
    LmHead = 1,
}

impl StepShape<'_> {
    /// The gradients of a group's weights and biases.
    pub(super) fn weight_gradients(
        &self,
        ledger: &mut Ledger,
        group: &GroupAllocation,
        found: &mut LayerGradientLedger<'_>,
    ) {
        if !self.full {
            return;
        }
        let shape = [group.outputs, group.inputs, self.rows()];
        let is_sum = found.has(group.layers[0].module, ModuleTensor::Weight);
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
                for layer in &group.layers {
                    let bytes = 4 * layer.outputs * group.inputs;
                    found.add(ledger, layer.module, ModuleTensor::Weight, bytes);
                }
            }
        }
        if self.model.attention_bias && group.layers.len() == 3 {
            let sums = self.summed_rows(ledger, group.outputs);
            for layer in &group.layers {
                found.add(ledger, layer.module, ModuleTensor::Bias, 4 * layer.outputs);
            }
            ledger.free([sums]);
        }
    }

    /// The gradient of the weight of a norm.
    pub(super) fn norm_gradient(
        &self,
        ledger: &mut Ledger,
        module: usize,
        found: &mut LayerGradientLedger<'_>,
    ) {
        if self.full {
            let hidden = self.model.hidden_size;
            // Its product with the gradient takes its place.
            let normed = ledger.take(Use::Layer, self.wide(hidden));
            let sums = self.summed_rows(ledger, hidden);
            ledger.free([normed]);
            found.add(ledger, module, ModuleTensor::Weight, 4 * hidden);
            ledger.free([sums]);
        }
    }

    /// Those of the norms of heads.
    pub(super) fn head_norm_gradients(
        &self,
        ledger: &mut Ledger,
        found: &mut LayerGradientLedger<'_>,
    ) {
        if !self.full {
            return;
        }
        let (model, [_, queries, qkv]) = (self.model, self.widths());
        let turned = ledger.take(Use::Layer, self.wide(qkv));
        for (module, width) in HEAD_NORMS.into_iter().zip([queries, (qkv - queries) / 2]) {
            // The input, its gradient and the input after the norm.
            let all = [(); 3].map(|()| ledger.take(Use::Layer, self.wide(width)));
            found.add(ledger, module, ModuleTensor::Weight, 4 * model.head_dim);
            ledger.free(all);
        }
        ledger.free([turned]);
    }

    /// The gradient of the last layer's result, by the cross-entropy of all rows.
    pub(super) fn loss(&self, ledger: &mut Ledger, gradients: &mut Gradients) -> Held {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let lm_head = (self.lm_head != self.value).then_some(self.table(self.value));
        let lm_head = lm_head.map(|bytes| ledger.take(Use::Loss, bytes));
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
            if self.trains_lm_head {
                self.lm_head_gradient(ledger, rows, gradients);
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
        ledger.free(lm_head);
        // All rows, and a zero behind them.
        let all = ledger.take(Use::Loss, self.wide(hidden));
        ledger.free(parts);
        let dy = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([all]);
        dy
    }

    /// The gradient of lm_head of some rows.
    fn lm_head_gradient(&self, ledger: &mut Ledger, rows: usize, gradients: &mut Gradients) {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let full = rows.next_multiple_of(ROWS);
        // Rows of zeros are put behind a copy.
        let copies = (full != rows).then(|| {
            [hidden, vocab].map(|width| ledger.take(Use::Loss, full * width * self.value))
        });
        let splits = self.product(ledger, Use::Loss, [vocab, hidden, full], 4);
        ledger.free([splits]);
        self.add_table(ledger, Table::LmHead, gradients);
        ledger.free(copies.into_iter().flatten());
    }

    /// The same of the final norm.
    fn final_norm_gradient(&self, ledger: &mut Ledger, rows: usize, gradients: &mut Gradients) {
        let wide = rows.next_multiple_of(ROWS) * self.model.hidden_size * self.value;
        // The input, its gradient and the input after the norm.
        let all = [(); 3].map(|()| ledger.take(Use::Loss, wide));
        let key = self.key_behind_layers(FINAL_NORM);
        gradients.add(ledger, key, 4 * self.model.hidden_size);
        ledger.free(all);
    }

    /// Adds the gradient of the embeddings or of lm_head. Where they are one, so are their gradients.
    pub(super) fn add_table(&self, ledger: &mut Ledger, table: Table, gradients: &mut Gradients) {
        let is_one = self.full && self.model.tie_word_embeddings;
        let table = if is_one { Table::Embedding } else { table };
        let key = self.key_behind_layers(table as usize);
        gradients.add(ledger, key, self.table(4));
    }

    /// Of a weight of the model as a whole.
    fn key_behind_layers(&self, module: usize) -> ParameterKey {
        ParameterKey {
            layer: self.model.num_hidden_layers,
            module,
            tensor: ModuleTensor::Weight,
        }
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
        self.add_table(ledger, Table::Embedding, gradients);
        ledger.free([padded]);
    }
}
