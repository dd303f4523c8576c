//! `trainer-sft merge`: base model and adapter → one model folder.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::DType;
use lora_4bit::peft::LoraAdapter;
use model_qwen::merge::MergeSummary;
use model_qwen::quantize::{QuantizeOptions, quantize_checkpoint};
use model_qwen::{Dtype, MergedWeights, Quantization};

use super::arguments::MergeArgs;
use super::base::{BaseForm, base_model, load_adapter};
use super::error::ToolError;
use super::evaluate::{EvalData, Which};
use super::output::{End, ToolOutput};
use super::progress::{bar, follow, follow_merge};
use super::staging::{Staging, check_new};
use crate::commands::{Commands, quoted};

/// The folder of the NF4 weights while they are written, inside that of the dense ones.
const QUANTIZED: &str = "nf4";

/// Merges, and says what was written.
pub(super) fn merge(
    args: &MergeArgs,
    stop: &AtomicBool,
    commands: Commands,
) -> Result<ToolOutput, ToolError> {
    if args.no_double_quant && args.quantization == Quantization::None {
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
        files => {
            let form = BaseForm::of_run(&args.adapter)?;
            let reading = (&args.reading, args.adapter.as_path());
            Some((EvalData::load(&base, (files, &args.device), reading)?, form))
        }
    };
    let double_quant = (args.quantization == Quantization::Nf4).then_some(!args.no_double_quant);
    let job = Job {
        base: &base,
        output: &args.output,
        dtype: args.dtype,
        double_quant,
    };
    let written = job.write(Some(adapter.clone()), stop)?;
    let merged = written.summary;
    let mut text = format!(
        "Merged {} of {} tensors: {} MiB\n{}",
        merged.num_changed,
        merged.num_tensors,
        merged.num_bytes >> 20,
        what_next(&args.output, commands)
    );
    let mut end = End::Well;
    if let Some((data, form)) = data {
        text += "Loss on the records of --data:\n";
        let base_name = match form.quantization {
            Quantization::None => "base",
            Quantization::Nf4 => "base in NF4",
        };
        let dense_name = format!("merged, {:?}", written.dtype).to_lowercase();
        let dense = (written.dense.as_ref()).map_or(args.output.as_path(), Staging::path);
        // A folder that is in 4 bits is loaded as it is.
        let merged_form = BaseForm {
            quantization: Quantization::Nf4,
            double_quant: !args.no_double_quant,
        };
        for (name, which, form) in [
            (base_name.to_owned(), Which::Model(&base), form),
            (
                format!("{base_name}, with the adapter"),
                Which::Adapted(&base, &adapter),
                form,
            ),
            (dense_name, Which::Model(dense), BaseForm::STORED),
            (
                "merged, NF4".to_owned(),
                Which::Model(&args.output),
                merged_form,
            ),
        ] {
            let Some(measured) = data.measure_until((which, form), stop)? else {
                text += "  (stopped)\n";
                end = End::Stopped;
                break;
            };
            let _ = writeln!(text, "  {name:<29} {:.4}", measured.loss);
        }
    }
    Ok(ToolOutput { text, end })
}

/// Where a model folder was written, and how to serve it. Without a tokenizer it cannot be served, and that is said.
pub(super) fn what_next(output: &Path, commands: Commands) -> String {
    let has = |name: &str| output.join(name).is_file();
    let folder = output.display();
    let next = match has("tokenizer.json") || (has("vocab.json") && has("merges.txt")) {
        true => {
            let folder = quoted(&folder.to_string());
            format!("Serve it: {} --model {folder}", commands.serve)
        }
        false => {
            "It has no tokenizer, because the base model has none: before it can be served, copy \
                  tokenizer.json (or vocab.json and merges.txt) into it"
                .to_owned()
        }
    };
    format!("Written to {folder}\n{next}\n")
}

/// A model folder to write.
pub(super) struct Job<'a> {
    pub(super) base: &'a Path,
    pub(super) output: &'a Path,
    pub(super) dtype: Dtype,
    /// `Some` for NF4: whether the scales are quantized, too.
    pub(super) double_quant: Option<bool>,
}

/// A model folder that was written.
pub(super) struct Written {
    pub(super) summary: MergeSummary,
    /// Dtype of the weights before they went into 4 bits.
    dtype: DType,
    /// The folder that has them, where the result is in 4 bits. It is removed with this.
    dense: Option<Staging>,
}

impl Job<'_> {
    /// Writes the folder, whole or not at all.
    pub(super) fn write(
        &self,
        adapter: Option<LoraAdapter>,
        stop: &AtomicBool,
    ) -> Result<Written, ToolError> {
        let weights = MergedWeights::open(self.base, adapter)?;
        let dense = weights.num_bytes(self.dtype)?;
        // The tokenizer and the small files, and with NF4 the result beside the dense weights.
        let needed = dense + (16 << 20) + self.double_quant.map_or(0, |_| dense);
        let staging = Staging::folder(self.output, needed)?;
        let bar = bar("merging");
        let mut summary = weights.write(staging.path(), self.dtype, follow_merge(&bar, stop))?;
        bar.finish_and_clear();
        let dense = match self.double_quant {
            None => {
                staging.publish()?;
                None
            }
            Some(double_quant) => {
                let folder = staging.path().join(QUANTIZED);
                summary.num_bytes = quantize(staging.path(), &folder, double_quant, stop)?;
                staging.publish_inner(QUANTIZED)?;
                Some(staging)
            }
        };
        Ok(Written {
            summary,
            dtype: self.dtype.or(weights.config().dtype),
            dense,
        })
    }
}

/// Quantizes the dense folder. Returns the bytes of the tensors.
fn quantize(
    dense: &Path,
    output: &Path,
    double_quant: bool,
    stop: &AtomicBool,
) -> Result<u64, ToolError> {
    let options = QuantizeOptions {
        double_quant,
        skip_modules: Vec::new(),
    };
    let bar = bar("quantizing");
    let mut follow = follow(&bar, stop);
    let summary = quantize_checkpoint(dense, output, &options, |progress| {
        follow(progress.num_bytes, progress.total_bytes)
    })?;
    bar.finish_and_clear();
    Ok(summary.bytes_after)
}
