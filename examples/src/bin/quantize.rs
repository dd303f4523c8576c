//! A checkpoint in 4 bits, as bitsandbytes stores it. `quantize models/Qwen2.5-0.5B models/Qwen2.5-0.5B-nf4 --double-quant`

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Parser;
use indicatif::ProgressBar;
use model_qwen::quantize::{QuantizeOptions, quantize_checkpoint};

/// Quantize a checkpoint to 4 bits (NF4), as bitsandbytes does.
#[derive(Parser)]
struct Args {
    /// Folder with config.json and model.safetensors, or the shards and their index.
    input: PathBuf,
    /// Folder to create.
    output: PathBuf,
    /// Store the scales in 8 bits too: 4.13 instead of 4.5 bits per weight.
    #[arg(long)]
    double_quant: bool,
    /// Modules to leave as they are, such as down_proj or model.layers.0.
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    skip_modules: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let Args {
        input,
        output,
        double_quant,
        skip_modules,
    } = Args::parse();
    let options = QuantizeOptions {
        double_quant,
        skip_modules,
    };
    let bar = ProgressBar::no_length();
    let summary = quantize_checkpoint(&input, &output, &options, |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.num_bytes);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    eprintln!(
        "{} weights quantized, {} MB -> {} MB: {}",
        summary.num_weights,
        summary.bytes_before / 1_000_000,
        summary.bytes_after / 1_000_000,
        output.display()
    );
    Ok(())
}
