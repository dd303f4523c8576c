//! The loop of a run: steps, what is written meanwhile, and the adapter (or the model) at its end.

mod best;
mod checkpoints;
mod checks;
mod evaluation;
mod method;
mod progress;
mod report;
mod sampling;
mod seen;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::{DType, Device};
use model_qwen::{device_memory, is_gpu};
use tracing::warn;

use self::best::find_best;
use self::checks::{Broken, Checks, broken_weight};
pub(crate) use self::progress::time;
use self::progress::{ProgressReport, tell_the_plan};
use self::seen::Metrics;
use crate::batch::{DataLoader, LoaderState, StepBatch};
use crate::checkpoint::TrainerState;
use crate::config::{Config, newest_checkpoint};
use crate::data::Examples;
use crate::error::{TrainError, guard};
use crate::grpo::Grpo;
use crate::memory::MemoryPlan;
use crate::metrics::{Record, Speedometer, peak_memory};
use crate::output::{OutputFolder, Weights};
use crate::report::Picture;
use crate::samples::{Sample, Samples};
use crate::summary::{StepReport, Summary};
use crate::trainer::{StepNumbers, StepOutput, Trainer};

/// What is called after each step; `Break` stops the run.
pub(crate) type OnStep<'a> = Box<dyn FnMut(&StepReport) -> ControlFlow<()> + 'a>;

/// What is called with something that a run has made.
type Listener<'a, T> = Box<dyn FnMut(&T) + 'a>;

/// Who looks on, and may stop the run.
#[derive(Default)]
pub(crate) struct Watch<'a> {
    /// Called before the first step.
    pub(crate) on_start: Option<Box<dyn FnOnce() + 'a>>,
    /// Called after each step.
    pub(crate) on_step: Option<OnStep<'a>>,
    /// Called with each record of the metrics.
    pub(crate) on_record: Option<Listener<'a, Record>>,
    /// Called with the answers to `--sample-prompts`.
    pub(crate) on_sample: Option<Listener<'a, [Sample]>>,
    /// Called with the folder of each checkpoint.
    pub(crate) on_checkpoint: Option<Listener<'a, Path>>,
    /// Becomes true when the run is to stop.
    pub(crate) stop: Option<&'a AtomicBool>,
    /// Whether standard error shows the progress.
    pub(crate) progress_bar: bool,
    /// Nothing is written outside of the output folder.
    pub(crate) only_in_output: bool,
}

/// The loop and what it writes to.
pub(crate) struct Run<'a> {
    config: &'a Config,
    /// What the next checkpoint says of the run.
    state: TrainerState,
    watch: Watch<'a>,
    trainer: Trainer,
    loader: DataLoader,
    weights: Weights,
    eval: Examples,
    samples: Option<Samples>,
    grpo: Option<Grpo>,
    metrics: Metrics,
    checks: Checks,
    /// The first examples, for the report.
    pictures: Vec<Picture>,
    /// Whether the caller has told the run to end.
    is_broken: bool,
    started: Instant,
    summary: Summary,
}

/// What a run begins with.
pub(crate) struct RunParts<'a> {
    pub(crate) config: &'a Config,
    pub(crate) output: &'a OutputFolder,
    /// That of the checkpoint to go on from, or a new one.
    pub(crate) state: TrainerState,
    pub(crate) watch: Watch<'a>,
    pub(crate) trainer: Trainer,
    pub(crate) loader: DataLoader,
    pub(crate) weights: Weights,
    pub(crate) eval: Examples,
    pub(crate) samples: Option<Samples>,
    pub(crate) grpo: Option<Grpo>,
    /// The memory that is expected, for the report.
    pub(crate) plan: MemoryPlan,
    /// The first examples, for the report.
    pub(crate) pictures: Vec<Picture>,
}

/// A step that is written to the metrics, the bar and the log.
struct LoggedStep<'a> {
    batch: &'a StepBatch,
    output: &'a StepOutput,
    numbers: StepNumbers,
    tokens_per_second: f64,
    /// Whether the metrics get it.
    is_metric: bool,
}

