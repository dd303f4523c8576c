//! What a run needs before its first step: the model, its adapter, and the optimizer where it left off.

use std::collections::BTreeMap;

use burn::tensor::Device;
use lora_4bit::Weight;
use lora_4bit::peft::{LoraAdapter, LoraConfig};
use model_qwen::{Dtype, LoadOptions, QwenModel};
use tracing::info;

use crate::batch::DataLoader;
use crate::checkpoint;
use crate::config::{Config, GradientCheckpointing};
use crate::error::TrainError;
use crate::lora;
use crate::optimizer::{AdamW, AdamWConfig};
use crate::parameters::{Trainable, visit_model};
use crate::schedule::Schedule;
use crate::step::Checkpointing;
use crate::trainer::{Trainer, TrainerOptions};

/// Loads the weights that the run starts from, or draws them (`--init-config`).
pub(crate) fn load_model(config: &Config, device: &Device) -> Result<QwenModel, TrainError> {
    let full = LoadOptions {
        dtype: Dtype::F32,
        ..LoadOptions::default()
    };
    let options = if config.run.full {
        full
    } else {
        frozen_options(config)
    };
    let resumed = config.run.resume.clone().filter(|_| config.run.full);
    let mut model = match resumed.map_or_else(|| config.model.folder(), |dir| Ok(Some(dir)))? {
        Some(folder) => QwenModel::load(&folder, &options, device)?,
        None => QwenModel::random(config.model.architecture()?, config.run.seed, device),
    };
    if config.run.full {
        let quantized = model
            .linears()
            .into_iter()
            .find(|(_, linear)| !matches!(linear.weight, Weight::Dense(_)));
        if let Some((name, _)) = quantized {
            return Err(TrainError::Quantized(name));
        }
    }
    model.set_compute_dtype(config.model.compute_dtype);
    info!("{} MiB of weights on {device:?}", model.num_bytes() >> 20);
    Ok(model)
}

/// How the frozen base of an adapter is held.
fn frozen_options(config: &Config) -> LoadOptions {
    LoadOptions {
        dtype: config.model.dtype,
        quantization: config.quantization(),
        double_quant: config.model.double_quant,
        int8_lm_head: false,
        embeddings_on_cpu: true,
    }
}

/// Puts the adapter to train on the model: a new one, or the one of the checkpoint to go on from.
pub(crate) fn add_adapter(
    config: &Config,
    model: &mut QwenModel,
) -> Result<LoraConfig, TrainError> {
    let adapter = match &config.run.resume {
        Some(checkpoint) => LoraAdapter::load(checkpoint)?,
        None => {
            let folder = config
                .model
                .folder()?
                .map(|folder| folder.display().to_string());
            let base = config.model.model.clone().or(folder);
            lora::new_adapter(&config.lora, base, model, config.run.seed)
        }
    };
    model.add_adapter(lora::SLOT, &adapter)?;
    Ok(adapter.config)
}

/// The trainer at its first step, or where the checkpoint of `--resume` left it.
pub(crate) fn start(
    config: &Config,
    mut model: QwenModel,
    mut loader: DataLoader,
    total_steps: usize,
) -> Result<(Trainer, DataLoader), TrainError> {
    let optimizer_config = AdamWConfig {
        // The usual constant for training from scratch: gradients change faster than an adapter's.
        beta2: if config.run.full { 0.95 } else { 0.999 },
        weight_decay: config.optimizer.weight_decay,
        ..AdamWConfig::default()
    };
    let options = TrainerOptions {
        trainable: if config.run.full {
            Trainable::Full
        } else {
            Trainable::Adapter { slot: lora::SLOT }
        },
        learning_rate: config.learning_rate(),
        schedule: Schedule {
            kind: config.optimizer.lr_schedule,
            warmup_steps: config.optimizer.num_warmup_steps(total_steps),
            total_steps,
        },
        optimizer: optimizer_config,
        max_grad_norm: Some(config.optimizer.max_grad_norm).filter(|&norm| norm > 0.0),
        checkpointing: match config.optimizer.gradient_checkpointing {
            GradientCheckpointing::Auto => Checkpointing::Auto,
            GradientCheckpointing::True => Checkpointing::On,
            GradientCheckpointing::False => Checkpointing::Off,
        },
        dropout: config.lora.dropout,
        seed: config.run.seed,
    };
    let optimizer = match &config.run.resume {
        None => AdamW::new(optimizer_config),
        Some(dir) => {
            let (state, optimizer) = checkpoint::load(dir, optimizer_config, &model.device())?;
            let differs = |field, found: String, expected: String| TrainError::Resume {
                field,
                found,
                expected,
            };
            if state.seed != config.run.seed {
                return Err(differs(
                    "seed",
                    state.seed.to_string(),
                    config.run.seed.to_string(),
                ));
            }
            if state.total_steps != total_steps {
                return Err(differs(
                    "the number of steps",
                    state.total_steps.to_string(),
                    total_steps.to_string(),
                ));
            }
            let mut sizes = BTreeMap::new();
            visit_model(&mut model, options.trainable, &mut |name, parameter| {
                sizes.insert(name.to_owned(), parameter.num_values());
            });
            checkpoint::check_optimizer(dir, &optimizer, &sizes)?;
            loader.restore(state.loader);
            optimizer
        }
    };
    Ok((Trainer::resume(model, options, optimizer), loader))
}
