//! Losses of answers.

use crate::config::LossType;

/// A loss of answers, with the names of TRL.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// Of pairs, beside a reference.
    Dpo {
        /// Weight of a difference from the reference.
        beta: f64,
        /// Which loss of DPO; one of another method counts as [`LossType::Sigmoid`].
        loss: LossType,
        /// Part of the pairs that are the wrong way round.
        label_smoothing: f64,
    },
    /// Of pairs: the cross-entropy of the chosen text, and the odds of the answers.
    Orpo {
        /// Weight of the odds.
        beta: f64,
    },
    /// Of single answers, beside a reference.
    Kto {
        /// Weight of a difference from the reference.
        beta: f64,
        /// Weights of wanted answers and of other ones.
        weights: (f64, f64),
    },
}
