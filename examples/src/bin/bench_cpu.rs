//! Prefill and greedy decode speed of one sequence: `bench_cpu --model DIR [--quantization nf4] [--profile]`.

#![allow(clippy::print_stdout)]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use burn::tensor::Device;
use clap::Parser;
use examples::profile::{Profile, Rows};
use lora_4bit::ComputeDtype;
use model_qwen::{GenerateRequest, LoadOptions, Quantization, QwenModel, SamplingParams, generate};

/// Measures prefill and greedy decode of one sequence on the CPU.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the checkpoint.
    #[arg(long)]
    model: PathBuf,
    /// How to hold the linear weights.
    #[arg(long, value_enum, default_value_t = Quantization::None)]
    quantization: Quantization,
    /// Type in which the weights are multiplied: as the server chooses, or f32, bf16.
    #[arg(long, value_enum, default_value_t = ComputeDtype::Bits16)]
    compute_dtype: ComputeDtype,
    /// Threads; by default one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Tokens to decode after the first.
    #[arg(long, default_value_t = 64)]
    generate: usize,
    /// Repetitions.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Prints a table of the time spent in each operation, for prefill and for decode.
    #[arg(long)]
    profile: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()?;
    let profile = args
        .profile
        .then(|| Profile::install(Rows::Modules))
        .transpose()?;

    let start = Instant::now();
    let name = match args.quantization {
        Quantization::None => "bf16",
        Quantization::Nf4 => "NF4",
    };
    let options = LoadOptions {
        quantization: args.quantization,
        int8_lm_head: true,
        ..LoadOptions::default()
    };
    let mut model = QwenModel::load(&args.model, &options, &Device::flex())?;
    model.set_compute_dtype(args.compute_dtype);
    println!(
        "load: {:.2} s; weights {:.0} MB",
        start.elapsed().as_secs_f64(),
        model.num_bytes() as f64 / 1e6
    );
    for _ in 0..args.runs {
        let (prefill, decode) = speed(&model, &args, profile.as_ref())?;
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64();
        println!(
            "this project, {name}, multiplied in {:?}: prefill {}: {:.1} tok/s; decode {:.2} tok/s",
            args.compute_dtype,
            args.prompt,
            rate(args.prompt, prefill),
            rate(args.generate, decode),
        );
    }
    Ok(())
}

/// Time of the prompt (until its first token), and of the tokens after it.
fn speed(
    model: &QwenModel,
    args: &Args,
    profile: Option<&Profile>,
) -> Result<(Duration, Duration)> {
    let vocab = model.config.vocab_size as u32;
    let request = GenerateRequest {
        prompt: (0..args.prompt as u32)
            .map(|i| (1000 + 7 * i) % vocab)
            .collect(),
        sampling: SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        },
        max_tokens: 1 + args.generate,
        stop_token_ids: Vec::new(),
        adapter: None,
    };
    let start = Instant::now();
    let mut first = None;
    generate(model, &request, |_| {
        first.get_or_insert_with(|| {
            let elapsed = start.elapsed();
            if let Some(profile) = profile {
                println!("\nprefill\n\n{}", profile.take(elapsed, args.prompt));
            }
            (elapsed, Instant::now())
        });
        ControlFlow::Continue(())
    })?;
    let (prefill, first) = first.unwrap_or((start.elapsed(), start));
    let decode = first.elapsed();
    if let Some(profile) = profile {
        println!("decode\n\n{}", profile.take(decode, args.generate));
    }
    Ok((prefill, decode))
}
