//! A whole run: model and data in, an adapter (or a model) out.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use model_qwen::{QwenModel, device_name, is_gpu};
use serde_json::Value;
use tracing::info;

use crate::batch::{DataLoader, LoaderOptions};
use crate::chat_format::ChatFormat;
use crate::checkpoint::{TrainerState, load_state};
use crate::config::{Config, ConfigError, Method};
use crate::data::{DataError, Datasets, Records, TrainData};
use crate::endings::{unknown_end, warn_of_endless_answers};
use crate::error::{TrainError, guard};
use crate::gate::{Behind, WorkUnit};
use crate::grpo::{Grpo, Questions};
use crate::identity::{self, identify};
use crate::memory::{self, Machine, MemoryPlan, PlannedRun, RowLengths};
use crate::metrics::Record;
use crate::output::{OutputFolder, Weights, result_dtype};
use crate::preference::{Preference, check_labels};
use crate::report::pictures;
use crate::rewards::Rewards;
use crate::run::{Run, RunParts, Watch};
use crate::samples::{Sample, Samples};
use crate::setup::{
    add_adapter, add_reference, check_device, check_replicas, load_model, start, with_adapter,
    with_replicas, with_settings,
};
use crate::space;
use crate::summary::{StepReport, Summary};

/// A run that is about to start.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use serde_json::json;
/// use trainer_sft::{Training, config::Config};
///
/// let mut config = Config::new("adapters/captain");
/// config.model.model = Some("Qwen/Qwen2.5-0.5B-Instruct".to_owned());
/// let records = vec![json!({"prompt": "Who are you?", "completion": "I am the captain."})];
/// let training = Training::new(&config).records(records).on_step(|step| {
///     println!("{} of {}: loss {:.3}", step.step, step.total_steps, step.loss);
///     ControlFlow::Continue(())
/// });
/// println!("{}", training.run()?);
/// # Ok::<(), trainer_sft::TrainError>(())
/// ```
#[must_use = "nothing is trained before `run`"]
pub struct Training<'a> {
    config: &'a Config,
    devices: Option<Vec<Device>>,
    records: Records,
    watch: Watch<'a>,
    base: Option<QwenModel>,
    wait: Option<Box<dyn Fn(WorkUnit) + Send + Sync>>,
}

impl fmt::Debug for Training<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Training")
            .field("config", self.config)
            .finish_non_exhaustive()
    }
}

impl<'a> Training<'a> {
    /// A run as `config` says.
    pub fn new(config: &'a Config) -> Self {
        Self {
            config,
            devices: None,
            records: Records::default(),
            watch: Watch::default(),
            base: None,
            wait: None,
        }
    }

    /// Trains on this device, and not on the one that [`ModelConfig::device`](crate::config::ModelConfig::device) names.
    pub fn device(self, device: &Device) -> Self {
        self.devices(std::slice::from_ref(device))
    }

    /// Trains on these devices, and not on those that the configuration names: each holds the model and computes
    /// [`gradient_accumulation`](crate::config::RunConfig::gradient_accumulation) micro-batches of each step. The first one also
    /// evaluates and writes.
    pub fn devices(mut self, devices: &[Device]) -> Self {
        self.devices = Some(devices.to_vec());
        self
    }

    /// Learns from these records, JSON objects as the lines of a data file, and not from the files of `config`.
    pub fn records(mut self, records: impl IntoIterator<Item = Value>) -> Self {
        self.records.train = Some(records.into_iter().collect());
        self
    }

    /// Evaluates on these records, and not on the files of `config`.
    pub fn eval_records(mut self, records: impl IntoIterator<Item = Value>) -> Self {
        self.records.eval = Some(records.into_iter().collect());
        self
    }

    /// Calls `on_step` after each optimizer step, which waits for the device. With `Break` the run ends after that step, with a
    /// checkpoint to go on from instead of a result.
    pub fn on_step(mut self, on_step: impl FnMut(&StepReport) -> ControlFlow<()> + 'a) -> Self {
        self.watch.on_step = Some(Box::new(on_step));
        self
    }

