//! Speed and memory of LoRA training on the CPU: `bench_train --model DIR [--quantization none] [--profile]`.
//!
//! One document of random tokens, every token a target, AdamW, adapters of rank 16 on all linear layers.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use clap::Parser;
use examples::profile::{Profile, Rows};
use lora_4bit::ComputeDtype;
use model_qwen::{LoadOptions, Quantization, QwenModel};
use trainer_sft::batch::Batch;
use trainer_sft::config::{LoraOptions, LrSchedule};
use trainer_sft::lora::{SLOT, new_adapter};
use trainer_sft::metrics::peak_memory;
use trainer_sft::optimizer::AdamWConfig;
use trainer_sft::parameters::Trainable;
use trainer_sft::schedule::Schedule;
use trainer_sft::step::Checkpointing;
use trainer_sft::trainer::{Trainer, TrainerOptions};

/// Measures steps of LoRA training on the CPU.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the checkpoint.
    #[arg(long)]
    model: PathBuf,
    /// How to hold the linear weights.
    #[arg(long, value_enum, default_value_t = Quantization::Nf4)]
    quantization: Quantization,
    /// Type in which the frozen weights are multiplied.
    #[arg(long, value_enum, default_value_t = ComputeDtype::Bf16)]
    compute_dtype: ComputeDtype,
    /// Threads; by default one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Tokens of the document.
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// Steps.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Prints a table of the time spent in each kernel, for every step.
    #[arg(long)]
    profile: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    model_qwen::sys::keep_freed_memory();
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()?;
    let profile = args
        .profile
        .then(|| Profile::install(Rows::Kernels))
        .transpose()?;
    let name = match args.quantization {
        Quantization::None => "LoRA, bf16",
        Quantization::Nf4 => "QLoRA, NF4",
    };
    let load = LoadOptions {
        quantization: args.quantization,
        ..LoadOptions::default()
    };
    let mut model = QwenModel::load(&args.model, &load, &Device::flex())?;
    let adapter = new_adapter(&LoraOptions::default(), None, &model, 0);
    model.set_compute_dtype(args.compute_dtype);
    model.add_adapter(SLOT, &adapter)?;
    let batch = document(args.tokens, model.config.vocab_size as u32);
    let mut trainer = Trainer::new(
        model,
        TrainerOptions {
            trainable: Trainable::Adapter { slot: SLOT },
            learning_rate: 1e-4,
            schedule: Schedule {
                kind: LrSchedule::Constant,
                warmup_steps: 0,
                total_steps: args.steps,
            },
            optimizer: AdamWConfig::default(),
            max_grad_norm: Some(1.0),
            checkpointing: Checkpointing::default(),
            dropout: 0.0,
            seed: 0,
        },
    );
    for _ in 0..args.steps {
        let start = Instant::now();
        let (loss, _) = trainer.step(std::slice::from_ref(&batch)).read();
        let elapsed = start.elapsed();
        println!(
            "this project, {name}: 1 x {}: {:.1} tok/s; loss {loss:.3}; peak {} MiB",
            args.tokens,
            args.tokens as f64 / elapsed.as_secs_f64(),
            peak_memory().unwrap_or(0) >> 20,
        );
        if let Some(profile) = &profile {
            println!("\n{}", profile.take(elapsed, args.tokens));
        }
    }
    Ok(())
}

/// One document in which every token but the first is a target.
fn document(num_tokens: usize, vocab: u32) -> Batch {
    let token = |i: u32| i.wrapping_mul(2_654_435_761) % vocab;
    let tokens: Vec<u32> = (0..num_tokens as u32).map(token).collect();
    let mut targets: Vec<_> = tokens[1..].iter().copied().map(Some).collect();
    targets.push(None);
    Batch {
        positions: (0..num_tokens as u32).collect(),
        lengths: vec![num_tokens],
        tokens,
        targets,
    }
}
