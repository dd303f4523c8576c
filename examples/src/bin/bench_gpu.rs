//! Speed of single operations on a GPU: products of a linear layer, and decode steps of a whole model.
//!
//! `bench_gpu products --rows 1,32,256` takes the shapes of a 1.5B Qwen2 model; `bench_gpu steps --model DIR --steps 1:200,32:200`
//! replays a step of so many sequences with so many tokens each.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use burn::tensor::{DType, Device, Distribution, Tensor};
use clap::{Parser, Subcommand};
use kv_paging::{DecodeToken, KvShape, PagedKvCache, SchedulerConfig};
use lora_4bit::nf4::Nf4Data;
use lora_4bit::{AdapterSelection, ComputeDtype, Linear, Nf4Weight, Norm, Weight, norm_swiglu};
use model_qwen::{
    ChoiceRow, DecodeRow, Draw, GraphRunner, LoadOptions, QwenModel, Sampler, SamplingParams, Want,
    parse_device,
};

/// Measures single operations on a GPU.
#[derive(Debug, Parser)]
struct Args {
    /// As the server's flag.
    #[arg(long, default_value = "cuda", global = true)]
    device: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// `x · wᵀ`, and `silu(x · gateᵀ) · (x · upᵀ)`.
    Products {
        /// Rows of `x`.
        #[arg(long, value_delimiter = ',', default_value = "1,8,32,256,2048")]
        rows: Vec<usize>,
        /// With weights in NF4.
        #[arg(long)]
        nf4: bool,
    },
    /// Steps of one token per sequence, as CUDA graphs.
    Steps {
        /// Folder of the checkpoint.
        #[arg(long)]
        model: PathBuf,
        /// Sequences and tokens of each, as 32:200.
        #[arg(long, value_delimiter = ',', default_value = "1:200,32:200", value_parser = step)]
        steps: Vec<(usize, usize)>,
    },
}

fn step(text: &str) -> Result<(usize, usize)> {
    let (rows, context) = text
        .split_once(':')
        .with_context(|| format!("expected SEQUENCES:TOKENS, found {text:?}"))?;
    Ok((rows.parse()?, context.parse::<usize>()?.max(1)))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = parse_device(&args.device)?;
    match args.what {
        What::Products { rows, nf4 } => products(&device, &rows, nf4),
        What::Steps { model, steps } => measure_steps(&device, &model, &steps),
    }
}

fn sync(device: &Device) -> Result<()> {
    device
        .sync()
        .map_err(|error| anyhow::anyhow!("{device:?}: {error:?}"))
}

/// The shortest of some runs of `work`, which is done `times` times in each.
fn shortest(device: &Device, times: u32, mut work: impl FnMut(u32)) -> Result<Duration> {
    let mut best = Duration::MAX;
    // The first run compiles.
    for run in 0..6 {
        sync(device)?;
        let start = Instant::now();
        (0..times).for_each(&mut work);
        sync(device)?;
        if run > 0 {
            best = best.min(start.elapsed() / times);
        }
    }
    Ok(best)
}

/// More weights than a cache holds, in turn.
const COPIES: usize = 6;

/// A layer with random weights, `[n, k]`.
fn random_layer([n, k]: [usize; 2], nf4: bool, device: &Device) -> Linear {
    let values = random([n, k], device);
    let weight = match nf4 {
        true => {
            let values: Vec<f32> = values.into_data().iter().collect();
            let data = Nf4Data::quantize(&values, [n, k], DType::F32, true);
            Weight::Nf4(Nf4Weight::from_data(&data, device))
        }
        false => Weight::Dense(values.cast(DType::BF16)),
    };
    let mut layer = Linear::new(weight, None);
    layer.compute = ComputeDtype::Bf16;
    layer
}

fn random(shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(
        shape,
        Distribution::Uniform(-1.0, 1.0),
        (device, DType::F32),
    )
}

