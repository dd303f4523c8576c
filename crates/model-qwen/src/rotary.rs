//! The frequencies of rotary position embedding, and the angles that they give a step's tokens. Attention applies the angles.
//!
//! Source: `modeling_rope_utils.py` of transformers 5.24, rounded to f32 where it is.

use std::f64::consts::PI;

use burn::tensor::{DType, Device, Tensor, TensorData};
use kv_paging::Rotary;
use rayon::prelude::*;

use crate::config::{Llama3, QwenConfig, RopeScaling, Yarn};
use crate::kernels::angles_on_gpu;

/// Tokens whose angles are worth a thread.
const ROWS_OF_A_THREAD: usize = 128;

/// Inverse frequencies of a checkpoint, one per pair of head dimensions.
#[derive(Clone, Debug)]
pub struct RotaryFrequencies {
    inv_freq: Vec<f32>,
    /// What cos and sin are multiplied by (YaRN, LongRoPE; 1 otherwise).
    scale: f32,
}

impl RotaryFrequencies {
    /// Frequencies `theta^(-2i/d)`, scaled as the config asks for it.
    pub fn new(config: &QwenConfig) -> Self {
        let dim = config.head_dim;
        let theta = config.rope_theta as f32;
        // theta^(2i/d): the wavelength of each pair, divided by 2 pi.
        let wavelengths: Vec<f32> = (0..dim / 2)
            .map(|i| theta.powf((2 * i) as f32 / dim as f32))
            .collect();
        let plain = wavelengths.iter().map(|wavelength| 1.0 / wavelength);
        let (inv_freq, scale) = match &config.rope_scaling {
            None | Some(RopeScaling::Dynamic { .. }) => (plain.collect(), 1.0),
            Some(RopeScaling::Linear { factor }) => {
                (plain.map(|freq| freq / *factor as f32).collect(), 1.0)
            }
            Some(RopeScaling::Yarn(yarn)) => {
                let ramp = yarn_ramp(yarn, dim, config.rope_theta);
                let parts = wavelengths.iter().zip(ramp);
                let inv_freq = parts.map(|(&wavelength, interpolated)| {
                    let longer = 1.0 / (yarn.factor as f32 * wavelength);
                    longer * interpolated + 1.0 / wavelength * (1.0 - interpolated)
                });
                (inv_freq.collect(), yarn.attention_factor as f32)
            }
            Some(RopeScaling::LongRope(long)) => {
                let parts = wavelengths.iter().zip(&long.short_factor);
                let inv_freq = parts.map(|(wavelength, &by)| 1.0 / (by as f32 * wavelength));
                (inv_freq.collect(), long.attention_factor as f32)
            }
            Some(RopeScaling::Llama3(llama)) => {
                (plain.map(|freq| llama3(freq, llama)).collect(), 1.0)
            }
            Some(RopeScaling::Proportional {
                factor,
                partial_rotary_factor,
            }) => {
                let turned = (partial_rotary_factor * dim as f64 / 2.0) as usize;
                let inv_freq = plain.enumerate().map(|(i, freq)| match i < turned {
                    true => freq / *factor as f32,
                    false => 0.0,
                });
                (inv_freq.collect(), 1.0)
            }
        };
        Self { inv_freq, scale }
    }

    /// Angle per position of each pair of head dimensions, `[head_dim / 2]`.
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// What cosines and sines are multiplied with.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// The angles of tokens at `positions`, on `device`.
    pub fn at(&self, positions: &[u32], device: &Device) -> Rotary {
        if let Some(angles) = angles_on_gpu(positions, (&self.inv_freq, self.scale), device) {
            return angles;
        }
        let half = self.inv_freq.len();
        let mut cos = vec![0.0; positions.len() * half];
        let mut sin = cos.clone();
        // One core takes 14 ms for a prompt of 8,000 tokens.
        let rows = (cos.par_chunks_mut(half)).zip(sin.par_chunks_mut(half));
        let rows = rows.zip(positions).with_min_len(ROWS_OF_A_THREAD);
        rows.for_each(|((cos, sin), &position)| {
            for ((cos, sin), &freq) in cos.iter_mut().zip(sin).zip(&self.inv_freq) {
                let (s, c) = (position as f32 * freq).sin_cos();
                (*cos, *sin) = (c * self.scale, s * self.scale);
            }
        });
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

/// How far each pair of dimensions is interpolated: 0 keeps its frequency, 1 divides it by the factor.
fn yarn_ramp(yarn: &Yarn, dim: usize, theta: f64) -> impl Iterator<Item = f32> {
    // The dimension that makes `rotations` turns over the original context (YaRN, eq. 17 ff.).
    let correction_dim = |rotations: f64| {
        let turns = yarn.original_max_position_embeddings as f64 / (rotations * 2.0 * PI);
        dim as f64 * turns.ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (
        correction_dim(yarn.beta_fast),
        correction_dim(yarn.beta_slow),
    );
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if high == low {
        high += 0.001;
    }
    let ramp = move |i: usize| ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
    (0..dim / 2).map(ramp)
}

/// A frequency as Llama 3.1 scales it.
fn llama3(freq: f32, llama: &Llama3) -> f32 {
    let original = llama.original_max_position_embeddings as f32;
    let (low, high) = (llama.low_freq_factor as f32, llama.high_freq_factor as f32);
    let factor = llama.factor as f32;
    let wavelength = 2.0 * PI as f32 / freq;
    if wavelength > original / low {
        return freq / factor;
    }
    if wavelength < original / high {
        return freq;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * freq / factor + smooth * freq
}