impl<'a> Run<'a> {
    pub(crate) fn new(parts: RunParts<'a>) -> Result<Self, TrainError> {
        let RunParts {
            config,
            output,
            mut state,
            watch,
            mut trainer,
            loader,
            weights,
            eval,
            mut samples,
            grpo,
            plan,
            pictures,
        } = parts;
        find_best(config, &mut state)?;
        output.begin(config)?;
        let resumed = config.run.resume.is_some().then(|| trainer.num_steps());
        let metrics = Metrics::open(config, output.path(), resumed)?;
        if let Some(samples) = &mut samples {
            samples.open(resumed)?;
        }
        let num_trainable = trainer.num_trainable();
        let summary = Summary {
            output: output.path().to_path_buf(),
            num_trainable,
            planned_memory: Some(plan),
            ..Summary::default()
        };
        Ok(Self {
            config,
            state,
            watch,
            trainer,
            loader,
            weights,
            eval,
            samples,
            grpo,
            metrics,
            checks: Checks::of(config),
            pictures,
            is_broken: false,
            started: Instant::now(),
            summary,
        })
    }

    /// Steps until `total_steps` are done, then writes the result. Every end leaves a report, also that by an error.
    pub(crate) fn finish(mut self, total_steps: usize) -> Result<Summary, TrainError> {
        let ended = self.run_to_end(total_steps);
        self.summary.num_steps = self.trainer.num_steps();
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        self.summary.peak_memory = peak_memory();
        match ended {
            Ok(()) => {
                self.summary.device_memory = used_memory(&self.trainer.device());
                self.write_report(None);
                Ok(self.summary)
            }
            // Its folder goes away.
            Err(error @ TrainError::Stopped) => Err(error),
            Err(error) => {
                self.write_report(Some(&error));
                Err(error)
            }
        }
    }

    fn run_to_end(&mut self, total_steps: usize) -> Result<(), TrainError> {
        tell_the_plan(self.config, &mut self.trainer, &self.loader, total_steps);
        if let Some(on_start) = self.watch.on_start.take() {
            on_start();
        }
        let mut progress = ProgressReport::new(
            total_steps,
            self.trainer.num_steps(),
            self.watch.progress_bar,
        );
        if self.config.run.resume.is_none() {
            self.sample(&progress)?;
        }
        let mut speed = Speedometer::default();
        while self.trainer.num_steps() < total_steps && !self.has_lost_patience() {
            let done = self.step(total_steps, &mut progress, &mut speed)?;
            if done.is_break() {
                break;
            }
        }
        match self.trainer.num_steps() == total_steps {
            true => progress.bar.finish(),
            false => progress.bar.abandon(),
        }
        if self.summary.stopped.is_none() {
            self.summary.stopped_early = self.trainer.num_steps() < total_steps;
            self.on_device(self.trainer.num_steps(), Self::write_result)?;
            self.sample(&progress)?;
        }
        if let Some(warning) = self.grpo.as_ref().and_then(Grpo::last_warning) {
            warn!("{warning}");
        }
        Ok(())
    }

