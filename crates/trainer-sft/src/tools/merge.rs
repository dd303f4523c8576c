//! `trainer-sft merge`: base model and adapter → one model folder.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use lora_4bit::peft::LoraAdapter;
use model_qwen::merge::{MergeOptions, MergeSummary};
use model_qwen::quantize::{QuantizeOptions, quantize_checkpoint};
use model_qwen::{Dtype, MergedWeights};

use super::arguments::{MergeArgs, MergedAs};
use super::base::{base_model, load_adapter};
use super::error::ToolError;
use super::evaluate::{EvalData, Measured, Which};
use super::progress::{bar, follow};
use super::staging::{Staging, check_new};

/// Merges, and says what was written.
pub(super) fn merge(args: &MergeArgs, stop: &AtomicBool) -> Result<String, ToolError> {
    if args.no_double_quant && args.quantization == MergedAs::None {
        return Err(ToolError::Flag {
            flag: "no-double-quant",
            expected: "--quantization nf4 beside it".to_owned(),
            found: "weights that are not in 4-bit blocks".to_owned(),
        });
    }
    check_new(&args.output)?;
    let adapter = load_adapter(&args.adapter)?;
    let base = base_model(args.model.as_deref(), (&args.adapter, &adapter))?;
    // What is wrong with the records is said before the long part.
    let data = match args.data.as_slice() {
        [] => None,
        files => Some(EvalData::load(&base, files, &args.device)?),
    };
    let double_quant = (args.quantization == MergedAs::Nf4).then_some(!args.no_double_quant);
    let job = Job {
        base: &base,
        output: &args.output,
        dtype: args.dtype,
        double_quant,
    };
    let merged = job.write(Some(adapter.clone()), stop)?;
    let mut text = format!(
        "Merged {} of {} tensors: {} MiB\nWritten to {}\nServe it: cargo run -p server -- --model {}\n",
        merged.num_changed,
        merged.num_tensors,
        merged.num_bytes >> 20,
        args.output.display(),
        args.output.display()
    );
    if let Some(data) = data {
        let plain = data.measure(Which::Model(&base))?;
        let adapted = data.measure(Which::Adapted(&base, &adapter))?;
        let merged = data.measure(Which::Model(&args.output))?;
        text += &losses([
            ("base", plain),
            ("base and adapter", adapted),
            ("merged", merged),
        ]);
    }
    Ok(text)
}

fn losses(of: [(&str, Measured); 3]) -> String {
    let mut text = String::from("Loss on the records of --data:\n");
    for (name, measured) in of {
        let _ = writeln!(text, "  {name:<18} {:.4}", measured.loss);
    }
    text
}

/// A model folder to write.
pub(super) struct Job<'a> {
    pub(super) base: &'a Path,
    pub(super) output: &'a Path,
    pub(super) dtype: Dtype,
    /// `Some` for NF4: whether the scales are quantized, too.
    pub(super) double_quant: Option<bool>,
}

impl Job<'_> {
    /// Writes the folder, whole or not at all.
    pub(super) fn write(
        &self,
        adapter: Option<LoraAdapter>,
        stop: &AtomicBool,
    ) -> Result<MergeSummary, ToolError> {
        let weights = MergedWeights::open(self.base, adapter)?;
        let options = MergeOptions { dtype: self.dtype };
        let dense = weights.num_bytes(&options)?;
        // The tokenizer and the small files, and with NF4 the result beside the dense weights.
        let needed = dense + (16 << 20) + self.double_quant.map_or(0, |_| dense);
        let staging = Staging::folder(self.output, needed)?;
        let bar = bar("merging");
        let summary = weights.write(staging.path(), &options, follow(&bar, stop))?;
        bar.finish_and_clear();
        match self.double_quant {
            None => staging.publish()?,
            Some(double_quant) => quantize(staging.path(), self.output, double_quant)?,
        }
        Ok(summary)
    }
}

/// Quantizes the dense folder, which goes away afterwards.
fn quantize(dense: &Path, output: &Path, double_quant: bool) -> Result<(), ToolError> {
    let options = QuantizeOptions {
        double_quant,
        skip_modules: Vec::new(),
    };
    let bar = bar("quantizing");
    quantize_checkpoint(dense, output, &options, |progress| {
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.num_bytes);
    })?;
    bar.finish_and_clear();
    Ok(())
}
