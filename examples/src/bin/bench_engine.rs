//! Output speed of the engine in this process, without HTTP:
//! `bench_engine --sequences 32 --prompt 128 --generate 256 -- --model DIR --device cuda`.
//!
//! What follows `--` are the server's flags. Prompts are random token ids, different in every run, so that the prefix cache
//! finds nothing.
//!
//! Speculative decoding pays where an answer repeats its prompt: `--edit FILE` asks for a file with one more line. Run it with
//! `--speculative-config off` after the `--`, and without.

#![allow(clippy::print_stdout)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use model_qwen::{RenderOptions, SamplingParams};
use server::config::Config;
use server::engine::{
    Engine, EngineHandle, EngineOutput, FinishReason, GenerateRequest, ModelInfo,
};

/// Measures the engine in this process.
#[derive(Debug, Parser)]
struct Args {
    /// Sequences that run together; several numbers are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    sequences: Vec<usize>,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Tokens that each sequence generates.
    #[arg(long, default_value_t = 256)]
    generate: usize,
    /// Lengths of prompt and output are drawn from 100 to 1,024 instead.
    #[arg(long)]
    random_lengths: bool,
    /// Also measures the time to the first token of a prompt of this length.
    #[arg(long)]
    first_token_of: Option<usize>,
    /// Samples with temperature 0.7, top-k 20 and top-p 0.8 instead of taking the most likely token.
    #[arg(long)]
    sampled: bool,
    /// Name of a loaded adapter; several are spread over the sequences.
    #[arg(long)]
    adapter: Vec<String>,
    /// All prompts ask for this text file with a line added in front, so that most of the answer is in the prompt.
    #[arg(long, value_name = "FILE")]
    edit: Option<PathBuf>,
    /// Repetitions after one that warms up.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Flags of the server.
    #[arg(last = true)]
    server: Vec<OsString>,
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let start = Instant::now();
    let flags = std::iter::once(OsString::from("server")).chain(args.server.iter().cloned());
    let config = Config::from_command_line(flags)?;
    let (engine, info) = Engine::start(&config)?;
    println!("{}", info.memory_table);
    println!("loaded after {:.2} s", start.elapsed().as_secs_f64());
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut rng = Rng(1);
    let (first, _) = runtime.block_on(run(&engine, requests(&args, &mut rng, 1, 16, 1)))?;
    println!(
        "first token after {:.2} s; it took {first:.2?}",
        start.elapsed().as_secs_f64()
    );
    let edit = args.edit.as_ref().map(|file| edit_prompt(&info, file));
    let edit = edit.transpose()?;
    for &num in &args.sequences {
        let mut rates = Vec::new();
        for i in 0..=args.runs {
            let mut requests = requests(&args, &mut rng, num, args.prompt, args.generate);
            if let Some(prompt) = &edit {
                let set = |request: &mut GenerateRequest| request.prompt.clone_from(prompt);
                requests.iter_mut().for_each(set);
            }
            let expected: usize = requests.iter().map(|request| request.max_tokens).sum();
            let (elapsed, tokens) = runtime.block_on(run(&engine, requests))?;
            if tokens != expected {
                bail!("{tokens} tokens instead of {expected}");
            }
            // The first run warms up.
            if i > 0 {
                rates.push(tokens as f64 / elapsed.as_secs_f64());
            }
        }
        rates.sort_by(f64::total_cmp);
        println!(
            "{num} sequences: median {:.0} output tok/s of {rates:.0?}",
            rates[rates.len() / 2]
        );
    }
    if let Some(speculation) = engine.stats().speculation {
        println!("{speculation:?}");
    }
    if let Some(len) = args.first_token_of {
        for _ in 0..=args.runs {
            let (elapsed, _) =
                runtime.block_on(run(&engine, requests(&args, &mut rng, 1, len, 1)))?;
            println!(
                "first token of {len}: {:.1} ms",
                elapsed.as_secs_f64() * 1e3
            );
        }
    }
    Ok(())
}

/// The chat that asks for a file with a line added in front.
fn edit_prompt(info: &ModelInfo, file: &Path) -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let template = info.chat_template.as_ref().context("no chat template")?;
    let content = format!(
        "Add a line with your name in front of this file. Answer with the whole file and nothing else.\n```\n{text}\n```"
    );
    let messages = serde_json::json!([{ "role": "user", "content": content }]);
    let options = RenderOptions {
        add_generation_prompt: true,
        ..RenderOptions::default()
    };
    let messages = messages.as_array().context("a list")?;
    let text = template.render(messages, &options)?;
    Ok(info.tokenizer.encode(&text, false)?)
}

fn requests(
    args: &Args,
    rng: &mut Rng,
    num: usize,
    prompt: usize,
    generate: usize,
) -> Vec<GenerateRequest> {
    let random = args.random_lengths && generate > 1;
    (0..num)
        .map(|i| {
            let mut len = |fixed| if random { 100 + rng.below(925) } else { fixed };
            let (prompt, max_tokens) = (len(prompt), len(generate));
            GenerateRequest {
                // Ids that any vocabulary has.
                prompt: (0..prompt).map(|_| rng.below(1000) as u32).collect(),
                sampling: match args.sampled {
                    true => SamplingParams {
                        temperature: 0.7,
                        top_k: 20,
                        top_p: 0.8,
                        ..SamplingParams::default()
                    },
                    false => SamplingParams {
                        temperature: 0.0,
                        ..SamplingParams::default()
                    },
                },
                max_tokens,
                min_tokens: max_tokens,
                constraint: None,
                stop_token_ids: Vec::new(),
                adapter: match args.adapter.len() {
                    0 => None,
                    len => Some(args.adapter[i % len].clone()),
                },
                cache_salt: None,
                prompt_logprobs: None,
            }
        })
        .collect()
}

/// Time until the last sequence is finished, and the number of tokens.
async fn run(engine: &EngineHandle, requests: Vec<GenerateRequest>) -> Result<(Duration, usize)> {
    let start = Instant::now();
    let mut streams = Vec::new();
    for request in requests {
        streams.push(engine.submit(request)?);
    }
    let mut tokens = 0;
    for mut stream in streams {
        loop {
            match stream.next().await {
                Some(EngineOutput::Token { .. }) => tokens += 1,
                Some(EngineOutput::Finished {
                    reason: FinishReason::Length,
                }) => break,
                Some(EngineOutput::PromptLogprobs(_)) => {}
                other => bail!("unexpected output: {other:?}"),
            }
        }
    }
    Ok((start.elapsed(), tokens))
}
