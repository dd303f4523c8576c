//! How the weights of a model are loaded.

use serde::{Deserialize, Serialize};

use crate::dtype::Dtype;

/// How the linear layers of the decoder are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// As in the file: dense, or NF4 where the checkpoint is a bitsandbytes one.
    #[default]
    None,
    /// 4-bit NormalFloat in blocks of 64, quantized while loading.
    #[cfg_attr(feature = "clap", value(alias = "bitsandbytes"))]
    Nf4,
}

/// Choices of [`QwenModel::load`](crate::QwenModel::load).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Dtype of dense weights.
    pub dtype: Dtype,
    /// Quantization of the linear layers.
    pub quantization: Quantization,
    /// Whether the scales of weights that are quantized while loading are quantized as well, which saves 0.37 bits a weight.
    pub double_quant: bool,
    /// Whether to call [`QwenModel::copy_lm_head_int8`](crate::QwenModel::copy_lm_head_int8): for a model that will decode.
    pub int8_lm_head: bool,
    /// Whether embeddings that aren't tied to lm_head stay in the CPU's memory, as they are in the file: for training on a GPU,
    /// where each step reads few of their rows.
    pub embeddings_on_cpu: bool,
    /// Whether to look at once for what is no number among weights that stay in the mapped file, which costs reading it. Without,
    /// that is done beside the first steps, and said in the log.
    pub check_finite_now: bool,
    /// Whether the model computes logits. Without, lm_head may be missing, and isn't read: for embeddings and scores.
    pub lm_head: bool,
}

impl Default for LoadOptions {
    /// The weights as they are in the file, for training or for a single look; double quantization for those that will be
    /// quantized.
    fn default() -> Self {
        Self {
            dtype: Dtype::Auto,
            quantization: Quantization::None,
            double_quant: true,
            int8_lm_head: false,
            embeddings_on_cpu: false,
            check_finite_now: true,
            lm_head: true,
        }
    }
}
