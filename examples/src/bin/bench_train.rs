//! Speed and memory of LoRA training: `bench_train --model DIR [--device cuda] [--quantization none] [--profile]`; with
//! `--devices cuda:0,cuda:1` on several cards at the same time, each with its own documents.
//!
//! Documents of random tokens, every token a target, AdamW, adapters of rank 16 on all linear layers. The first step of a
//! process compiles kernels on a GPU. The others follow each other as in the trainer, which reads losses only to log them:
//! their time is that until the last one's loss is read. With `--profile` each step is waited for.

#![allow(clippy::print_stdout)]

use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use examples::profile::{Profile, Rows};
use lora_4bit::ComputeDtype;
use model_qwen::{LoadOptions, Quantization, QwenModel, parse_device};
use trainer_sft::batch::Batch;
use trainer_sft::config::{AllReduce, LoraOptions};
use trainer_sft::lora::{SLOT, new_adapter};
use trainer_sft::metrics::peak_memory;
use trainer_sft::parameters::Trainable;
use trainer_sft::replicas::GradientSum;
use trainer_sft::trainer::{Trainer, TrainerOptions};

/// Measures steps of LoRA training.
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
    /// Where to train: cpu, cuda, cuda:1, ...
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Where to train at the same time: cuda:0,cuda:1, ...; cpu may be there twice.
    #[arg(long, value_delimiter = ',', conflicts_with = "device")]
    devices: Vec<String>,
    /// How gradients are summed over the devices.
    #[arg(long, value_enum, default_value_t = AllReduce::Auto)]
    all_reduce: AllReduce,
    /// Documents of a step, on each device.
    #[arg(long, default_value_t = 1)]
    documents: usize,
    /// Tokens of a document; several numbers are measured one after the other.
    #[arg(long, default_value = "512", value_delimiter = ',')]
    tokens: Vec<usize>,
    /// Steps, the first one apart from the others.
    #[arg(long, default_value_t = 3, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..))]
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
        embeddings_on_cpu: true,
        ..LoadOptions::default()
    };
    if profile.is_none() {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(std::io::stderr)
            .init();
    }
    let names = match args.devices.is_empty() {
        true => std::slice::from_ref(&args.device),
        false => &args.devices,
    };
    let devices = names.iter().map(|name| parse_device(name));
    let devices: Vec<_> = devices.collect::<Result<_, _>>()?;
    let start = Instant::now();
    let options = TrainerOptions::constant(Trainable::Adapter { slot: SLOT }, 1e-4, args.steps);
    let trainers = devices.iter().map(|device| -> Result<Trainer> {
        let mut model = QwenModel::load(&args.model, &load, device)?;
        // The same on each device.
        let adapter = new_adapter(&LoraOptions::default(), None, &model, 0);
        model.set_compute_dtype(args.compute_dtype);
        model.add_adapter(SLOT, &adapter)?;
        Ok(Trainer::new(model, options))
    });
    let mut trainers = trainers.collect::<Result<Vec<_>>>()?;
    let replicas = trainers.split_off(1);
    let sum = GradientSum::choose(args.all_reduce, &devices)?;
    let on = match devices.len() {
        1 => String::new(),
        count => format!(" on {count} devices ({sum:?})"),
    };
    let mut trainer = trainers.remove(0).with_replicas(replicas, sum);
    let vocab = trainer.model().config.vocab_size as u32;
    println!("loaded in {:.1} s", start.elapsed().as_secs_f64());
    for &tokens in &args.tokens {
        let batches = (0..devices.len()).map(|device| {
            let first = device * args.documents;
            documents(first..first + args.documents, tokens, vocab)
        });
        let batches: Vec<Batch> = batches.collect();
        let num_tokens = batches.iter().map(Batch::num_tokens).sum::<usize>();
        let tokens_of = |steps: usize| (num_tokens * steps) as f64;
        let start = Instant::now();
        let mut outputs = vec![trainer.step(&batches)];
        let _ = outputs[0].numbers();
        let first = start.elapsed().as_secs_f64();
        let start = Instant::now();
        for _ in 1..args.steps {
            let start = Instant::now();
            let output = trainer.step(&batches);
            if let Some(profile) = &profile {
                let _ = output.numbers();
                println!("\n{}", profile.take(start.elapsed(), num_tokens));
            }
            outputs.push(output);
        }
        let losses: Vec<f64> = outputs
            .iter()
            .map(|output| output.numbers().means.loss)
            .collect();
        let rest = start.elapsed().as_secs_f64();
        println!(
            "this project, {name}{on}: {} x {tokens}: {:.1} tok/s; first step {first:.2} s; losses {:.3} to {:.3}; peak {} MiB",
            args.documents,
            tokens_of(args.steps - 1) / rest,
            losses.first().unwrap_or(&f64::NAN),
            losses.last().unwrap_or(&f64::NAN),
            peak_memory().unwrap_or(0) >> 20,
        );
    }
    Ok(())
}

/// Documents in which every token but the first is a target.
fn documents(numbers: Range<usize>, num_tokens: usize, vocab: u32) -> Batch {
    let mut batch = Batch::default();
    for document in numbers.map(|number| number as u32) {
        let token = |i: u32| (i + document * 7919).wrapping_mul(2_654_435_761) % vocab;
        let tokens: Vec<u32> = (0..num_tokens as u32).map(token).collect();
        batch.targets.extend(tokens[1..].iter().copied().map(Some));
        batch.targets.push(None);
        batch.positions.extend(0..num_tokens as u32);
        batch.lengths.push(num_tokens);
        batch.tokens.extend(tokens);
    }
    batch
}
