//! What the batches of a step share.

/// Numbers of all answers of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step {
    /// Pairs, or answers where there are no pairs.
    pub(super) count: usize,
    /// ORPO: tokens of the chosen texts.
    pub(super) num_chosen: usize,
    /// KTO.
    pub(super) baseline: f64,
}
