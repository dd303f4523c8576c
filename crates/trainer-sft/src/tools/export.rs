//! `trainer-sft export`: a model or an adapter in another format.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::DType;
use clap::ValueEnum as _;
use lora_4bit::peft::{LoraAdapter, LoraMatrices};
use model_qwen::gguf::{GgufPlan, TensorType, write_adapter, write_model};
use model_qwen::{Dtype, MergedWeights};

use super::arguments::{ExportArgs, ExportFormat};
use super::base::model_and_adapter;
use super::error::{ToolError, io_error};
use super::merge::{Job, what_next};
use super::modelfile::modelfile;
use super::progress::{bar, follow_merge};
use super::staging::{Staging, check_new};
use crate::commands::{Commands, quoted};

/// Names in the folder for Ollama.
const MODEL_FILE: &str = "model.gguf";
const ADAPTER_FILE: &str = "adapter.gguf";
const MODELFILE: &str = "Modelfile";

/// Exports, and says what was written.
pub(super) fn export(
    args: &ExportArgs,
    stop: &AtomicBool,
    commands: Commands,
) -> Result<String, ToolError> {
    check_new(&args.output)?;
    if args.format == ExportFormat::GgufLora && args.adapter.is_none() {
        return Err(no_adapter());
    }
    let is_named = matches!(args.format, ExportFormat::Gguf | ExportFormat::Ollama);
    if let Some(name) = args
        .name
        .as_ref()
        .filter(|name| !is_named || name.trim().is_empty())
    {
        return Err(ToolError::Flag {
            flag: "name",
            expected: "a name, with --format gguf or ollama".to_owned(),
            found: match args.format.to_possible_value() {
                Some(format) => format!("{name:?} with --format {}", format.get_name()),
                None => format!("{name:?}"),
            },
        });
    }
    let (model, adapter) = model_and_adapter(args.model.as_deref(), args.adapter.as_deref())?;
    let base = adapter.as_ref();
    let base = base.and_then(|adapter| adapter.config.base_model_name_or_path.clone());
    let source = Source {
        args,
        commands,
        model: &model,
        id: args.model.clone().or(base),
    };
    match (args.format, adapter) {
        (ExportFormat::Hf, adapter) => source.hf(adapter, stop),
        (ExportFormat::Gguf, adapter) => source.gguf(adapter, stop),
        (ExportFormat::Ollama, adapter) => source.ollama(adapter, stop),
        (ExportFormat::GgufLora, Some(adapter)) => source.gguf_lora(&adapter, stop),
        (ExportFormat::GgufLora, None) => Err(no_adapter()),
    }
}

/// What is exported.
struct Source<'a> {
    args: &'a ExportArgs,
    commands: Commands,
    /// Folder of the model.
    model: &'a Path,
    /// What it is called: a folder or a Hugging Face id. `None` of the bundled model.
    id: Option<String>,
}

fn no_adapter() -> ToolError {
    ToolError::Flag {
        flag: "adapter",
        expected: "an adapter folder, for --format gguf-lora".to_owned(),
        found: "none".to_owned(),
    }
}

