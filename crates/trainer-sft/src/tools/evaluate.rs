//! `trainer-sft eval`: loss, perplexity and accuracy on records, with the trainer's own data code and masks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use lora_4bit::peft::LoraAdapter;
use lora_4bit::{AdapterSelection, ComputeDtype};
use model_qwen::{LoadOptions, QwenModel};
use serde_json::json;

use super::arguments::EvalArgs;
use super::base::{BaseForm, model_and_adapter};
use super::error::ToolError;
use super::reading::{ReadingArgs, of_noted_columns};
use crate::batch::{Batch, sequential_batches};
use crate::chat_format::ChatFormat;
use crate::config::Config;
use crate::data::{DataError, Dataset, Examples};
use crate::lora;
use crate::step::{self, Means};

/// What was measured on records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean cross-entropy per token, in nats.
    pub loss: f64,
    /// Share of the tokens that have the largest logit.
    pub accuracy: f64,
    /// Mean entropy of the predictions, in nats.
    pub entropy: f64,
    /// Tokens that were measured.
    pub num_tokens: usize,
}

impl Measured {
    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// Measures a model on examples, `batch_size` at a time. `adapter` is the slot of the adapter to use.
///
/// # Errors
/// When an example cannot be read, none has a token to measure, or the loss is no finite number.
pub fn measure(
    model: &QwenModel,
    examples: &Examples,
    adapter: Option<usize>,
    batch_size: usize,
) -> Result<Measured, ToolError> {
    let batches = sequential_batches(examples, batch_size);
    measure_batches(model, adapter, batches)?.ok_or(ToolError::NoTargets {
        flag: "data",
        num_examples: examples.len(),
    })
}

/// [`measure`] of batches; `None` when there is no token to measure.
fn measure_batches(
    model: &QwenModel,
    adapter: Option<usize>,
    batches: impl IntoIterator<Item = Result<Batch, DataError>>,
) -> Result<Option<Measured>, ToolError> {
    let adapters = match adapter {
        None => AdapterSelection::Base,
        Some(slot) => AdapterSelection::All {
            slot,
            dropout: None,
        },
    };
    let Some((means, num_tokens)) = step::measure(model, &adapters, batches)? else {
        return Ok(None);
    };
    let Means {
        loss,
        token_accuracy,
        entropy,
    } = means;
    match loss.is_finite() {
        true => Ok(Some(Measured {
            loss,
            accuracy: token_accuracy,
            entropy,
            num_tokens,
        })),
        false => Err(ToolError::Loss { loss }),
    }
}

/// The model to measure.
#[derive(Clone, Copy)]
pub(super) enum Which<'a> {
    /// A folder.
    Model(&'a Path),
    /// A folder with an adapter.
    Adapted(&'a Path, &'a LoraAdapter),
}

/// Records, ready to be measured on.
pub(super) struct EvalData {
    examples: Examples,
    device: Device,
    batch_size: usize,
    form: BaseForm,
}

impl EvalData {
    /// Reads records for a model, as the run of an adapter did.
    pub(super) fn load(
        model: &Path,
        (files, device): (&[PathBuf], &str),
        (reading, adapter): (&ReadingArgs, &Path),
    ) -> Result<Self, ToolError> {
        let mut config = Config::new("");
        config.data.train = files.to_vec();
        let noted = reading.put_into(&mut config, Some(adapter))?;
        config.model.device = device.to_owned();
        Self::with(config, model, noted)
    }

    /// Reads records; `noted` is the adapter whose run named their fields.
    fn with(mut config: Config, model: &Path, noted: Option<&Path>) -> Result<Self, ToolError> {
        config.model.model = Some(model.to_string_lossy().into_owned());
        let device = model_qwen::parse_device(&config.model.device)?;
        let format = ChatFormat::load(&config)?;
        format.check_vocabulary(config.model.architecture()?.vocab_size)?;
        let dataset = Dataset::to_measure(&config, &format).map_err(|error| match noted {
            Some(adapter) => of_noted_columns(error, &config.data, adapter),
            None => error.into(),
        })?;
        Ok(Self {
            examples: dataset.examples,
            device,
            batch_size: config.run.batch_size,
            form: BaseForm {
                quantization: config.quantization(),
                ..BaseForm::default()
            },
        })
    }