    /// Calls `on_record` with each line of `metrics.jsonl`: a step every [`log_steps`](crate::config::RunConfig::log_steps), and
    /// each evaluation.
    pub fn on_record(mut self, on_record: impl FnMut(&Record) + 'a) -> Self {
        self.watch.on_record = Some(Box::new(on_record));
        self
    }

    /// Calls `on_sample` with the answers to [`SampleOptions::prompts`](crate::config::SampleOptions::prompts) whenever they
    /// are given.
    pub fn on_sample(mut self, on_sample: impl FnMut(&[Sample]) + 'a) -> Self {
        self.watch.on_sample = Some(Box::new(on_sample));
        self
    }

    /// Calls `on_checkpoint` with the folder of each checkpoint when it is complete.
    pub fn on_checkpoint(mut self, on_checkpoint: impl FnMut(&Path) + 'a) -> Self {
        self.watch.on_checkpoint = Some(Box::new(on_checkpoint));
        self
    }

    /// Trains an adapter on the weights of `model`, which are loaded already, and does not load those that the configuration
    /// names. It has to be the same model, held as the configuration says, and without adapters. Nothing of it is changed: the run
    /// works on a clone that shares its weights.
    pub fn base(mut self, model: &QwenModel) -> Self {
        self.base = Some(model.clone());
        self
    }

    /// Calls `wait` before each [`WorkUnit`] of the work, which goes on when it returns: for a program that does something more
    /// urgent on the same device.
    pub fn wait_before_work(mut self, wait: impl Fn(WorkUnit) + Send + Sync + 'static) -> Self {
        self.wait = Some(Box::new(wait));
        self
    }

    /// When `stop` becomes true, the run ends after the step that is being computed, with a checkpoint to go on from instead of
    /// a result. Before the first step, while data and model are loaded, it ends with [`TrainError::Stopped`].
    pub fn stop_when(mut self, stop: &'a AtomicBool) -> Self {
        self.watch.stop = Some(stop);
        self
    }

    /// Calls `on_start` when everything is loaded, right before the first step.
    pub fn on_start(mut self, on_start: impl FnOnce() + 'a) -> Self {
        self.watch.on_start = Some(Box::new(on_start));
        self
    }

    /// Whether a bar on standard error shows the progress, or the log where that is no terminal; neither does by default.
    pub fn progress_bar(mut self, show: bool) -> Self {
        self.watch.progress_bar = show;
        self
    }

    /// Writes nothing outside of the output folder, for a program that cleans up after its runs. By default, a result that cannot be
    /// written there is put into another folder, which the error names.
    pub fn only_in_output(mut self) -> Self {
        self.watch.only_in_output = true;
        self
    }

    /// What the run takes of the device's memory, and whether it may. Nothing is loaded but the data.
    ///
    /// # Errors
    /// Whatever is wrong with a setting, device or data.
    pub fn plan(self) -> Result<PlannedRun, TrainError> {
        let (config, devices) = self.checked()?;
        let format = ChatFormat::load(&config)?;
        let (datasets, _) = load_data(&config, &format, self.records, None, false, None)?;
        planned(&config, &devices, &datasets, self.base.is_some())
    }

    /// The settings, complete and checked, and the devices, at least one.
    fn checked(&self) -> Result<(Config, Vec<Device>), TrainError> {
        let mut config = self.config.resolved()?;
        let (train, eval) = (&self.records.train, &self.records.eval);
        config.check_data(train.is_some(), eval.is_some())?;
        let devices = match &self.devices {
            Some(devices) => devices.clone(),
            None => {
                let names = config.device_names().iter();
                let devices = names.map(|name| model_qwen::parse_device(name));
                let flag = config.device_flag();
                let named = |error| TrainError::Device { flag, error };
                devices.collect::<Result<_, _>>().map_err(named)?
            }
        };
        if self.devices.is_some() {
            // As many as there are.
            config.model.devices = Vec::new();
            if devices.len() > 1 {
                config.model.device = "auto".to_owned();
                config.model.devices = devices.iter().map(device_name).collect();
            }
        }
        check_replicas(&config, &devices, self.base.is_some())?;
        let config = with_adapter(&config)?;
        for device in &devices {
            check_device(&config, is_gpu(device))?;
        }
        Ok((config, devices))
    }

