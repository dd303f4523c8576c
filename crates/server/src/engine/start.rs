//! From a configuration to a running engine thread.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use burn::tensor::{DType, Device};
use kv_paging::{PagedKvCache, Scheduler, SchedulerConfig};
use lora_4bit::compile_only::real_launches;
use model_qwen::{
    ChatTemplate, GenerationConfig, LoadOptions, QwenModel, TemplateError, Tokenizer,
    bundled_model_dir, is_gpu, parse_device, resolve_model, special_tokens,
};

use super::adapter_folder::read_adapter;
use super::adapters::{Adapters, NewAdapter};
use super::handle::{EngineHandle, channel};
use super::memory;
use super::model_info::{ModelDetails, ModelInfo};
use super::pooling_model::{PoolingInfo, pooling_info};
use super::progress::StartProgress;
use super::receiver::OnTaken;
use super::start_error::StartError;
use super::stats::EngineLimits;
use super::worker::{DeviceUse, Worker};
use crate::config::{Config, ConfigError, Speculation};
use crate::kv_events::KvEvents;

/// Starts engines.
#[derive(Debug)]
pub struct Engine;

impl Engine {
    /// Loads the model that `config` names and starts its engine thread.
    ///
    /// # Errors
    /// [`StartError`]: whatever is missing, broken, or does not fit.
    pub fn start(config: &Config) -> Result<(EngineHandle, ModelInfo), StartError> {
        config.check()?;
        let device = parse_device(&config.device)?;
        Self::start_on(config, device, DeviceUse::Shared, &StartProgress::default())
    }

    /// [`Self::start`] on a thread that may block, for a process whose device has no other engine.
    ///
    /// # Errors
    /// As [`Self::start`], or if that thread fails.
    pub async fn start_owned(
        config: &Config,
        progress: &StartProgress,
    ) -> Result<(EngineHandle, ModelInfo), StartError> {
        let (config, progress) = (config.clone(), progress.clone());
        let started = tokio::task::spawn_blocking(move || {
            config.check()?;
            let device = parse_device(&config.device)?;
            let device_use = match config.finetuning {
                None => DeviceUse::Sole,
                // A job computes on it, too.
                Some(_) => DeviceUse::Shared,
            };
            Self::start_on(&config, device, device_use, &progress)
        });
        let started = started.await;
        started.unwrap_or_else(|error| Err(StartError::Loading(error.into())))
    }