    /// Loads a model in a form and measures it, until `stop` becomes true: then `None`.
    pub(super) fn measure_until(
        &self,
        (which, form): (Which<'_>, BaseForm),
        stop: &AtomicBool,
    ) -> Result<Option<Measured>, ToolError> {
        let (model, slot) = self.load_model(which, form)?;
        let batches = sequential_batches(&self.examples, self.batch_size);
        let batches = batches.take_while(|_| !stop.load(Ordering::Relaxed));
        let measured = measure_batches(&model, slot, batches)?;
        match (stop.load(Ordering::Relaxed), measured) {
            (true, _) => Ok(None),
            (false, Some(measured)) => Ok(Some(measured)),
            (false, None) => Err(ToolError::NoTargets {
                flag: "data",
                num_examples: self.examples.len(),
            }),
        }
    }

    /// Loads a model and measures it.
    fn measure(&self, which: Which<'_>) -> Result<Measured, ToolError> {
        let (model, slot) = self.load_model(which, self.form)?;
        measure(&model, &self.examples, slot, self.batch_size)
    }

    /// A model, and the slot of its adapter.
    fn load_model(
        &self,
        which: Which<'_>,
        form: BaseForm,
    ) -> Result<(QwenModel, Option<usize>), ToolError> {
        let (Which::Model(folder) | Which::Adapted(folder, _)) = which;
        let options = LoadOptions {
            quantization: form.quantization,
            double_quant: form.double_quant,
            ..LoadOptions::default()
        };
        let mut model = QwenModel::load(folder, &options, &self.device)?;
        model.set_compute_dtype(ComputeDtype::F32);
        let slot = match which {
            Which::Model(_) => None,
            Which::Adapted(_, adapter) => {
                lora::put_adapter(&mut model, lora::SLOT, adapter.clone())?;
                Some(lora::SLOT)
            }
        };
        Ok((model, slot))
    }
}

/// Measures, and says what was found.
pub(super) fn evaluate(args: &EvalArgs) -> Result<String, ToolError> {
    if args.batch_size == 0 {
        return Err(ToolError::Flag {
            flag: "batch-size",
            expected: "a whole number, 1 or more".to_owned(),
            found: "0".to_owned(),
        });
    }
    let (model, adapter) = model_and_adapter(args.model.as_deref(), args.adapter.as_deref())?;
    let mut config = Config::new("");
    config.data.train.clone_from(&args.data);
    let noted = (args.reading).put_into(&mut config, args.adapter.as_deref())?;
    config.model.device.clone_from(&args.device);
    config.model.quantization = Some(args.quantization);
    config.run.batch_size = args.batch_size;
    let (read, tokenizer) = (config.data.clone(), config.model.tokenizer.clone());
    let data = EvalData::with(config, &model, noted)?;
    let which = match &adapter {
        None => Which::Model(&model),
        Some(adapter) => Which::Adapted(&model, adapter),
    };
    let measured = data.measure(which)?;
    let Measured {
        loss,
        accuracy,
        entropy,
        num_tokens,
    } = measured;
    let (perplexity, num_examples) = (measured.perplexity(), data.examples.len());
    if args.json {
        let json = json!({
            "loss": loss,
            "perplexity": perplexity,
            "token_accuracy": accuracy,
            "entropy": entropy,
            "num_tokens": num_tokens,
            "num_examples": num_examples,
            "model": model,
            "adapter": args.adapter,
            "max_length": read.max_length,
            "train_on": read.train_on,
            "thinking": read.thinking,
            "columns": read.columns,
            "tokenizer": tokenizer,
        });
        return Ok(format!("{json:#}\n"));
    }
    Ok(format!(
        "loss {loss:.4}, perplexity {perplexity:.3}, token accuracy {:.1} %, entropy {entropy:.4}: {num_tokens} tokens of {num_examples} examples\n",
        100.0 * accuracy
    ))
}
