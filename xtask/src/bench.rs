//! Benchmarks beside peers: this project and the named peers in one run, on one machine.

use anyhow::{Context, Result, bail};

use crate::run;

pub(crate) mod gpu;
mod table;

const USAGE: &str = "bench cpu --model DIR [--lora DIR] [--threads N] [--rounds N] [--llama-cpp FILE.gguf ...] \
                     [--hf PYTHON] [--peft PYTHON]";

/// What to measure.
struct Options<'a> {
    model: &'a str,
    threads: &'a str,
    rounds: usize,
    /// Folder of a LoRA adapter of the model.
    lora: Option<&'a str>,
    /// A Python with torch and transformers.
    hf: Option<&'a str>,
    /// A Python with torch, transformers and peft.
    peft: Option<&'a str>,
    gguf: Vec<&'a str>,
}

impl<'a> Options<'a> {
    fn parse(flags: &[&'a str]) -> Result<Self> {
        let (mut model, mut lora, mut hf, mut peft) = (None, None, None, None);
        let (mut threads, mut rounds, mut gguf) = ("2", 1, Vec::new());
        for pair in flags.chunks(2) {
            let [flag, value] = *pair else {
                bail!("bench cpu: `{}` needs a value\nusage: {USAGE}", pair[0])
            };
            match flag {
                "--model" => model = Some(value),
                "--lora" => lora = Some(value),
                "--threads" => threads = value,
                "--rounds" => {
                    let context = || format!("--rounds: expected a number, found `{value}`");
                    rounds = value.parse().with_context(context)?;
                }
                "--hf" => hf = Some(value),
                "--peft" => peft = Some(value),
                "--llama-cpp" => gguf.push(value),
                other => bail!("bench cpu: unknown flag `{other}`\nusage: {USAGE}"),
            }
        }
        Ok(Self {
            model: model.with_context(|| format!("--model is missing\nusage: {USAGE}"))?,
            threads,
            rounds,
            lora,
            hf,
            peft,
            gguf,
        })
    }
}

/// `bench cpu`: one stream in process, the server over HTTP, and training, each followed by its peers.
///
/// Peers run between our own programs, in every round, because a shared machine changes its speed within minutes.
pub(crate) fn cpu(flags: &[&str]) -> Result<()> {
    let options = Options::parse(flags)?;
    run("cargo", &["build", "--release", "--workspace", "--bins"])?;
    for round in 1..=options.rounds {
        println!("\n== round {round} of {}: one stream", options.rounds);
        one_stream(&options)?;
        println!("\n== server, over HTTP");
        server(&options)?;
        println!("\n== LoRA training, 1 x 512 tokens");
        training(&options)?;
    }
    println!("\n== where the time goes");
    ours("bench_cpu", &options, &["--runs", "2", "--profile"])
}

fn one_stream(options: &Options<'_>) -> Result<()> {
    // The format of each GGUF file is in its name: bf16 beside bf16, 4-bit beside 4-bit.
    let is_bf16 = |file: &&&str| file.to_lowercase().contains("bf16");
    ours("bench_cpu", options, &[])?;
    options
        .gguf
        .iter()
        .filter(is_bf16)
        .try_for_each(|file| llama_cpp(file, options))?;
    ours("bench_cpu", options, &["--quantization", "nf4"])?;
    options
        .gguf
        .iter()
        .filter(|file| !is_bf16(file))
        .try_for_each(|file| llama_cpp(file, options))?;
    ours("bench_cpu", options, &["--compute-dtype", "bf16"])?;
    match options.hf {
        Some(python) => run(
            python,
            &["xtask/bench/hf_cpu.py", options.model, options.threads],
        ),
        None => Ok(()),
    }
}

fn server(options: &Options<'_>) -> Result<()> {
    let server = program("server")?;
    let mut arguments = vec!["--server", &server, "--model", options.model];
    if let Some(lora) = options.lora {
        arguments.extend(["--lora", lora]);
    }
    run(&program("bench_serve")?, &arguments)?;
    arguments.extend(["--quantization", "nf4"]);
    run(&program("bench_serve")?, &arguments)
}

fn training(options: &Options<'_>) -> Result<()> {
    ours("bench_train", options, &["--steps", "4"])?;
    match options.peft {
        Some(python) => run(
            python,
            &["xtask/bench/peft_cpu.py", options.model, options.threads],
        ),
        None => Ok(()),
    }
}

/// One of the example programs.
fn ours(name: &str, options: &Options<'_>, arguments: &[&str]) -> Result<()> {
    let common = ["--model", options.model, "--threads", options.threads];
    run(&program(name)?, &[&common[..], arguments].concat())
}

/// llama.cpp, after `npm i --ignore-scripts node-llama-cpp@3.22.1` in a folder where node looks for packages.
fn llama_cpp(file: &str, options: &Options<'_>) -> Result<()> {
    run(
        "node",
        &["xtask/bench/llama_cpp.mjs", file, options.threads],
    )
}

/// Path of a program of this workspace.
fn program(name: &str) -> Result<String> {
    let target = crate::target_directory()?;
    Ok(format!(
        "{target}/release/{name}{}",
        std::env::consts::EXE_SUFFIX
    ))
}
