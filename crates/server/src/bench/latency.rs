//! `bench latency`: one batch again and again.

use model_qwen::flags::whole;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use super::dataset_args::{MAX_COUNT, MAX_LEN, MAX_TOKENS, check_range, check_total};
use super::measured::Measured;
use super::metrics::{mean, percentile, std_dev};
use super::offline::{Offline, Work, bar, measured, open_json};
use crate::config::{Config, ConfigError, Flags, OF_API, refuse};

/// Starts an engine, gives it one batch again and again, and prints how long it takes. Prompts are computed each time, unless
/// --enable-prefix-caching is given
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 110, allow_negative_numbers = true)]
pub struct LatencyArgs {
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = whole::<usize>)]
    pub input_len: usize,

    /// Tokens of each answer
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = whole::<usize>)]
    pub output_len: usize,

    /// Prompts in the batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = whole::<usize>)]
    pub batch_size: usize,

    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    pub n: usize,

    /// Batches before the measurement
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>)]
    pub num_iters_warmup: usize,

    /// Batches that are measured
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = whole::<usize>)]
    pub num_iters: usize,

    /// Leave answers as tokens
    #[arg(long)]
    pub disable_detokenize: bool,

    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
}

/// `bench latency` with its engine.
#[derive(Clone, Debug)]
pub struct BenchLatency {
    /// The engine.
    pub config: Config,
    /// The batch.
    pub args: LatencyArgs,
}

/// Flags of `vllm bench latency` that cannot work here.
const REFUSED: [(&str, &str); 2] = [
    ("--use-beam-search", "this engine has no beam search"),
    ("--profile", "this engine has no profiler"),
];
/// What vLLM reports.
const PERCENTILES: [f64; 6] = [10.0, 25.0, 50.0, 75.0, 90.0, 99.0];
/// Most prompts of a batch, and answers to all of them.
const MAX_BATCH: usize = 1 << 16;
/// Ids of prompts are below this.
const MAX_ID: u32 = 10_000;

impl BenchLatency {
    pub(super) fn from_command_line(command_line: Vec<OsString>) -> Result<Self, ConfigError> {
        refuse(&command_line, &REFUSED)?;
        refuse_both(&command_line)?;
        let own = LatencyArgs::command();
        let flags = Flags::read_offline("bench latency", own, command_line, &OF_API)?;
        let args = LatencyArgs::from_arg_matches(&flags.matches)?;
        for (flag, value, least, most) in [
            ("--input-len", args.input_len, 1, MAX_LEN),
            ("--output-len", args.output_len, 1, MAX_LEN),
            ("--batch-size", args.batch_size, 1, MAX_BATCH),
            ("--n", args.n, 1, MAX_BATCH),
            ("--num-iters", args.num_iters, 1, MAX_COUNT),
            ("--num-iters-warmup", args.num_iters_warmup, 0, MAX_COUNT),
        ] {
            check_range(flag, value, least, most)?;
        }
        let (prompts, answers) = (args.batch_size * args.input_len, args.batch_size * args.n);
        check_total("--batch-size", prompts, MAX_TOKENS, "tokens in all prompts")?;
        check_total("--n", answers, MAX_BATCH, "answers to all prompts")?;
        let mut config = flags.config;
        config.enable_prefix_caching = flags.matches.get_flag("enable_prefix_caching");
        Ok(Self { config, args })
    }
}

/// Refuses prompts that are to be kept and computed each time: the later flag would hide the other one.
fn refuse_both(command_line: &[OsString]) -> Result<(), ConfigError> {
    const ON: &str = "--enable-prefix-caching";
    const OFF: &str = "--no-enable-prefix-caching";
    let is_given = |flag: &str| command_line.iter().any(|word| word == flag);
    match is_given(ON) && is_given(OFF) {
        false => Ok(()),
        true => Err(ConfigError::Flag {
            flag: ON,
            message: format!("{OFF} says the contrary; give one of the two"),
        }),
    }
}

/// Measures.
pub(super) async fn run(bench: &BenchLatency) -> Result<Measured> {
    let args = &bench.args;
    let file = open_json(args.output_json.as_deref())?;
    let offline = Offline::start(&bench.config, !args.disable_detokenize).await?;
    offline.check_len(args.input_len.saturating_add(args.output_len))?;
    let mut rng = ChaCha8Rng::seed_from_u64(bench.config.seed.unwrap_or(0));
    let num_ids = (offline.model.tokenizer.vocab_size() as u32).clamp(1, MAX_ID);
    let work: Vec<Work> = (0..args.batch_size)
        .map(|_| Work {
            prompt: (0..args.input_len)
                .map(|_| rng.random_range(0..num_ids))
                .collect(),
            output_len: args.output_len,
        })
        .collect();
    let bar = bar(
        (args.num_iters_warmup + args.num_iters).saturating_mul(args.batch_size * args.n),
        false,
    );
    tracing::info!(iterations = args.num_iters_warmup, "warming up");
    for _ in 0..args.num_iters_warmup {
        offline.generate(&work, args.n, &bar).await?;
    }
    tracing::info!(iterations = args.num_iters, "measuring");
    let mut latencies = Vec::with_capacity(args.num_iters);
    for _ in 0..args.num_iters {
        let start = Instant::now();
        offline.generate(&work, args.n, &bar).await?;
        latencies.push(start.elapsed().as_secs_f64());
    }
    bar.finish_and_clear();

    let (average, deviation) = (mean(&latencies), std_dev(&latencies));
    let mut text = format!("Avg latency: {average} seconds\nStd latency: {deviation} seconds\n");
    let mut percentiles = Map::new();
    for percent in PERCENTILES {
        let value = percentile(&latencies, percent);
        text += &format!("{percent}% percentile latency: {value} seconds\n");
        percentiles.insert(percent.to_string(), value.into());
    }
    let result = json!({
        "avg_latency": average,
        "std_latency": deviation,
        "latencies": latencies,
        "percentiles": Value::Object(percentiles),
    });
    Ok(measured(text, file, &result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &str) -> Result<BenchLatency, ConfigError> {
        let words = ["server"].into_iter().chain(flags.split_whitespace());
        BenchLatency::from_command_line(words.map(OsString::from).collect())
    }

    #[test]
    fn prompts_are_kept_only_if_a_flag_says_so() {
        let keeps = |flags: &str| read(flags).unwrap().config.enable_prefix_caching;
        assert!(!keeps(""));
        assert!(keeps("--enable-prefix-caching"));
        assert!(!keeps("--no-enable-prefix-caching"));
        for flags in [
            "--enable-prefix-caching --no-enable-prefix-caching",
            "--no-enable-prefix-caching --enable-prefix-caching",
        ] {
            let error = read(flags).unwrap_err().to_string();
            assert!(error.contains("--enable-prefix-caching"), "{error}");
            assert!(error.contains("--no-enable-prefix-caching"), "{error}");
        }
    }
}