impl Source<'_> {
    fn hf(&self, adapter: Option<LoraAdapter>, stop: &AtomicBool) -> Result<String, ToolError> {
        let dtype = match self.args.kind {
            None => Dtype::Auto,
            Some(TensorType::F32) => Dtype::F32,
            Some(TensorType::F16) => Dtype::F16,
            Some(TensorType::Bf16) => Dtype::Bf16,
            Some(kind @ (TensorType::Q8_0 | TensorType::Q4_0)) => {
                return Err(ToolError::Flag {
                    flag: "type",
                    expected: "bf16, f16 or f32 with --format hf (for NF4: command `merge --quantization nf4`)".to_owned(),
                    found: kind.name().to_lowercase(),
                });
            }
        };
        let job = Job {
            base: self.model,
            output: &self.args.output,
            dtype,
            double_quant: None,
        };
        let written = job.write(adapter, stop)?.summary;
        Ok(format!(
            "{} tensors, {} MiB\n{}",
            written.num_tensors,
            written.num_bytes >> 20,
            what_next(&self.args.output, self.commands)
        ))
    }

    fn gguf(&self, adapter: Option<LoraAdapter>, stop: &AtomicBool) -> Result<String, ToolError> {
        let weights = MergedWeights::open(self.model, adapter)?;
        let plan = self.plan(&weights)?;
        let staging = Staging::file(&self.args.output, plan.num_bytes() + (32 << 20))?;
        self.write(&weights, &plan, staging.path(), stop)?;
        staging.publish()?;
        Ok(format!(
            "{}\nWritten to {}\n",
            told(&plan),
            self.args.output.display()
        ))
    }

    fn gguf_lora(&self, adapter: &LoraAdapter, stop: &AtomicBool) -> Result<String, ToolError> {
        let kind = self.args.kind.unwrap_or(TensorType::F32);
        if kind.is_quantized() {
            return Err(ToolError::Flag {
                flag: "type",
                expected: "f32, f16 or bf16 with --format gguf-lora".to_owned(),
                found: kind.name().to_lowercase(),
            });
        }
        let weights = MergedWeights::open(self.model, None)?;
        weights.check_adapter(adapter)?;
        let staging = Staging::file(&self.args.output, num_bytes(adapter))?;
        let model_type = &weights.config().model_type;
        write_adapter(adapter, model_type, kind, staging.path())?;
        if stop.load(Ordering::Relaxed) {
            return Err(ToolError::Stopped);
        }
        staging.publish()?;
        Ok(format!(
            "{} tensors in {}\nWritten to {}\n",
            2 * adapter.modules.len(),
            kind.name(),
            self.args.output.display()
        ))
    }

    fn ollama(&self, adapter: Option<LoraAdapter>, stop: &AtomicBool) -> Result<String, ToolError> {
        // What a file for adapters cannot hold becomes a part of the model.
        let (merged, adapter) = match adapter {
            Some(adapter) if adapter.config.use_dora || !adapter.saved.is_empty() => {
                (Some(adapter), None)
            }
            adapter => (None, adapter),
        };
        let is_merged = match merged.is_some() {
            true => {
                "The adapter is merged into the model: a file of its own cannot hold DoRA or whole weights\n"
            }
            false => "",
        };
        let weights = MergedWeights::open(self.model, merged)?;
        if let Some(adapter) = &adapter {
            weights.check_adapter(adapter)?;
        }
        let plan = self.plan(&weights)?;
        let needed = plan.num_bytes() + (32 << 20) + adapter.as_ref().map_or(0, num_bytes);
        let staging = Staging::folder(&self.args.output, needed)?;
        let folder = staging.path();
        let adapter_file = adapter.is_some().then_some(ADAPTER_FILE);
        let text = modelfile(self.model, MODEL_FILE, adapter_file)?;
        let path = folder.join(MODELFILE);
        fs::write(&path, text).map_err(io_error(&path))?;
        if let Some(adapter) = &adapter {
            let path = folder.join(ADAPTER_FILE);
            let model_type = &weights.config().model_type;
            write_adapter(adapter, model_type, TensorType::F32, &path)?;
        }
        self.write(&weights, &plan, &folder.join(MODEL_FILE), stop)?;
        staging.publish()?;
        let output = &self.args.output;
        Ok(format!(
            "{}\n{is_merged}Written to {}\nRun it: ollama create NAME -f {} && ollama run NAME\n",
            told(&plan),
            output.display(),
            quoted(&output.join(MODELFILE).display().to_string())
        ))
    }

    fn plan(&self, weights: &MergedWeights) -> Result<GgufPlan, ToolError> {
        let kind = self.args.kind.unwrap_or(match weights.config().dtype {
            DType::BF16 => TensorType::Bf16,
            DType::F16 => TensorType::F16,
            _ => TensorType::F32,
        });
        let plan = GgufPlan::new(weights, &self.name(), kind)?;
        for note in plan.notes() {
            tracing::warn!("{note}");
        }
        Ok(plan)
    }

    fn write(
        &self,
        weights: &MergedWeights,
        plan: &GgufPlan,
        path: &Path,
        stop: &AtomicBool,
    ) -> Result<(), ToolError> {
        let bar = bar("writing");
        write_model(weights, plan, path, follow_merge(&bar, stop))?;
        bar.finish_and_clear();
        Ok(())
    }

    /// The name that programs show.
    fn name(&self) -> String {
        if let Some(name) = &self.args.name {
            return name.clone();
        }
        model_name(self.id.as_deref(), self.model)
    }
}

/// The name of a model that is called `id` and lies in `folder`.
fn model_name(id: Option<&str>, folder: &Path) -> String {
    let path = match id.map(Path::new) {
        // The folder of a Hugging Face id is named after a commit.
        Some(id) if !id.is_dir() => return id.display().to_string(),
        Some(named) => named,
        None => folder,
    };
    let own = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = own.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Bytes of an adapter in f32, with room for the names.
fn num_bytes(adapter: &LoraAdapter) -> u64 {
    let values = adapter.modules.values();
    let values: usize = values.map(LoraMatrices::len).sum();
    4 * values as u64 + (1 << 20)
}

fn told(plan: &GgufPlan) -> String {
    let (num_tensors, num_bytes) = (plan.num_tensors(), plan.num_bytes());
    format!("{num_tensors} tensors, {} MiB", num_bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_its_id_or_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let stored = folder.path().join("a1b2c3");
        fs::create_dir(&stored).unwrap();
        let id = Some("Qwen/Qwen2.5-0.5B");
        assert_eq!(model_name(id, &stored), "Qwen/Qwen2.5-0.5B");
        let named = folder.path().join("a1b2c3/../a1b2c3/");
        assert_eq!(model_name(named.to_str(), &stored), "a1b2c3");
        assert_eq!(model_name(None, &stored), "a1b2c3");
    }
}
