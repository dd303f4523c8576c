//! Time of one sampled token over a vocabulary of 151,936.
//!
//! ```sh
//! cargo run --release -p server -p model-qwen --example bench_sampling
//! ```

#![allow(clippy::print_stdout)]

use model_qwen::{Sampler, SamplingParams};

fn main() {
    // Shaped like a language model's: a few likely tokens far above the rest.
    let mut qwen = logits(151_936);
    for (i, logit) in qwen.iter_mut().enumerate() {
        *logit = *logit * 0.5 + if i % 5000 == 0 { 12.0 } else { 0.0 };
    }
    let flat = vec![0.0; 151_936];
    for (shape, logits) in [("peaked", &qwen), ("flat", &flat)] {
        for (name, params) in [
            ("greedy", SamplingParams::greedy()),
            ("temperature", SamplingParams::default()),
            (
                "top_k 20, top_p 0.8",
                SamplingParams {
                    temperature: 0.7,
                    top_k: 20,
                    top_p: 0.8,
                    ..SamplingParams::default()
                },
            ),
            (
                "top_p 0.95",
                SamplingParams {
                    top_p: 0.95,
                    ..SamplingParams::default()
                },
            ),
            (
                "min_p 0.05",
                SamplingParams {
                    min_p: 0.05,
                    ..SamplingParams::default()
                },
            ),
            (
                "logprobs 20",
                SamplingParams {
                    logprobs: Some(20),
                    ..SamplingParams::default()
                },
            ),
        ] {
            let mut sampler = Sampler::new(&params, &[], logits.len());
            let mut copy = logits.clone();
            let mut total = std::time::Duration::ZERO;
            for _ in 0..50 {
                copy.copy_from_slice(logits);
                let start = std::time::Instant::now();
                sampler.sample(&mut copy, &[]);
                total += start.elapsed();
            }
            println!("{shape}, {name}: {:?}", total / 50);
        }
    }
}

/// Logits without a pattern, in -5..5.
fn logits(n: usize) -> Vec<f32> {
    let mut state = 12_345u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 * 10.0 - 5.0
        })
        .collect()
}
