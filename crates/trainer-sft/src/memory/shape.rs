//! What decides the sizes of a step.

use model_qwen::QwenConfig;

/// A step, by its sizes.
#[derive(Clone, Debug)]
pub(super) struct StepShape<'a> {
    pub(super) model: &'a QwenConfig,
    /// Rank of the adapter of each layer of [`model_qwen::linear_features`]; 0 without one.
    pub(super) ranks: [usize; 7],
    /// Bytes of an activation, and of a value of an embedding and of lm_head.
    pub(super) value: usize,
    pub(super) embedding: usize,
    pub(super) lm_head: usize,
    /// Whether weights have the type of activations already.
    pub(super) weights_as_they_are: bool,
    /// The first layer whose activations are kept.
    pub(super) first_kept: usize,
    /// Whether the inputs of layers wait on the host.
    pub(super) offloads: bool,
    /// Whether inputs of adapters are masked, and embeddings get noise.
    pub(super) dropout: bool,
    pub(super) noise: bool,
    /// Whether adapters have DoRA.
    pub(super) dora: bool,
    /// Whether every weight is trained, and there are no adapters.
    pub(super) full: bool,
    /// Whether embeddings and lm_head are trained.
    pub(super) trains_embedding: bool,
    pub(super) trains_lm_head: bool,
    /// What is made of the logits.
    pub(super) objective: Objective,
    /// Whether large moments have 8 bits a value.
    pub(super) eight_bit: bool,
    /// Multiprocessors of the card.
    pub(super) multiprocessors: usize,
    /// Tokens of a micro-batch, and micro-batches of a step.
    pub(super) tokens: usize,
    pub(super) micro_batches: usize,
}

/// What is made of the logits of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objective {
    /// The cross-entropy, by the operations of the step.
    Tokens,
    /// A comparison of answers or their rewards, by Burn's operations in f32. `reference` says that the model without its adapter
    /// answers, too.
    Answers { reference: bool },
}
