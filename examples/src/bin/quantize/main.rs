//! Quantizes a Hugging Face checkpoint to 4 bits (NF4), in the layout that bitsandbytes and transformers load.
//!
//! The weights of the linear layers inside the decoder are quantized; embeddings, norms, biases and the output head
//! stay as they are. Tensors are read one at a time, so that memory holds one quantized shard and not the checkpoint.
//!
//! ```text
//! cargo run --release -p examples --bin quantize -- models/Qwen2.5-0.5B models/Qwen2.5-0.5B-nf4 --double-quant
//! ```

mod checkpoint;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use lora_4bit::bnb::{OwnedTensor, nf4_tensors, quantize_tensor};
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

use checkpoint::{INDEX, SINGLE, Shard, copy_other_files, read_json, shard_names, write_json};

const LINEARS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];
const CONFIG: &str = "config.json";

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

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        !args.output.exists(),
        "`{}` exists already: choose another folder or remove it",
        args.output.display()
    );
    let name = args
        .output
        .file_name()
        .context("the output path has no last component")?;
    let staging = args.output.with_file_name(format!(
        ".{}.{}.tmp",
        name.to_string_lossy(),
        std::process::id()
    ));
    fs::create_dir_all(&staging)
        .with_context(|| format!("cannot create `{}`", staging.display()))?;
    let done = quantize_checkpoint(&args, &staging).and_then(|()| {
        let cannot = || format!("cannot create `{}`", args.output.display());
        fs::rename(&staging, &args.output).with_context(cannot)
    });
    if done.is_err() {
        let _ = fs::remove_dir_all(&staging);
    }
    done
}

/// Writes the quantized checkpoint into the folder `output`.
fn quantize_checkpoint(args: &Args, output: &Path) -> Result<()> {
    let start = Instant::now();
    let mut config = read_json(&args.input.join(CONFIG))?;
    ensure!(
        config.get("quantization_config").is_none_or(Value::is_null),
        "`{}` is quantized already: its {CONFIG} has a quantization_config",
        args.input.display()
    );
    let shards = shard_names(&args.input)?;
    let mut readers = Vec::with_capacity(shards.len());
    for shard in &shards {
        readers.push(Shard::open(&args.input.join(shard))?);
    }
    let num_bytes = readers
        .iter()
        .map(|reader| reader.metadata.data_len() as u64)
        .sum();
    let progress = ProgressBar::new(num_bytes).with_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}",
    )?);

    let mut weight_map = BTreeMap::new();
    let mut stats = Stats::default();
    for (shard, reader) in shards.iter().zip(&mut readers) {
        let tensors = quantize_shard(reader, args, &progress, &mut stats)?;
        for (name, tensor) in &tensors {
            stats.total_size += tensor.data.len();
            weight_map.insert(name.clone(), shard.clone());
        }
        let path = output.join(shard);
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        serialize_to_file(tensors, Some(metadata), &path)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        // The safetensors crate writes files that only their owner may read.
        fs::set_permissions(&path, reader.file.metadata()?.permissions())?;
    }
    progress.finish_and_clear();
    ensure!(
        stats.num_weights > 0,
        "`{}` holds no weight to quantize: none is named {} after skipping {:?}",
        args.input.display(),
        LINEARS.join(", "),
        args.skip_modules
    );

    config.insert("quantization_config".to_owned(), quantization_config(args));
    write_json(&output.join(CONFIG), &Value::Object(config))?;
    if shards.iter().any(|shard| shard != SINGLE) {
        let index = json!({"metadata": {"total_size": stats.total_size}, "weight_map": weight_map});
        write_json(&output.join(INDEX), &index)?;
    }
    copy_other_files(&args.input, output)?;
    eprintln!(
        "{} weights quantized, {} MB -> {} MB, in {:.1} s: {}",
        stats.num_weights,
        num_bytes / 1_000_000,
        stats.total_size / 1_000_000,
        start.elapsed().as_secs_f64(),
        args.output.display()
    );
    Ok(())
}

#[derive(Default)]
struct Stats {
    num_weights: usize,
    total_size: usize,
}

fn quantize_shard(
    shard: &mut Shard,
    args: &Args,
    progress: &ProgressBar,
    stats: &mut Stats,
) -> Result<Vec<(String, OwnedTensor)>> {
    let mut tensors = Vec::new();
    for name in shard.metadata.offset_keys() {
        let (info, data) = shard.read(&name)?;
        let num_bytes = data.len() as u64;
        if is_linear(&name, &args.skip_modules) {
            progress.set_message(name.clone());
            let view = TensorView::new(info.dtype, info.shape, &data)?;
            let quantized = quantize_tensor(&name, &view, args.double_quant)
                .with_context(|| format!("cannot quantize `{}`", shard.path.display()))?;
            tensors.extend(nf4_tensors(&name, &quantized));
            stats.num_weights += 1;
        } else {
            let tensor = OwnedTensor {
                dtype: info.dtype,
                shape: info.shape,
                data,
            };
            tensors.push((name, tensor));
        }
        progress.inc(num_bytes);
    }
    Ok(tensors)
}

/// Whether `name` is the weight of a linear layer that no entry of `skip` names.
fn is_linear(name: &str, skip: &[String]) -> bool {
    let Some(module) = name.strip_suffix(".weight") else {
        return false;
    };
    let (_, last) = module.rsplit_once('.').unwrap_or(("", module));
    let skipped = |skip: &String| format!(".{module}.").contains(&format!(".{skip}."));
    LINEARS.contains(&last) && !skip.iter().any(skipped)
}

/// What transformers reads to load the weights with bitsandbytes.
fn quantization_config(args: &Args) -> Value {
    let skip = if args.skip_modules.is_empty() {
        Value::Null
    } else {
        let mut skip = args.skip_modules.clone();
        skip.push("lm_head".to_owned());
        json!(skip)
    };
    json!({
        "_load_in_4bit": true,
        "_load_in_8bit": false,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": args.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skip,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linears_of_the_decoder_are_chosen() {
        let skip = ["down_proj".to_owned(), "layers.3".to_owned()];
        for (name, expected) in [
            ("model.layers.0.self_attn.q_proj.weight", true),
            ("model.layers.30.mlp.up_proj.weight", true),
            ("model.layers.3.mlp.up_proj.weight", false),
            ("model.layers.0.mlp.down_proj.weight", false),
            ("model.layers.0.self_attn.q_proj.bias", false),
            ("model.layers.0.input_layernorm.weight", false),
            ("model.embed_tokens.weight", false),
            ("lm_head.weight", false),
        ] {
            assert_eq!(is_linear(name, &skip), expected, "{name}");
        }
    }
}
