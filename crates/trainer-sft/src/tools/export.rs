//! `trainer-sft export`: a model or an adapter in another format.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::{DType, Device};
use clap::ValueEnum as _;
use lora_4bit::peft::LoraAdapter;
use model_qwen::gguf::{GgufPlan, TensorType, write_adapter, write_model};
use model_qwen::{Dtype, LoadOptions, MergedWeights, QwenConfig, QwenModel};

use super::arguments::{ExportArgs, ExportFormat};
use super::base::model_and_adapter;
use super::error::{ToolError, io_error};
use super::merge::Job;
use super::modelfile::modelfile;
use super::progress::{bar, follow};
use super::staging::{Staging, check_new};

/// Names in the folder for Ollama.
const MODEL_FILE: &str = "model.gguf";
const ADAPTER_FILE: &str = "adapter.gguf";
const MODELFILE: &str = "Modelfile";

/// Exports, and says what was written.
pub(super) fn export(args: &ExportArgs, stop: &AtomicBool) -> Result<String, ToolError> {
    check_new(&args.output)?;
    if args.format == ExportFormat::GgufLora && args.adapter.is_none() {
        return Err(ToolError::Flag {
            flag: "adapter",
            expected: "an adapter folder, for --format gguf-lora".to_owned(),
            found: "none".to_owned(),
        });
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
    let source = Source {
        args,
        model: &model,
    };
    match args.format {
        ExportFormat::Hf => source.hf(adapter, stop),
        ExportFormat::Gguf => source.gguf(adapter, stop),
        ExportFormat::GgufLora => source.gguf_lora(adapter),
        ExportFormat::Ollama => source.ollama(adapter, stop),
    }
}

/// What is exported.
struct Source<'a> {
    args: &'a ExportArgs,
    /// Folder of the model.
    model: &'a Path,
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
                    expected: "bf16, f16 or f32 with --format hf (for NF4: `trainer-sft merge --quantization nf4`)".to_owned(),
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
        let written = job.write(adapter, stop)?;
        let output = self.args.output.display();
        Ok(format!(
            "{} tensors, {} MiB\nWritten to {output}\nServe it: cargo run -p server -- --model {output}\n",
            written.num_tensors,
            written.num_bytes >> 20
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

    fn gguf_lora(&self, adapter: Option<LoraAdapter>) -> Result<String, ToolError> {
        let Some(adapter) = adapter else {
            unreachable!("--adapter was asked for");
        };
        let config = self.check_fit(&adapter)?;
        let kind = self.args.kind.unwrap_or(TensorType::F32);
        let staging = Staging::file(&self.args.output, num_bytes(&adapter))?;
        write_adapter(&adapter, &config.model_type, kind, staging.path())?;
        staging.publish()?;
        Ok(format!(
            "{} tensors in {}\nWritten to {}\n",
            2 * adapter.modules.len(),
            kind.name(),
            self.args.output.display()
        ))
    }

    fn ollama(&self, adapter: Option<LoraAdapter>, stop: &AtomicBool) -> Result<String, ToolError> {
        let config = match &adapter {
            Some(adapter) => Some(self.check_fit(adapter)?),
            None => None,
        };
        let weights = MergedWeights::open(self.model, None)?;
        let plan = self.plan(&weights)?;
        let needed = plan.num_bytes() + (32 << 20) + adapter.as_ref().map_or(0, num_bytes);
        let staging = Staging::folder(&self.args.output, needed)?;
        let folder = staging.path();
        let adapter_file = adapter.is_some().then_some(ADAPTER_FILE);
        let text = modelfile(self.model, MODEL_FILE, adapter_file)?;
        let path = folder.join(MODELFILE);
        fs::write(&path, text).map_err(io_error(&path))?;
        if let (Some(adapter), Some(config)) = (&adapter, config) {
            let path = folder.join(ADAPTER_FILE);
            write_adapter(adapter, &config.model_type, TensorType::F32, &path)?;
        }
        self.write(&weights, &plan, &folder.join(MODEL_FILE), stop)?;
        staging.publish()?;
        let output = &self.args.output;
        Ok(format!(
            "{}\nWritten to {}\nRun it: ollama create NAME -f {} && ollama run NAME\n",
            told(&plan),
            output.display(),
            output.join(MODELFILE).display()
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
        write_model(weights, plan, path, follow(&bar, stop))?;
        bar.finish_and_clear();
        Ok(())
    }

    /// The name that programs show.
    fn name(&self) -> String {
        if let Some(name) = &self.args.name {
            return name.clone();
        }
        let path = match &self.args.model {
            Some(model) => PathBuf::from(model),
            None => self.model.to_owned(),
        };
        let own = path.canonicalize().unwrap_or(path);
        let name = own.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The architecture of the model, once the adapter is known to fit it.
    fn check_fit(&self, adapter: &LoraAdapter) -> Result<QwenConfig, ToolError> {
        let mut model = QwenModel::load(self.model, &LoadOptions::default(), &Device::flex())?;
        model.check_adapter(adapter)?;
        Ok(model.config)
    }
}

/// Bytes of an adapter in f32, with room for the names.
fn num_bytes(adapter: &LoraAdapter) -> u64 {
    let values = adapter.modules.values();
    let values: usize = values.map(|m| m.a.len() + m.b.len()).sum();
    4 * values as u64 + (1 << 20)
}

fn told(plan: &GgufPlan) -> String {
    let (num_tensors, num_bytes) = (plan.num_tensors(), plan.num_bytes());
    format!("{num_tensors} tensors, {} MiB", num_bytes >> 20)
}
