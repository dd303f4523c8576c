//! NEFTune: noise on the embeddings, while training only.

use burn::tensor::{DType, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::batch::Batch;

/// The noise of one batch: each value is uniform within `±alpha / sqrt(length * hidden)` for a document of `length` tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    /// How much.
    pub alpha: f64,
    /// What the values depend on.
    pub seed: u64,
}

impl Noise {
    /// Adds the noise to `x [tokens, hidden]`, the embeddings of a batch. Rows behind the documents stay as they are.
    pub(crate) fn add(self, x: Tensor<2>, batch: &Batch) -> Tensor<2> {
        let ([rows, hidden], device, dtype) = (x.dims(), x.device(), x.dtype());
        let mut values = self.values(batch, hidden);
        values.resize(rows * hidden, 0.0);
        let noise = TensorData::new(values, [rows, hidden]);
        let noise = Tensor::<2>::from_data(noise, (&device, DType::F32));
        (x.cast(DType::F32) + noise).cast(dtype)
    }

    fn values(self, batch: &Batch, hidden: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Apart from what else is drawn from the seed of a run.
        rng.set_stream(u64::MAX);
        self.scaled(&batch.lengths, hidden, || rng.random_range(-1.0f32..1.0))
    }

    /// The noise of documents of these lengths, of draws within ±1.
    fn scaled(self, lengths: &[usize], hidden: usize, mut draw: impl FnMut() -> f32) -> Vec<f32> {
        let mut values = Vec::with_capacity(lengths.iter().sum::<usize>() * hidden);
        for length in lengths {
            let count = length * hidden;
            let bound = (self.alpha / (count.max(1) as f64).sqrt()) as f32;
            values.extend((0..count).map(|_| bound * draw()));
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use safetensors::SafeTensors;

    use super::*;

    /// Documents of one length have the noise of transformers' hook, for the draws that it made.
    #[test]
    fn equal_lengths_have_the_noise_of_transformers() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/golden/neftune");
        let bytes = std::fs::read(golden.join("hook.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let [draws, embeddings, noisy] = ["draws", "embeddings", "noisy"].map(|name| {
            let bytes = file.tensor(name).unwrap().data().chunks(4);
            let values = bytes.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            values.collect::<Vec<f32>>()
        });
        let meta = std::fs::read(golden.join("meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_slice(&meta).unwrap();
        let tolerance = meta["tolerance"].as_f64().unwrap() as f32;
        let alpha = meta["alpha"].as_f64().unwrap();
        let noise = Noise { alpha, seed: 0 };
        let mut draw = draws.iter().copied();
        let added = noise.scaled(&[6, 6], 8, || draw.next().unwrap());
        assert_eq!(added.len(), noisy.len());
        for ((added, before), after) in added.iter().zip(&embeddings).zip(&noisy) {
            assert!(
                (before + added - after).abs() < tolerance,
                "{before} + {added}, {after}"
            );
        }
        let largest = added.iter().fold(0f32, |max, value| max.max(value.abs()));
        assert!(largest > 0.5, "{largest}");
    }

    #[test]
    fn each_document_has_its_bound() {
        let noise = Noise {
            alpha: 5.0,
            seed: 3,
        };
        let x = Tensor::<2>::zeros([8, 50], (&Device::flex(), DType::F32));
        let batch = Batch {
            lengths: vec![2, 4],
            ..Batch::default()
        };
        let of = |noise: Noise| -> Vec<f32> {
            noise.add(x.clone(), &batch).into_data().iter().collect()
        };
        let values = of(noise);
        for (part, length) in [(&values[..100], 2.0f32), (&values[100..300], 4.0)] {
            let bound = 5.0 / (length * 50.0).sqrt();
            let largest = part.iter().fold(0f32, |max, value| max.max(value.abs()));
            assert!(
                largest <= bound && largest > 0.9 * bound,
                "{largest}, {bound}"
            );
            let mean = part.iter().sum::<f32>() / part.len() as f32;
            assert!(mean.abs() < 0.2 * bound, "{mean}");
        }
        assert!(values[300..].iter().all(|value| *value == 0.0));
        assert!(values == of(noise), "the noise repeats");
        let other = of(Noise { seed: 4, ..noise });
        assert!(values != other, "another seed has the same noise");
    }
}
