//! The allocations of a loss that compares answers or has their rewards: [`crate::loss`] and the layers of
//! [`crate::step::explicit`].

use super::full::Table;
use super::gradients::Gradients;
use super::ledger::{Held, Ledger, Use};
use super::shape::StepShape;
use crate::loss::autodiff_chunk_rows;
use crate::step::explicit::ROWS;

/// Chunks of a loss that are gone through one by one.
const SHOWN_CHUNKS: usize = 3;

impl StepShape<'_> {
    /// What the model without its adapter says of the answers.
    pub(super) fn reference(&self, ledger: &mut Ledger) {
        let plain = StepShape {
            ranks: [0; 7],
            dora: false,
            dropout: false,
            ..self.clone()
        };
        let angles = plain.angles(ledger);
        let mut x = plain.embedded(ledger);
        for _ in 0..self.model.num_hidden_layers {
            let groups = plain.groups(ledger);
            let y = plain.forward(ledger, groups);
            ledger.free([std::mem::replace(&mut x, y)]);
        }
        let own = plain.in_f32(ledger);
        ledger.free([x]);
        // One chunk takes what the next one takes.
        let rows = self.tokens.min(autodiff_chunk_rows(self.model.vocab_size));
        let all = plain.logits(ledger, rows);
        ledger.free(all);
        ledger.free(own);
        ledger.free(angles);
    }

    /// What the last layer gives, in f32; `None` where it is.
    fn in_f32(&self, ledger: &mut Ledger) -> Option<Held> {
        let bytes = 4 * self.tokens * self.model.hidden_size;
        (self.value != 4).then(|| ledger.take(Use::Loss, bytes))
    }

    /// Some rows before the final norm, after it, and their logits, all in f32.
    fn logits(&self, ledger: &mut Ledger, rows: usize) -> [Held; 3] {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let [x, normed] = [(); 2].map(|()| ledger.take(Use::Loss, 4 * rows * hidden));
        let rounded = (self.value != 4).then_some(rows * hidden * self.value);
        let rounded = rounded.map(|bytes| ledger.take(Use::Loss, bytes));
        let logits = ledger.take(Use::Loss, 4 * rows * vocab);
        ledger.free(rounded);
        [x, normed, logits]
    }

    /// The gradient of the last layer's result.
    pub(super) fn loss_of_answers(&self, ledger: &mut Ledger, gradients: &mut Gradients) -> Held {
        let (hidden, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let own = self.in_f32(ledger);
        let chunk = autodiff_chunk_rows(vocab);
        let mut left = self.tokens.min(SHOWN_CHUNKS * chunk);
        // The gradients of chunks that are like the others.
        let others = 4 * (self.tokens - left) * hidden;
        let mut parts: Vec<Held> = ledger.take_some(Use::Loss, others).into_iter().collect();
        while left > 0 {
            let rows = left.min(chunk);
            left -= rows;
            let wide = 4 * rows * hidden;
            let [x, normed, logits] = self.logits(ledger, rows);
            // The gradient of the logits takes their place, unless a graph of a trained lm_head holds them.
            let d = (self.trains_lm_head).then(|| ledger.take(Use::Loss, 4 * rows * vocab));
            // The factor of a product with lm_head, in the type of lm_head.
            let rounded =
                (self.lm_head != 4).then(|| ledger.take(Use::Loss, rows * vocab * self.lm_head));
            let dy = ledger.take(Use::Loss, wide);
            ledger.free(rounded);
            if self.trains_lm_head {
                self.add_table(ledger, Table::LmHead, gradients);
            }
            ledger.free(d.into_iter().chain([logits]));
            parts.push(ledger.take(Use::Loss, wide));
            ledger.free([x, normed, dy]);
        }
        // One below the other and weighed; then with a zero behind them, and in their places.
        let [rows, more] = [self.tokens, self.tokens + 1].map(|rows| 4 * rows * hidden);
        let all = ledger.take(Use::Loss, rows);
        ledger.free(parts);
        let padded = ledger.take(Use::Loss, more);
        ledger.free([all]);
        let spread = ledger.take(Use::Loss, rows);
        ledger.free([padded]);
        ledger.free(own);
        let dy = self.rounded(ledger, spread);
        if self.tokens.is_multiple_of(ROWS) {
            return dy;
        }
        let full = ledger.take(Use::Layer, self.wide(hidden));
        ledger.free([dy]);
        full
    }

    /// A gradient in the type of activations.
    fn rounded(&self, ledger: &mut Ledger, dx: Held) -> Held {
        let bytes = self.tokens * self.model.hidden_size * self.value;
        // In f32 it is the tensor itself.
        let dy = ledger.take(Use::Layer, bytes);
        ledger.free([dx]);
        dy
    }
}
