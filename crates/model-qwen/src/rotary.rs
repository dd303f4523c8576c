//! The frequencies of rotary position embedding, and the angles that they give a step's tokens. Attention applies the angles.

use burn::tensor::{DType, Device, Tensor, TensorData};
use kv_paging::Rotary;

use crate::config::QwenConfig;

/// Inverse frequencies of a checkpoint, one per pair of head dimensions.
#[derive(Clone, Debug)]
pub struct RotaryFrequencies {
    inv_freq: Vec<f32>,
    /// What cos and sin are multiplied by (YaRN; 1 otherwise).
    scale: f32,
}

impl RotaryFrequencies {
    /// Frequencies `theta^(-2i/d)`, stretched by YaRN where the config asks for it.
    pub fn new(config: &QwenConfig) -> Self {
        let dim = config.head_dim;
        let theta = config.rope_theta as f32;
        let plain: Vec<f32> = (0..dim / 2)
            .map(|i| 1.0 / theta.powf((2 * i) as f32 / dim as f32))
            .collect();
        let Some(yarn) = &config.rope_scaling else {
            return Self {
                inv_freq: plain,
                scale: 1.0,
            };
        };
        // The dimension that makes `rotations` turns over the original context (YaRN, eq. 17 ff.).
        let correction_dim = |rotations: f64| {
            let turns = yarn.original_max_position_embeddings as f64
                / (rotations * 2.0 * std::f64::consts::PI);
            dim as f64 * turns.ln() / (2.0 * config.rope_theta.ln())
        };
        let low = correction_dim(yarn.beta_fast).floor().max(0.0);
        let mut high = correction_dim(yarn.beta_slow).ceil().min(dim as f64 - 1.0);
        if high == low {
            high += 0.001;
        }
        let inv_freq = plain.iter().enumerate().map(|(i, &freq)| {
            let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            freq / yarn.factor as f32 * interpolated + freq * (1.0 - interpolated)
        });
        Self {
            inv_freq: inv_freq.collect(),
            scale: yarn.attention_factor as f32,
        }
    }

    /// What cosines and sines are multiplied with.
    #[cfg(feature = "gpu")]
    pub(crate) fn scale(&self) -> f32 {
        self.scale
    }

    /// The frequencies as a tensor, `[head_dim / 2]`.
    #[cfg(feature = "gpu")]
    pub(crate) fn tensor(&self, device: &Device) -> Tensor<1> {
        let data = TensorData::new(self.inv_freq.clone(), [self.inv_freq.len()]);
        Tensor::from_data(data, (device, DType::F32))
    }

    /// The angles of tokens at `positions`, on `device`.
    pub fn at(&self, positions: &[u32], device: &Device) -> Rotary {
        let half = self.inv_freq.len();
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for &position in positions {
            for &freq in &self.inv_freq {
                let (s, c) = (position as f32 * freq).sin_cos();
                cos.push(c * self.scale);
                sin.push(s * self.scale);
            }
        }
        let upload = |values: Vec<f32>| {
            let data = TensorData::new(values, [positions.len(), 1, half]);
            Tensor::from_data(data, (device, DType::F32))
        };
        Rotary {
            cos: upload(cos),
            sin: upload(sin),
        } // [tokens, 1, head_dim / 2]
    }
}
