//! What a run needs before its first step: the model, its adapter, and the optimizer where it left off.

mod further;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use lora_4bit::peft::{LoraAdapter, LoraMatrices};
use lora_4bit::{ComputeDtype, Weight};
use model_qwen::{Dtype, LoadOptions, QwenModel, device_name, is_gpu};
use tracing::{info, warn};

pub(crate) use self::further::with_adapter;
use crate::batch::DataLoader;
use crate::checkpoint;
use crate::config::{Config, ConfigError, LoraOptions, Method, Optim};
use crate::error::{TrainError, guard};
use crate::lora::{self, AdapterForm, Matrices};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::output::Weights;
use crate::parameters::{Trainable, visit_model};
use crate::replicas::GradientSum;
use crate::schedule::{Schedule, Shape};
use crate::step::Checkpointing;
use crate::trainer::{Trainer, TrainerOptions};

impl Config {
    /// Checks that a GPU, or a CPU, trains what the run trains.
    ///
    /// # Errors
    /// The first setting that only the other one honours.
    pub fn check_device(&self, on_gpu: bool) -> Result<(), ConfigError> {
        check_device(self, on_gpu)
    }
}

/// Checks that the device trains what the run trains.
pub(crate) fn check_device(config: &Config, on_gpu: bool) -> Result<(), ConfigError> {
    if config.optimizer.offload_activations && !on_gpu {
        return Err(ConfigError::Value {
            flag: "offload-activations",
            expected: "a run on a GPU".to_owned(),
            found: "one on a CPU, whose activations are in the host's memory already: leave it out"
                .to_owned(),
        });
    }
    if config.run.full && config.model.compute_dtype == ComputeDtype::Bf16 && !on_gpu {
        return Err(ConfigError::Value {
            flag: "compute-dtype",
            expected: "f32 or auto with --full on a CPU".to_owned(),
            found: "bf16".to_owned(),
        });
    }
    Ok(())
}

/// The type in which weights are multiplied on `device`.
pub(crate) fn compute_dtype(config: &Config, device: &Device) -> ComputeDtype {
    match config.model.compute_dtype {
        ComputeDtype::Auto if config.run.full && !is_gpu(device) => ComputeDtype::F32,
        ComputeDtype::Auto => ComputeDtype::Bf16,
        given => given,
    }
}

/// Checks that several devices train what the run trains.
pub(crate) fn check_replicas(
    config: &Config,
    devices: &[Device],
    is_loaded: bool,
) -> Result<(), ConfigError> {
    if devices.is_empty() {
        return Err(ConfigError::Value {
            flag: "devices",
            expected: "at least one device".to_owned(),
            found: "an empty list".to_owned(),
        });
    }
    let conflict = |text: &str| Err(ConfigError::Conflict(text.to_owned()));
    match devices.len() > 1 {
        true if config.method.method == Method::Grpo => {
            conflict("--method grpo draws and judges its answers on one device: give one")
        }
        true if is_loaded => conflict(
            "a model that is loaded already is on one device, and several ones would each need their own: leave `base` or `devices` out",
        ),
        _ => Ok(()),
    }
}

