//! `bench throughput`: all requests at once.

use model_qwen::flags::whole;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::dataset::samples;
use super::dataset_args::{DatasetArgs, MAX_COUNT, check_range, check_total};
use super::measured::Measured;
use super::offline::{Offline, Work, bar, measured, open_json};
use super::records::Records;
use super::serve_values::NO_HUB;
use super::texts::Texts;
use crate::config::{Config, ConfigError, Flags, OF_API, refuse};

/// Starts an engine, gives it all requests at once, and prints how many it answers in a second
#[derive(Clone, Debug, Parser)]
#[command(max_term_width = 110, allow_negative_numbers = true)]
pub struct ThroughputArgs {
    /// What is asked.
    #[command(flatten)]
    pub dataset: DatasetArgs,

    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>)]
    pub n: usize,

    /// Leave answers as tokens
    #[arg(long)]
    pub disable_detokenize: bool,

    /// Write the result to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,

    /// The engine that is measured: only vllm, which is this one
    #[arg(long, value_parser = ["vllm"], hide = true)]
    pub backend: Option<String>,

    /// There is one engine, with and without this flag
    #[arg(long, hide = true)]
    pub async_engine: bool,
}

/// `bench throughput` with its engine.
#[derive(Clone, Debug)]
pub struct BenchThroughput {
    /// The engine.
    pub config: Config,
    /// What is asked.
    pub args: ThroughputArgs,
}

/// Flags of `vllm bench throughput` that cannot work here.
const REFUSED: [(&str, &str); 5] = [
    ("--dataset", "its name is --dataset-path"),
    ("--hf-max-batch-size", "only this engine is measured"),
    ("--hf-subset", NO_HUB),
    ("--hf-split", NO_HUB),
    (
        "--lora-path",
        "measure adapters with `bench serve --lora-modules`",
    ),
];

impl BenchThroughput {
    pub(super) fn from_command_line(command_line: Vec<OsString>) -> Result<Self, ConfigError> {
        refuse(&command_line, &REFUSED)?;
        let own = ThroughputArgs::command();
        let flags = Flags::read_offline("bench throughput", own, command_line, &OF_API)?;
        let args = ThroughputArgs::from_arg_matches(&flags.matches)?;
        args.dataset.check()?;
        check_range("--n", args.n, 1, MAX_COUNT)?;
        let num_answers = args.dataset.num_prompts.saturating_mul(args.n);
        check_total("--n", num_answers, MAX_COUNT, "answers to all prompts")?;
        Ok(Self {
            config: flags.config,
            args,
        })
    }
}

/// Measures.
pub(super) async fn run(bench: &BenchThroughput) -> Result<Measured> {
    let args = &bench.args;
    let file = open_json(args.output_json.as_deref())?;
    let records = Records::read(&args.dataset)?;
    let offline = Offline::start(&bench.config, !args.disable_detokenize).await?;
    let texts = Texts::Local {
        tokenizer: offline.model.tokenizer.clone(),
        chat_template: offline.model.chat_template.clone(),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(bench.config.seed.unwrap_or(0));
    let samples = samples(&args.dataset, records, &texts, true, &mut rng).await?;
    let mut work = Vec::with_capacity(samples.len());
    for sample in samples {
        work.push(Work {
            prompt: texts.encode(&sample.prompt).await?,
            output_len: sample.output_len,
        });
    }
    offline.check(&work)?;
    let num_requests = work.len();
    let prompt_tokens: usize = work.iter().map(|work| work.prompt.len()).sum();
    tracing::info!(requests = num_requests, prompt_tokens, "measuring");
    let bar = bar(num_requests * args.n, false);
    let start = Instant::now();
    let output_tokens = offline.generate(&work, args.n, &bar).await?;
    let elapsed = start.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let all_tokens = prompt_tokens + output_tokens;
    let per_second = |number: usize| number as f64 / elapsed;
    let result = json!({
        "elapsed_time": elapsed,
        "num_requests": num_requests,
        "total_num_tokens": all_tokens,
        "requests_per_second": per_second(num_requests),
        "tokens_per_second": per_second(all_tokens),
    });
    let text = format!(
        "Throughput: {:.2} requests/s, {:.2} total tokens/s, {:.2} output tokens/s\n\
         Total num prompt tokens:  {prompt_tokens}\n\
         Total num output tokens:  {output_tokens}\n",
        per_second(num_requests),
        per_second(all_tokens),
        per_second(output_tokens),
    );
    Ok(measured(text, file, &result))
}
