//! Random initialisation: for training from scratch, for tests and for benchmarks.

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::{Linear, Weight};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::QwenConfig;
use crate::device::use_one_queue;
use crate::load::{LoadError, build_layer};
use crate::model::QwenModel;

/// What transformers calls `initializer_range` for Qwen2.
const INITIALIZER_RANGE: f32 = 0.02;

impl QwenModel {
    /// A model with normally distributed weights (standard deviation 0.02), zero biases and unit
    /// norms in f32; the same for the same seed.
    pub fn random(config: QwenConfig, seed: u64, device: &Device) -> Self {
        use_one_queue();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let matrix = |[rows, columns]: [usize; 2], rng: &mut ChaCha8Rng| {
            let data = TensorData::new(normal_values(rows * columns, rng), [rows, columns]);
            Tensor::<2>::from_data(data, (device, DType::F32))
        };
        let ones = |len: usize| Tensor::<1>::ones([len], (device, DType::F32));
        let embed_tokens = matrix([config.vocab_size, config.hidden_size], &mut rng);
        let layers = (0..config.num_hidden_layers)
            .map(|_| {
                let layer = build_layer(
                    &config,
                    &mut |_, shape, bias| {
                        let bias = bias.then(|| Tensor::zeros([shape[0]], (device, DType::F32)));
                        Ok(Linear::new(Weight::Dense(matrix(shape, &mut rng)), bias))
                    },
                    &mut |_, len| Ok::<_, LoadError>(ones(len)),
                );
                // Parts made in memory cannot be missing.
                layer.unwrap_or_else(|_| unreachable!("random parts never fail"))
            })
            .collect();
        let lm_head = (!config.tie_word_embeddings)
            .then(|| matrix([config.vocab_size, config.hidden_size], &mut rng));
        let norm = ones(config.hidden_size);
        QwenModel::new(config, embed_tokens, layers, norm, lm_head)
    }
}

/// `count` draws from N(0, [`INITIALIZER_RANGE`]²) by the Box-Muller transform.
fn normal_values(count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // 1 - u, because the logarithm of 0 is not finite.
        let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
        let radius = (-2.0 * u.ln()).sqrt() * INITIALIZER_RANGE;
        let (sin, cos) = (2.0 * std::f32::consts::PI * v).sin_cos();
        values.extend([radius * cos, radius * sin]);
    }
    values.truncate(count);
    values
}