    /// One optimizer step, and what is due after it. `Break` where the run stops before its end.
    fn step(
        &mut self,
        total_steps: usize,
        progress: &mut ProgressReport,
        speed: &mut Speedometer,
    ) -> Result<ControlFlow<()>, TrainError> {
        let settings = &self.config.run;
        let before = self.loader.state();
        let mut batch = match self.next_batch() {
            Ok(batch) => batch,
            Err(error) => return Err(self.stop_at(before, error)),
        };
        let step = self.trainer.num_steps() + 1;
        let output = match self.on_device(step, |run| run.optimize(&mut batch)) {
            Err(error @ TrainError::Reward(_)) => return Err(self.stop_at(before, error)),
            Err(TrainError::Stopped) if step > 1 => {
                self.summary.stopped = Some(self.save_checkpoint(before)?);
                return Ok(ControlFlow::Break(()));
            }
            output => output?,
        };
        let mut last = step == total_steps;
        speed.add(batch.num_tokens());
        self.summary.num_tokens += batch.num_tokens();
        self.state.num_input_tokens_seen += batch.num_tokens();
        progress.bar.set_position(step as u64);
        let pause = Instant::now();
        let sources = std::mem::take(&mut batch.sources);
        self.checks.add(step, output.clone(), sources);
        let logs = step.is_multiple_of(settings.log_steps) || last;
        let reads_all = !is_gpu(&self.trainer.device());
        let is_first = self.summary.first_loss.is_none();
        let is_read = reads_all || logs || is_first || progress.is_due(step);
        let read = match is_read || self.checks.is_due() {
            true => self.on_device(step, Self::read_checks)?,
            false => None,
        };
        if is_first {
            self.summary.first_loss = read.as_ref().map(|read| read.means.loss);
            self.summary.first_reward = output.method_metrics.get("reward").copied();
        }
        if let Some(numbers) = read.filter(|_| logs || progress.is_due(step)) {
            let logged = LoggedStep {
                batch: &batch,
                output: &output,
                numbers,
                tokens_per_second: speed.take(),
                is_metric: logs,
            };
            self.on_device(step, |run| {
                run.log(&logged, progress);
                Ok(())
            })?;
        }
        let mut is_new_best = false;
        if is_due(settings.eval_steps, step) || last {
            let is_best = match self.on_device(step, |run| run.evaluate(&batch, progress)) {
                Err(error @ TrainError::Reward(_)) => return Err(self.end_unjudged(error)),
                is_best => is_best?,
            };
            is_new_best = is_best && settings.load_best;
            last |= self.has_lost_patience();
        }
        if !last && self.samples_are_due(step) {
            self.sample(progress)?;
        }
        self.is_broken |= self.report(&batch, &output, total_steps)?.is_break();
        let is_told = (self.watch.stop).is_some_and(|stop| stop.load(Ordering::Relaxed));
        let can_go_on = self.grpo.as_ref().is_none_or(Grpo::is_at_start);
        let stops = !last && can_go_on && (self.is_broken || is_told);
        // The last weights are the result as they are.
        if stops || (is_new_best && !last) || is_due(settings.save_steps, step) {
            self.on_device(step, |run| run.write_checkpoint(is_new_best, stops))?;
        }
        speed.pause(pause);
        Ok(match stops {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    }

    /// Does what the device takes part in, at a step.
    fn on_device<T>(
        &mut self,
        step: usize,
        work: impl FnOnce(&mut Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let (device, output) = (self.trainer.device(), &self.config.run.output);
        let what = || (format!("step {step}"), newest_checkpoint(output));
        guard(&device, what, || work(self))
    }

    /// Writes a checkpoint. One that cannot be written ends the run only where it `stops` with it.
    fn write_checkpoint(&mut self, is_new_best: bool, stops: bool) -> Result<(), TrainError> {
        self.check_before_writing()?;
        match self.save(is_new_best) {
            Ok(checkpoint) => {
                if let Some(on_checkpoint) = &mut self.watch.on_checkpoint {
                    on_checkpoint(&checkpoint);
                }
                self.summary.stopped = stops.then_some(checkpoint);
            }
            Err(error) if stops => return Err(self.keep_elsewhere(error, DType::F32)),
            Err(error) => warn!(
                "step {}: no checkpoint could be written, and the run goes on: {error}",
                self.trainer.num_steps()
            ),
        }
        Ok(())
    }

    /// Writes what was trained, or with `--load-best` the best checkpoint of it.
    fn write_result(&mut self) -> Result<(), TrainError> {
        self.check_before_writing()?;
        let dtype = self.weights.dtype();
        let saved = self.go_back_to_best().and_then(|()| {
            let output = &self.config.run.output;
            self.weights.save(&self.trainer.model, output, dtype)
        });
        saved.map_err(|error| self.keep_elsewhere(error, dtype))
    }

    /// Ends a run whose evaluation got no rewards. Where these decide, or answers are to be learnt further, a run that goes on must not
    /// begin behind this step: there is no checkpoint of it.
    fn end_unjudged(&mut self, error: TrainError) -> TrainError {
        let settings = &self.config.run;
        let decides = settings.load_best || settings.early_stopping_patience.is_some();
        let is_at_start = self.grpo.as_ref().is_none_or(Grpo::is_at_start);
        if is_at_start && !decides {
            return self.stop_at(self.loader.state(), error);
        }
        match newest_checkpoint(&settings.output) {
            Some(checkpoint) => warn!(
                "the evaluation of this step is needed: --resume goes on from {}, and comes to it again",
                checkpoint.display()
            ),
            None => warn!("there is no checkpoint to go on from (--save-steps writes some)"),
        }
        error
    }

    /// Ends a run whose data cannot be read on, with a checkpoint of the steps that were done.
    fn stop_at(&mut self, loader: LoaderState, error: TrainError) -> TrainError {
        if self.trainer.num_steps() > 0 {
            match self.save_checkpoint(loader) {
                Ok(checkpoint) => warn!("the steps so far are kept in {}", checkpoint.display()),
                Err(error) => warn!("no checkpoint could be written: {error}"),
            }
        }
        error
    }

    /// What was learnt must not be lost with the disk that it was to be written to.
    fn keep_elsewhere(&self, error: TrainError, dtype: DType) -> TrainError {
        if self.watch.only_in_output {
            return error;
        }
        let output = &self.config.run.output;
        TrainError::Result {
            error: Box::new(error),
            kept: self
                .weights
                .save_elsewhere(&self.trainer.model, output, dtype),
        }
    }

    fn read_checks(&mut self) -> Result<Option<StepNumbers>, TrainError> {
        let vocab = self.trainer.model.config.vocab_size;
        self.checks
            .read(vocab)
            .map_err(|broken| self.broken(broken))
    }

    fn broken(&self, broken: Broken) -> TrainError {
        broken.into_error(self.config)
    }

    /// Refuses to write anything that has a number which is none.
    fn check_before_writing(&mut self) -> Result<(), TrainError> {
        self.read_checks()?;
        match broken_weight(&mut self.trainer) {
            Some(name) => {
                let step = self.trainer.num_steps();
                Err(self.broken(self.checks.broken_weight_after(step, &name)))
            }
            None => Ok(()),
        }
    }

    /// Tells the caller of the step that was taken.
    fn report(
        &mut self,
        batch: &StepBatch,
        output: &StepOutput,
        total_steps: usize,
    ) -> Result<ControlFlow<()>, TrainError> {
        let step = self.trainer.num_steps();
        if self.watch.on_step.is_none() {
            return Ok(ControlFlow::Continue(()));
        }
        let numbers = self.on_device(step, |_| Ok(output.numbers()))?;
        let Some(on_step) = &mut self.watch.on_step else {
            return Ok(ControlFlow::Continue(()));
        };
        Ok(on_step(&StepReport {
            step,
            total_steps,
            epoch: batch.epoch,
            loss: numbers.means.loss,
            grad_norm: numbers.grad_norm,
            learning_rate: output.learning_rate,
            num_tokens: batch.num_tokens(),
        }))
    }

    /// Writes a step to the metrics (where that is asked for), the bar and the log.
    fn log(&mut self, logged: &LoggedStep<'_>, progress: &mut ProgressReport) {
        let LoggedStep {
            batch,
            output,
            numbers: StepNumbers { means, grad_norm },
            tokens_per_second,
            is_metric,
        } = *logged;
        let record = Record {
            loss: Some(means.loss),
            mean_token_accuracy: Some(means.token_accuracy).filter(|part| part.is_finite()),
            entropy: Some(means.entropy),
            more: output.method_metrics.clone(),
            num_tokens: Some(self.state.num_input_tokens_seen),
            learning_rate: Some(output.learning_rate),
            grad_norm: Some(grad_norm),
            tokens_per_second: Some(tokens_per_second),
            ..self.record(batch)
        };
        progress.tell(&record);
        if is_metric {
            self.summary.last_loss = Some(means.loss);
            self.summary.last_reward = record.more.get("reward").copied();
            self.write(&record);
        }
    }

    /// Writes a record to the metrics, and keeps it for the checkpoints.
    fn write(&mut self, record: &Record) {
        if let Ok(line) = serde_json::value::to_raw_value(record) {
            self.metrics.write(record, line.get());
            self.state.log_history.push(line);
        }
        if let Some(on_record) = &mut self.watch.on_record {
            on_record(record);
        }
    }

    fn record(&self, batch: &StepBatch) -> Record {
        Record {
            step: self.trainer.num_steps(),
            epoch: batch.epoch,
            peak_memory: peak_memory(),
            device_memory: used_memory(&self.trainer.device()),
            elapsed: self.started.elapsed().as_secs_f64(),
            ..Record::default()
        }
    }
}

/// Memory of a card in use, in bytes, by all programs; `None` where it does not tell, and for a CPU.
fn used_memory(device: &Device) -> Option<u64> {
    device_memory(device).map(|memory| memory.total - memory.free)
}

/// Whether something that is done every so many steps is due after `step`.
fn is_due(every: Option<usize>, step: usize) -> bool {
    every.is_some_and(|every| step.is_multiple_of(every))
}
