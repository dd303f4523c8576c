//! How the gradients of a batch are computed.

use lora_4bit::AdapterSelection;

use super::checkpointing::Checkpointing;
use super::noise::Noise;
use crate::parameters::Trainable;

/// What is trained, and how.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions<'a> {
    /// What is trained.
    pub trainable: Trainable,
    /// The adapters in use.
    pub adapters: &'a AdapterSelection,
    /// Which layers are computed again.
    pub checkpointing: Checkpointing,
    /// NEFTune's noise on the embeddings.
    pub noise: Option<Noise>,
}