    /// [`Self::start`] on a device that is known already.
    pub(crate) fn start_on(
        config: &Config,
        device: Device,
        device_use: DeviceUse,
        progress: &StartProgress,
    ) -> Result<(EngineHandle, ModelInfo), StartError> {
        // An address that is taken is known before the model is loaded.
        let kv_events = config.kv_events.as_ref();
        let kv_events = kv_events.map(|events| KvEvents::start(events, config.block_size));
        let kv_events = kv_events.transpose()?;
        let files = ModelFiles::read(config)?;
        let pools = files.pooling.is_some();

        let launches = is_gpu(&device).then(real_launches);
        let mut model = load_model(config, &files, &device, progress)?;
        // Shares its tensors with what the engine computes with.
        let base = config.finetuning.as_ref().map(|_| model.clone());
        let adapters = load_adapters(config, &files.model_id, &mut model)?;
        // What building the tokenizer and loading the weights have freed.
        model_qwen::sys::return_freed_memory();

        let kv_dtype = match is_gpu(&device) {
            true => DType::BF16,
            false => DType::F32,
        };
        let kv_dtype = config.kv_cache_dtype.resolve(kv_dtype, &device);
        let plan = memory::plan(config, &device, &model, kv_dtype, pools)?;
        if plan.copies_lm_head {
            model.copy_lm_head_int8();
        }
        let scheduler = Scheduler::new(SchedulerConfig {
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: plan.max_num_batched_tokens,
            block_size: config.block_size,
            num_blocks: plan.kv.num_blocks,
            // A text without output may have as many tokens as the context.
            max_model_len: plan.max_model_len + usize::from(pools),
            enable_prefix_caching: config.enable_prefix_caching,
        })?;
        let longest = files.pooling.as_ref().and_then(|pooling| pooling.max_len);
        let max_model_len = longest.map_or(plan.max_model_len, |len| len.min(plan.max_model_len));
        let (handle, receiver) = channel(EngineLimits {
            max_model_len,
            vocab_size: model.config.vocab_size,
            max_num_queued_reqs: config.max_num_queued_reqs,
            pooling: files.pooling.as_ref().map(PoolingInfo::limits),
        });
        receiver.set_adapters(adapters.infos());
        let details = ModelDetails::of(&model);
        let cache = PagedKvCache::new(&plan.kv, &device);
        let config = &Config {
            // Steps of a pooling model have no tokens to draw, nor to guess.
            enforce_eager: config.enforce_eager || pools,
            speculation: match pools {
                true => Speculation::Off,
                false => config.speculation,
            },
            ..config.clone()
        };
        let mut worker = Worker::new(model, cache, scheduler, receiver, adapters, config);
        worker.device_use = device_use;
        if let Some(kv_events) = kv_events {
            worker.scheduler.record_cache_events();
            worker.kv_events = Some(kv_events);
            worker.publish();
        }
        // From here on the engine's thread has them.
        drop(launches);
        let warms_up = config.warm_up && is_gpu(&device);
        run_thread(worker, is_gpu(&device), warms_up.then_some(progress))?;

        let info = ModelInfo {
            tokenizer: files.tokenizer,
            chat_template: files.chat_template,
            generation_config: files.generation_config,
            dir: files.dir,
            model_id: files.model_id,
            pooling: files.pooling,
            max_model_len,
            memory_table: plan.table,
            details,
            base,
        };
        Ok((handle, info))
    }
}

/// What a model's folder says besides its weights.
struct ModelFiles {
    dir: PathBuf,
    /// The name that clients give the model.
    model_id: String,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    generation_config: GenerationConfig,
    /// `None` for a model that generates.
    pooling: Option<PoolingInfo>,
}

impl ModelFiles {
    fn read(config: &Config) -> Result<Self, StartError> {
        let (dir, model_id) = model_dir(config)?;
        let tokenizer = Tokenizer::from_dir(&dir)?;
        let chat_template = chat_template(config, &dir)?;
        let mut generation_config =
            GenerationConfig::from_dir(&dir, &tokenizer, chat_template.as_ref())?;
        if !config.model_sampling_defaults {
            generation_config = GenerationConfig {
                eos_token_ids: generation_config.eos_token_ids,
                ..GenerationConfig::default()
            };
        }
        let own_template = chat_template.as_ref();
        let own_template = own_template.filter(|_| config.chat_template.is_some());
        let pooling = pooling_info(&config.pooling, &dir, &tokenizer, own_template)?;
        if pooling.is_some() && matches!(config.speculation, Speculation::Ngram(_)) {
            return Err(StartError::Config(ConfigError::Flag {
                flag: "--speculative-config",
                message: "a pooling model generates nothing that could be guessed".to_owned(),
            }));
        }
        Ok(Self {
            dir,
            model_id,
            tokenizer,
            chat_template,
            generation_config,
            pooling,
        })
    }
}

fn load_model(
    config: &Config,
    files: &ModelFiles,
    device: &Device,
    progress: &StartProgress,
) -> Result<QwenModel, StartError> {
    let pools = files.pooling.is_some();
    let options = LoadOptions {
        dtype: config.dtype,
        quantization: config.quantization,
        double_quant: true,
        // On a GPU only if the KV cache has room enough besides.
        int8_lm_head: !pools && !is_gpu(device),
        embeddings_on_cpu: false,
        check_finite_now: false,
        lm_head: !pools,
    };
    let dir = &files.dir;
    let start = std::time::Instant::now();
    tracing::info!(dir = %dir.display(), "loading the model");
    let layers = |num_layers, of| progress.loads(num_layers, of);
    let mut model = QwenModel::load_with_progress(dir, &options, device, &layers)?;
    tracing::info!(dir = %dir.display(), seconds = start.elapsed().as_secs_f32(), "model loaded");
    let vocab_size = model.config.vocab_size;
    if let Some((token, id)) = files.tokenizer.first_id_from(vocab_size) {
        tracing::warn!(
            token,
            id,
            vocab_size,
            "the tokenizer has tokens that the model has no embedding of; texts with them are refused"
        );
    }
    model.set_compute_dtype(config.compute_dtype);
    Ok(model)
}