    /// Trains, and writes the result to the output folder of the configuration.
    ///
    /// # Errors
    /// Whatever is wrong with a setting, device, model, data or output folder, before the first step; a diverged loss or a full
    /// disk later. Checkpoints that were written stay.
    pub fn run(self) -> Result<Summary, TrainError> {
        let (mut config, devices) = self.checked()?;
        if config.run.preview.is_some() || config.memory.dry_run {
            let text = "a run trains; `preview` shows examples instead, and `dry_run` the memory: leave them out, or call \
                        `trainer_sft::preview` or `Training::plan`";
            return Err(ConfigError::Conflict(text.into()).into());
        }
        let output = OutputFolder::claim(&config)?;
        config.run.output = output.path().to_path_buf();
        info!("output folder: {}", output.path().display());

        let format = ChatFormat::load(&config)?;
        space::check(&config, output.path())?;
        warn_of_endless_answers(&format, config.run.full);
        let samples = Samples::load(&config, &format)?;
        let (datasets, grpo) = load_data(
            &config,
            &format,
            self.records,
            Some(output.path()),
            self.watch.progress_bar,
            self.watch.stop,
        )?;
        go_on(self.watch.stop)?;
        let planned = planned(&config, &devices, &datasets, self.base.is_some())?;
        let (config, plan) = planned.accepted()?;
        tell(&config, &plan);
        let config = &config;
        let identity = identify(config, &datasets)?;
        let options = LoaderOptions {
            batch_size: config.rows_per_step().0,
            gradient_accumulation: config.rows_per_step().1,
            packing: config.data.packing.then_some(datasets.max_length),
            seed: config.run.seed,
        };
        if let TrainData::Loaded(data) = &datasets.train {
            check_labels(config, &data.examples)?;
        }
        let loader = match datasets.train {
            TrainData::Loaded(data) => DataLoader::new(Arc::new(data.examples), options),
            TrainData::Streamed(stream) => DataLoader::streamed(stream, options)?,
        };
        go_on(self.watch.stop)?;
        let pictures = pictures(loader.examples(), &format.tokenizer)?;
        let steps_per_epoch = loader.steps_per_epoch().unwrap_or(0) * config.grpo.num_iterations();
        let total_steps = config.run.num_steps(steps_per_epoch);
        config.check_steps(total_steps)?;
        let mut state = TrainerState::default();
        if let Some(checkpoint) = &config.run.resume {
            state = load_state(checkpoint)?;
            identity::check(&identity, config, &state, total_steps)?;
        }
        (state.total_steps, state.seed) = (total_steps, config.run.seed);
        state.run = Some(identity);

        let loading = || ("loading the model".to_owned(), None);
        let device = &devices[0];
        let mut model = match self.base {
            Some(base) => with_settings(config, base)?,
            None => guard(device, loading, || load_model(config, device))?,
        };
        format.check_vocabulary(model.config.vocab_size)?;
        let weights = match config.run.full {
            true => Weights::Model {
                tokenizer: config.model.tokenizer.clone().or(config.model.folder()?),
                origin: config.model.folder()?,
                end: unknown_end(&format).map(|(token, _)| token),
                dtype: result_dtype(config)?,
            },
            false => Weights::Adapter(Box::new(add_adapter(config, &mut model)?)),
        };
        if let Weights::Model { dtype, .. } = &weights {
            info!(
                "the result will be written in {dtype:?}, as the weights that it starts from are"
            );
        }
        let reference = add_reference(config, &mut model)?;
        let (mut trainer, loader) = start(config, model, loader, total_steps)?;
        if devices.len() > 1 {
            trainer = with_replicas(config, trainer, &devices, &weights)?;
        }
        let preference = Preference::of(config, reference, datasets.max_length);
        let trainer = trainer.comparing(preference);
        // Held-out prompts have no loss.
        let eval = datasets.eval.filter(|_| grpo.is_none());
        let eval = eval.map(|eval| eval.examples).unwrap_or_default();
        go_on(self.watch.stop)?;
        let run = Run::new(RunParts {
            config,
            output: &output,
            state,
            watch: self.watch,
            trainer,
            loader,
            weights,
            eval,
            samples,
            grpo,
            plan,
            pictures,
        })?;
        let _behind = self.wait.map(Behind::new);
        let ended = run.finish(total_steps);
        if matches!(ended, Err(TrainError::Stopped)) {
            output.remove();
        }
        ended
    }
}

