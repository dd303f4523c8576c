//! Prefill and greedy decode speed of one sequence. `bench_cpu MODEL_DIR THREADS [nf4]`

#![allow(clippy::print_stdout)]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use model_qwen::{GenerateRequest, LoadOptions, Quantization, QwenModel, SamplingParams, generate};

const PROMPT: usize = 512;
const GENERATED: usize = 64;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, threads, quantization) = match args.as_slice() {
        [dir, threads] => (dir, threads, Quantization::None),
        [dir, threads, nf4] if nf4 == "nf4" => {
            (dir, threads, Quantization::Nf4 { double_quant: true })
        }
        _ => bail!("usage: bench_cpu MODEL_DIR THREADS [nf4]"),
    };
    let threads: usize = threads.parse().context("THREADS: expected a number")?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()?;

    let start = Instant::now();
    let options = LoadOptions {
        quantization,
        ..LoadOptions::default()
    };
    let model = QwenModel::load(Path::new(dir), &options, &Device::flex())?;
    println!(
        "load: {:.2} s; weights {:.0} MB",
        start.elapsed().as_secs_f64(),
        model.num_bytes() as f64 / 1e6
    );
    for _ in 0..2 {
        let (prefill, decode) = speed(&model);
        println!(
            "this project, {quantization:?}: prefill {PROMPT}: {prefill:.1} tok/s; decode {decode:.2} tok/s"
        );
    }
    Ok(())
}

/// Tokens per second of the prompt (until its first token) and of the tokens after it.
fn speed(model: &QwenModel) -> (f64, f64) {
    let vocab = model.config.vocab_size as u32;
    let request = GenerateRequest {
        prompt: (0..PROMPT as u32).map(|i| (1000 + 7 * i) % vocab).collect(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: 1 + GENERATED,
        stop_token_ids: Vec::new(),
        adapter: None,
    };
    let start = Instant::now();
    let mut first = None;
    let output = generate(model, &request, |_| {
        first.get_or_insert_with(Instant::now);
        ControlFlow::Continue(())
    });
    let first = first.unwrap_or(start);
    let decoded = output.len().saturating_sub(1) as f64;
    let prefill = PROMPT as f64 / (first - start).as_secs_f64();
    (prefill, decoded / first.elapsed().as_secs_f64())
}