/// Loads the adapters of `--lora-modules`.
fn load_adapters(
    config: &Config,
    model_id: &str,
    model: &mut QwenModel,
) -> Result<Adapters, StartError> {
    let mut adapters = Adapters::new(config.lora.as_ref());
    for module in config.lora.iter().flat_map(|lora| &lora.modules) {
        if config.served_model_names.is_empty() && module.name == model_id {
            return Err(StartError::Config(ConfigError::Flag {
                flag: "--lora-modules",
                message: format!(
                    "the name `{model_id}` is that of the base model; give it another one with --served-model-name"
                ),
            }));
        }
        adapters.check_name(&module.name, OnTaken::Refuse)?;
        let new = NewAdapter {
            name: module.name.clone(),
            path: module.path.clone(),
            matrices: read_adapter(&module.path)?,
        };
        adapters.load(model, new)?;
    }
    Ok(adapters)
}

/// Runs the engine on a thread of its own. Returns when it takes requests: with `warm_up`, after its warm-up, which tells there how far
/// it is.
fn run_thread(
    mut worker: Worker,
    on_gpu: bool,
    warm_up: Option<&StartProgress>,
) -> Result<(), StartError> {
    let (sender, warmed_up) = mpsc::sync_channel(1);
    let progress = warm_up.cloned();
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            let result = match progress {
                Some(progress) => worker.warm_up(&progress),
                None => Ok(()),
            };
            let runs = result.is_ok();
            // Whoever starts an engine waits for this.
            let _ = sender.send(result);
            if runs {
                // An engine that starts beside this one, or a job that does, must not take them away.
                let _real = on_gpu.then(real_launches);
                worker.run();
            }
        })
        .map_err(StartError::Thread)?;
    match warmed_up.recv() {
        Ok(result) => result.map_err(StartError::WarmUp),
        Err(_) => Err(StartError::WarmUp("its thread has ended".to_owned())),
    }
}

/// The configuration's chat template with the special tokens of the model's folder, or else the folder's own.
fn chat_template(config: &Config, dir: &Path) -> Result<Option<ChatTemplate>, StartError> {
    let Some(source) = &config.chat_template else {
        return match ChatTemplate::from_dir(dir) {
            // Other endpoints need none.
            Err(
                ref error @ TemplateError::NoDefault {
                    tool_use: ref source,
                    ..
                },
            ) => {
                let reason = format!("{error}; start the server with --chat-template");
                let which = match source {
                    Some(_) => "chats without tools",
                    None => "chats",
                };
                tracing::warn!("{which} are refused: {reason}");
                let special_tokens = special_tokens(dir).map_err(TemplateError::from)?;
                let refusing = ChatTemplate::refusing(&reason, source.as_deref(), special_tokens);
                Ok(Some(refusing?))
            }
            template => Ok(template?),
        };
    };
    let special_tokens = special_tokens(dir).map_err(TemplateError::from)?;
    ChatTemplate::from_source(source, special_tokens)
        .map(Some)
        .map_err(StartError::ChatTemplate)
}

/// The model's folder and the name that clients give it.
fn model_dir(config: &Config) -> Result<(PathBuf, String), StartError> {
    match &config.model {
        Some(model) => Ok((resolve_model(model)?, model.clone())),
        None => {
            let dir = bundled_model_dir()?;
            Ok((dir, "bundled".to_owned()))
        }
    }
}