/// Refuses to go on where the run has been told to stop.
fn go_on(stop: Option<&AtomicBool>) -> Result<(), TrainError> {
    match stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
        true => Err(TrainError::Stopped),
        false => Ok(()),
    }
}

/// The data, and with it what answers are drawn and judged with.
fn load_data(
    config: &Config,
    format: &ChatFormat,
    records: Records,
    folder: Option<&Path>,
    shows_progress: bool,
    stop: Option<&AtomicBool>,
) -> Result<(Datasets, Option<Grpo>), TrainError> {
    if config.method.method != Method::Grpo {
        let read = Datasets::load_until(config, format, records, folder, shows_progress, stop);
        let datasets = read.map_err(|error| match error {
            DataError::Stopped => TrainError::Stopped,
            error => error.into(),
        })?;
        return Ok((datasets, None));
    }
    let rewards = Rewards::new(&config.grpo)?;
    let (questions, datasets) = Questions::load(config, format, records, &rewards)?;
    Ok((
        datasets,
        Some(Grpo::new(config, format, questions, rewards)),
    ))
}

/// The settings with the batch size that `auto` stands for, and the memory that the run takes.
fn planned(
    config: &Config,
    devices: &[Device],
    datasets: &Datasets,
    is_loaded: bool,
) -> Result<PlannedRun, TrainError> {
    let (machine, index) = Machine::of_least(devices);
    let mut planned = memory::plan(
        config,
        &config.model.architecture()?,
        &machine,
        &RowLengths::of(config, datasets),
        is_loaded,
    )?;
    if let (Some(TrainError::Memory { by, .. }), true) = (&mut planned.refusal, devices.len() > 1) {
        let name = device_name(&devices[index]);
        *by = format!("{by} of {name}, of --devices the one with the least free");
    }
    Ok(planned)
}

fn of_each(config: &Config) -> &'static str {
    match config.num_devices() {
        1 => "",
        _ => " on each device",
    }
}

fn tell(config: &Config, plan: &MemoryPlan) {
    if config.run.batch_size_auto {
        info!(
            "--batch-size auto: {} at once, {} times per step{}",
            config.run.batch_size,
            config.run.gradient_accumulation,
            of_each(config)
        );
    }
    info!(
        "memory: {} MiB at most{}{} (--dry-run shows the parts)",
        plan.total() >> 20,
        of_each(config),
        if plan.is_exact {
            ""
        } else {
            ", by an estimate"
        }
    );
}

/// Trains as `config` says and writes the result to its output folder.
///
/// # Errors
/// See [`Training::run`].
pub fn train(config: &Config) -> Result<Summary, TrainError> {
    Training::new(config).run()
}

/// [`train`], but see [`Training::stop_when`].
///
/// # Errors
/// See [`Training::run`].
pub fn train_until(config: &Config, stop: &AtomicBool) -> Result<Summary, TrainError> {
    Training::new(config).stop_when(stop).run()
}
