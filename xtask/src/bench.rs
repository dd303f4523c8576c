//! Benchmarks beside peers: this project and the named peers in one run, on one machine.

use anyhow::{Context, Result, bail};

use crate::run;

/// `bench cpu`: prefill of 512 tokens and greedy decode, ours, then each named peer.
pub(crate) fn cpu(flags: &[&str]) -> Result<()> {
    let (mut model, mut threads, mut hf, mut gguf) = (None, "2", None, None);
    for pair in flags.chunks(2) {
        let [flag, value] = pair else {
            bail!("bench cpu: `{}` needs a value", pair[0])
        };
        match *flag {
            "--model" => model = Some(*value),
            "--threads" => threads = *value,
            "--hf" => hf = Some(*value),
            "--llama-cpp" => gguf = Some(*value),
            other => bail!("bench cpu: unknown flag `{other}`"),
        }
    }
    let model = model.context("bench cpu: --model DIR is needed")?;
    let ours = [
        "run",
        "--release",
        "-p",
        "examples",
        "--bin",
        "bench_cpu",
        "--",
        "--model",
        model,
        "--threads",
        threads,
    ];
    run("cargo", &ours)?;
    run("cargo", &[&ours[..], &["--quantization", "nf4"]].concat())?;
    if let Some(python) = hf {
        run(python, &["xtask/bench/hf_cpu.py", model, threads])?;
    }
    if let Some(gguf) = gguf {
        // npm i --ignore-scripts node-llama-cpp@3.22.1, in a folder that node finds.
        run("node", &["xtask/bench/llama_cpp.mjs", gguf, threads])?;
    }
    Ok(())
}