/// Loads the weights that the run starts from, or draws them (`--init-config`).
pub(crate) fn load_model(config: &Config, device: &Device) -> Result<QwenModel, TrainError> {
    let options = match config.run.full {
        true => full_options(),
        false => frozen_options(config),
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
    model.set_compute_dtype(compute_dtype(config, device));
    let place = if is_gpu(device) { "the GPU" } else { "the CPU" };
    info!("{} MiB of weights on {place}", model.num_bytes() >> 20);
    Ok(model)
}

/// A model that is loaded already, as the base of an adapter.
pub(crate) fn with_settings(
    config: &Config,
    mut model: QwenModel,
) -> Result<QwenModel, ConfigError> {
    if config.run.full {
        let text = "--full trains the weights themselves, and those of a model that is loaded already are shared: leave it out";
        return Err(ConfigError::Conflict(text.into()));
    }
    model.set_compute_dtype(compute_dtype(config, &model.device()));
    Ok(model)
}

/// How a model is held whose weights are all trained.
fn full_options() -> LoadOptions {
    LoadOptions {
        dtype: Dtype::F32,
        ..LoadOptions::default()
    }
}

/// How the frozen base of an adapter is held.
fn frozen_options(config: &Config) -> LoadOptions {
    LoadOptions {
        dtype: config.model.dtype,
        quantization: config.quantization(),
        double_quant: config.model.double_quant,
        int8_lm_head: false,
        // Steps of CUDA graphs look embeddings up on the device, and where they are trained they are there, too.
        embeddings_on_cpu: config.method.method != Method::Grpo
            && !lora::trainable(0, &config.lora.modules_to_save).has_embeddings(),
        check_finite_now: true,
        lm_head: true,
    }
}

/// Puts the adapter to train on the model: a new one, the one of the checkpoint to go on from, or the one of `--adapter`.
pub(crate) fn add_adapter(
    config: &Config,
    model: &mut QwenModel,
) -> Result<AdapterForm, TrainError> {
    let folder = config.run.resume.as_ref().or(config.run.adapter.as_ref());
    let (adapter, start) = match folder {
        Some(folder) => load_adapter(config, folder)?,
        None => {
            check_rank(&config.lora, model)?;
            let base = base_name(config)?;
            let adapter = lora::new_adapter(&config.lora, base, model, config.run.seed);
            let start = config.lora.init.changes_base();
            let start = start.then(|| adapter.modules.clone());
            (adapter, start)
        }
    };
    if let Some(start) = &start {
        info!(
            "--init-lora-weights {}: the base is without what the adapter starts as",
            config.lora.init
        );
        lora::take_out(model, start, &adapter.config).map_err(TrainError::NotDense)?;
    }
    warn_of_large_ranks(config, &adapter);
    let dropout = config.lora.dropout();
    let mut config = lora::put_adapter(model, lora::SLOT, adapter)?;
    // An adapter that is trained further may have had another one.
    config.lora_dropout = dropout;
    // Embedding and head are trained and written as two weights.
    config.ensure_weight_tying = false;
    Ok(AdapterForm { config, start })
}

/// The trainer with a replica of its model on each further one of `devices`: the same weights, with the adapter, the reference and
/// the optimizer as they are now.
pub(crate) fn with_replicas(
    config: &Config,
    trainer: Trainer,
    devices: &[Device],
    weights: &Weights,
) -> Result<Trainer, TrainError> {
    let sum = GradientSum::choose(config.model.all_reduce, devices)?;
    let replicas = devices.iter().skip(1).map(|device| {
        let loading = || {
            (
                format!("loading the model on {}", device_name(device)),
                None,
            )
        };
        guard(device, loading, || {
            replica(config, &trainer, device, weights)
        })
    });
    let replicas = replicas.collect::<Result<_, _>>()?;
    Ok(trainer.with_replicas(replicas, sum))
}

/// A trainer on `device` that has taken the steps that `trainer` has.
fn replica(
    config: &Config,
    trainer: &Trainer,
    device: &Device,
    weights: &Weights,
) -> Result<Trainer, TrainError> {
    let mut model = load_model(config, device)?;
    if let Weights::Adapter(form) = weights {
        if let Some(start) = &form.start {
            lora::take_out(&mut model, start, &form.config).map_err(TrainError::NotDense)?;
        }
        let adapter = lora::read_adapter(&trainer.model, lora::SLOT, &form.config);
        lora::put_adapter(&mut model, lora::SLOT, adapter)?;
    }
    add_reference(config, &mut model)?;
    let options = *trainer.options();
    let optimizer = match &config.run.resume {
        None => AdamW::new(options.optimizer),
        Some(dir) => checkpoint::load(dir, options.optimizer, device)?.1,
    };
    Ok(Trainer::resume(model, options, optimizer))
}

/// What an adapter says of its base: the id of the Hub, or the folder wherever the adapter is used.
fn base_name(config: &Config) -> Result<Option<String>, TrainError> {
    let given = config.model.model.as_deref().map(Path::new);
    let folder = match given {
        Some(id) if !id.exists() => return Ok(config.model.model.clone()),
        _ => config.model.folder()?,
    };
    Ok(folder.map(|folder| {
        let folder = folder.canonicalize().unwrap_or(folder);
        folder.display().to_string()
    }))
}

/// The adapter in a folder, and what the base has lost to it where the run says so.
fn load_adapter(
    config: &Config,
    folder: &Path,
) -> Result<(LoraAdapter, Option<Matrices>), TrainError> {
    let adapter = LoraAdapter::load(folder).map_err(TrainError::of_adapter(folder))?;
    if !config.lora.init.changes_base() {
        return Ok((adapter, None));
    }
    let found = adapter.config.r;
    let own = lora::lora_config(&config.lora, None);
    let Some((adapter, start)) = lora::split(adapter, &own) else {
        return Err(TrainError::AdapterForm {
            flag: "lora-r",
            expected: format!("half of {found}"),
            found: own.r.to_string(),
            folder: folder.to_path_buf(),
        });
    };
    Ok((adapter, Some(start)))
}

/// A weight has as many singular values as its smaller side is long.
fn check_rank(lora: &LoraOptions, model: &QwenModel) -> Result<(), ConfigError> {
    let widths = lora::targeted(lora, model).map(|(name, linear)| {
        let width = linear.in_features().min(linear.out_features());
        (width, name)
    });
    match widths.min() {
        Some((width, name)) if lora.init.changes_base() && width < lora.r => {
            Err(ConfigError::Value {
                flag: "lora-r",
                expected: format!(
                    "at most {width} with --init-lora-weights {}, the width of `{name}`",
                    lora.init
                ),
                found: lora.r.to_string(),
            })
        }
        _ => Ok(()),
    }
}

/// Puts the adapter of the reference on the model, where there is one. Gives its slot.
pub(crate) fn add_reference(
    config: &Config,
    model: &mut QwenModel,
) -> Result<Option<usize>, TrainError> {
    let Some(folder) = &config.method.ref_adapter else {
        return Ok(None);
    };
    let adapter = LoraAdapter::load(folder).map_err(TrainError::of_adapter(folder))?;
    let put = model.add_adapter(lora::REFERENCE_SLOT, &adapter);
    put.map_err(|error| ConfigError::File {
        path: folder.display().to_string(),
        reason: format!("cannot be the reference: {error}"),
    })?;
    info!("the reference is the model with {}", folder.display());
    Ok(Some(lora::REFERENCE_SLOT))
}

/// Replaces the weights that are trained by those in `folder`, a checkpoint of this run.
pub(crate) fn read_weights(
    config: &Config,
    model: &mut QwenModel,
    folder: &Path,
) -> Result<(), TrainError> {
    if !config.run.full {
        let (adapter, _) = load_adapter(config, folder)?;
        lora::put_adapter(model, lora::SLOT, adapter)?;
        return Ok(());
    }
    *model = QwenModel::load(folder, &full_options(), &model.device())?;
    model.set_compute_dtype(compute_dtype(config, &model.device()));
    Ok(())
}

/// A rank above a layer's width makes the adapter larger than the layer, and no better.
fn warn_of_large_ranks(config: &Config, adapter: &LoraAdapter) {
    let width = |matrices: &LoraMatrices| matrices.in_features.min(matrices.out_features);
    let mut wide = adapter
        .modules
        .iter()
        .filter(|(_, matrices)| matrices.r > width(matrices));
    if let Some((name, matrices)) = wide.next() {
        let count = 1 + wide.count();
        let what = match &config.run.adapter {
            Some(folder) => format!("the rank of the adapter in {},", folder.display()),
            None => "--lora-r".to_owned(),
        };
        warn!(
            "{what} {} is above the width of {count} layers, the first is `{name}` with {}: there the adapter is larger \
             than the layer",
            matrices.r,
            width(matrices)
        );
    }
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
        eight_bit: config.optimizer.optim == Optim::Adamw8bit,
        ..AdamWConfig::default()
    };
    let options = TrainerOptions {
        trainable: if config.run.full {
            Trainable::Full
        } else {
            lora::trainable(lora::SLOT, &config.lora.modules_to_save)
        },
        learning_rate: config.learning_rate(),
        schedule: Schedule {
            kind: config.optimizer.lr_schedule,
            warmup_steps: config.optimizer.num_warmup_steps(total_steps),
            total_steps,
            shape: Shape::of(config),
        },
        optimizer: optimizer_config,
        max_grad_norm: Some(config.optimizer.max_grad_norm).filter(|&norm| norm > 0.0),
        checkpointing: match config.optimizer.offload_activations {
            true => Checkpointing::Offload,
            false => config.optimizer.gradient_checkpointing.into(),
        },
        dropout: config.lora.dropout(),
        loraplus_lr_ratio: config.optimizer.loraplus_lr_ratio.unwrap_or(1.0),
        neftune_noise_alpha: config.optimizer.neftune_noise_alpha,
        seed: config.run.seed,
    };
    let optimizer = match &config.run.resume {
        None => AdamW::new(optimizer_config),
        Some(dir) => {
            let (state, optimizer) = checkpoint::load(dir, optimizer_config, &model.device())?;
            let mut sizes = BTreeMap::new();
            visit_model(&mut model, options.trainable, &mut |name, parameter| {
                sizes.insert(name.to_owned(), parameter.num_values());
            });
            checkpoint::check_optimizer(dir, &optimizer, &sizes)?;
            loader.restore(state.loader)?;
            optimizer
        }
    };
    Ok((Trainer::resume(model, options, optimizer), loader))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_gpu_offloads() {
        assert!(check_device(&Config::new("x"), true).is_ok());
        let mut offloads = Config::new("x");
        offloads.optimizer.offload_activations = true;
        assert!(check_device(&offloads, true).is_ok());
        let error = check_device(&offloads, false).unwrap_err().to_string();
        assert!(error.starts_with("--offload-activations"), "{error}");
    }
}
