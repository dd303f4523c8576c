//! Which layers are computed again in the backward pass.

use model_qwen::{QwenConfig, QwenModel};

use crate::config::GradientCheckpointing;
use crate::metrics;

/// Which layers are computed again in the backward pass. Any other layer keeps its activations from the forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Every layer on a GPU; on a CPU those whose activations do not fit into half of the memory that is free, the first ones. (A
    /// run decides for a GPU before: see [`PlannedRun`](crate::memory::PlannedRun).)
    #[default]
    Auto,
    /// Every layer.
    On,
    /// Every layer, and the inputs of the layers wait in the host's memory. On a CPU they are there already.
    Offload,
    /// None.
    Off,
    /// The first ones, so many.
    Layers(usize),
}

impl From<GradientCheckpointing> for Checkpointing {
    fn from(setting: GradientCheckpointing) -> Self {
        match setting {
            GradientCheckpointing::Auto => Self::Auto,
            GradientCheckpointing::True => Self::On,
            GradientCheckpointing::False => Self::Off,
            GradientCheckpointing::Layers(layers) => Self::Layers(layers),
        }
    }
}

/// The part of a step with which all of its kernels are compiled.
pub(crate) struct CompiledPart {
    /// The first layers, so many.
    pub(crate) num_layers: usize,
    pub(crate) checkpointing: Checkpointing,
}

impl Checkpointing {
    /// A layer of each kind, computed again or not: the other layers need the same kernels. No input waits on the host, because
    /// nothing can be read while kernels are only compiled.
    pub(crate) fn for_compiling(self) -> CompiledPart {
        let (num_layers, checkpointing) = match self {
            Self::Offload => (1, Self::On),
            Self::Layers(_) => (2, Self::Layers(1)),
            Self::Auto | Self::On | Self::Off => (1, self),
        };
        CompiledPart {
            num_layers,
            checkpointing,
        }
    }

    /// The first layer whose activations a GPU keeps.
    pub(crate) fn first_kept(self, num_layers: usize) -> usize {
        match self {
            Self::Auto | Self::On | Self::Offload => num_layers,
            Self::Off => 0,
            Self::Layers(layers) => layers.min(num_layers),
        }
    }

    /// How many of the last layers keep their activations.
    pub(super) fn num_kept(self, model: &QwenModel, num_tokens: usize) -> usize {
        let num_layers = model.layers.len();
        match self {
            Self::On | Self::Offload | Self::Off | Self::Layers(_) => {
                num_layers - self.first_kept(num_layers)
            }
            Self::Auto => {
                let free = metrics::available_memory().unwrap_or(0) as usize;
                (free / 2 / layer_bytes(model, num_tokens).max(1)).min(num_layers)
            }
        }
    }
}

/// Bytes that the graph of one layer keeps, about.
fn layer_bytes(model: &QwenModel, num_tokens: usize) -> usize {
    size_of::<f32>() * layer_values(&model.config) * num_tokens
}

/// Values for each token that the graph of one layer keeps, about.
pub(crate) fn layer_values(config: &QwenConfig) -> usize {
    let heads = config.head_dim * config.num_attention_heads;
    let kv_heads = config.head_dim * config.num_key_value_heads;
    // Residual stream and norms; q, rotated q and attention; k, rotated k and v; gate, up and their product.
    5 * config.hidden_size + 3 * heads + 3 * kv_heads + 3 * config.intermediate_size
}