fn products(device: &Device, rows: &[usize], nf4: bool) -> Result<()> {
    let adapters = AdapterSelection::Base;
    for (name, [n, k], is_gated) in [
        ("gate and up", [8960, 1536], true),
        ("down", [1536, 8960], false),
        ("o", [1536, 1536], false),
        ("k", [256, 1536], false),
    ] {
        let layers: Vec<Linear> = (0..COPIES)
            .map(|_| random_layer([n, k], nf4, device))
            .collect();
        for &m in rows {
            let x = random([m, k], device); // [m, k]
            // The gated product normalises its input, which is f32 then.
            let input = x.clone().cast(layers[0].input_dtype(&x, &adapters));
            let weight = random([1, k], device).reshape([k]); // [k]
            let norm = Norm {
                weight: &weight,
                eps: 1e-6,
            };
            let time = shortest(device, 60, |i| {
                let [layer, up] = [0, 1].map(|j| &layers[(i as usize + j) % COPIES]);
                let _ = match is_gated {
                    true => norm_swiglu(&x, norm, [layer, up], &adapters),
                    false => layer.forward(input.clone(), &adapters),
                };
            })?;
            let num = if is_gated { 2 } else { 1 };
            let per_second = |amount: usize| (num * amount) as f64 / time.as_secs_f64() * 1e-12;
            println!(
                "{name} [{n}, {k}], {m} rows: {time:.1?}, {:.1} TFLOP/s, weights {:.2} TB/s",
                per_second(2 * m * n * k),
                per_second(if nf4 { n * k / 2 } else { 2 * n * k }),
            );
        }
    }
    Ok(())
}

fn measure_steps(device: &Device, model: &Path, steps: &[(usize, usize)]) -> Result<()> {
    const BLOCK_SIZE: usize = 16;
    let mut model = QwenModel::load(model, &LoadOptions::default(), device)?;
    model.set_compute_dtype(ComputeDtype::Bf16);
    let blocks_of = |context: usize| context.div_ceil(BLOCK_SIZE);
    let needed = steps
        .iter()
        .map(|&(rows, context)| rows * blocks_of(context));
    let mut cache = PagedKvCache::new(
        &KvShape {
            num_layers: model.config.num_hidden_layers,
            num_kv_heads: model.config.num_key_value_heads,
            head_dim: model.config.head_dim,
            block_size: BLOCK_SIZE,
            num_blocks: needed.max().unwrap_or(1),
            dtype: DType::BF16,
        },
        device,
    );
    let most_rows = steps.iter().map(|&(rows, _)| rows).max().unwrap_or(1);
    let longest = steps.iter().map(|&(_, context)| context).max().unwrap_or(1);
    let config = SchedulerConfig {
        max_num_seqs: most_rows,
        max_num_batched_tokens: most_rows,
        block_size: BLOCK_SIZE,
        num_blocks: cache.shape().num_blocks,
        max_model_len: longest,
        enable_prefix_caching: false,
    };
    let mut runner = GraphRunner::new(&model, &config);
    let greedy = Sampler::new(&SamplingParams::greedy(), &[], model.config.vocab_size);
    for &(num_rows, context) in steps {
        let max_blocks = blocks_of(context);
        let tables: Vec<Vec<u32>> = (0..num_rows)
            .map(|row| {
                (0..max_blocks)
                    .map(|i| (row * max_blocks + i) as u32)
                    .collect()
            })
            .collect();
        let rows = |table| DecodeRow {
            follows: false,
            token: DecodeToken::Id(5),
            position: context - 1,
            adapter_slot: None,
            block_table: table,
            draw: Some(Draw::default()),
            is_constrained: false,
        };
        let rows: Vec<DecodeRow<'_>> = tables.iter().map(|table| rows(table)).collect();
        // Their tokens are dropped together, when all are launched.
        let mut pending = Vec::new();
        let launched = shortest(device, 20, |i| {
            if i == 0 {
                pending.clear();
            }
            pending.push(runner.launch(&model, &mut cache, &rows));
        })?;
        drop(pending);
        let mut samplers = vec![greedy.clone(); num_rows];
        let whole = shortest(device, 20, |_| {
            let pending = runner.launch(&model, &mut cache, &rows);
            let mut wants: Vec<ChoiceRow<'_>> = (samplers.iter_mut().enumerate())
                .map(|(row, sampler)| ChoiceRow {
                    row,
                    want: Want::Token {
                        sampler,
                        banned: &[],
                    },
                })
                .collect();
            let tokens = pending.tokens(&model, &mut wants);
            assert_eq!(tokens.map(|tokens| tokens.len()), Ok(num_rows));
        })?;
        println!(
            "{num_rows} sequences of {context} tokens: {launched:.1?} a step, {whole:.1?} if the host reads its tokens before the next one"
        );
    }
    Ok(())
}
