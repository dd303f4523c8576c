//! The loop of a run: steps, what is written meanwhile, and the adapter (or the model) at its end.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::DType;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::batch::{DataLoader, StepBatch, sequential_batches};
use crate::checkpoint::{self, CheckpointError, TrainerState};
use crate::config::Config;
use crate::data::Example;
use crate::error::{TrainError, output_error};
use crate::metrics::{MetricsFile, Record, Speedometer, peak_memory, progress_bar};
use crate::output::Weights;
use crate::trainer::{StepOutput, Trainer};

/// What a run did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The folder with the result.
    pub output: PathBuf,
    /// The checkpoint to go on from, if the run was stopped before its end.
    pub stopped: Option<PathBuf>,
    /// Optimizer steps of the whole run.
    pub num_steps: usize,
    /// Values that were trained.
    pub num_trainable: usize,
    /// Tokens seen by this process.
    pub num_tokens: usize,
    /// First logged loss of this process.
    pub first_loss: Option<f64>,
    /// Last logged loss.
    pub last_loss: Option<f64>,
    /// Last evaluation loss.
    pub eval_loss: Option<f64>,
    /// Seconds spent in the loop.
    pub seconds: f64,
    /// Largest resident memory in bytes.
    pub peak_memory: Option<u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            num_steps,
            num_tokens,
            seconds,
            ..
        } = self;
        write!(
            formatter,
            "{num_steps} steps, {num_tokens} tokens in {seconds:.0} s"
        )?;
        if let (Some(first), Some(last)) = (self.first_loss, self.last_loss) {
            write!(formatter, "; loss {first:.3} → {last:.3}")?;
        }
        if let Some(loss) = self.eval_loss {
            write!(formatter, "; eval loss {loss:.3}")?;
        }
        if let Some(bytes) = self.peak_memory {
            write!(formatter, "; peak memory {} MiB", bytes >> 20)?;
        }
        match &self.stopped {
            Some(checkpoint) => write!(
                formatter,
                "\nStopped. To go on, give the same flags and --output {} --resume {}",
                self.output.display(),
                checkpoint.display()
            ),
            None => write!(formatter, "\nWritten to {}", self.output.display()),
        }
    }
}

/// What one optimizer step did, for the callback of [`Training::on_step`](crate::Training::on_step).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Optimizer steps done.
    pub step: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// Passes over the training data, with the fraction of the current one.
    pub epoch: f64,
    /// Mean cross-entropy per target token, in nats.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of the step, context and targets.
    pub num_tokens: usize,
}

/// What is called after each step; `Break` stops the run.
pub(crate) type OnStep<'a> = Box<dyn FnMut(&StepReport) -> ControlFlow<()> + 'a>;

/// Who looks on, and may stop the run.
#[derive(Default)]
pub(crate) struct Watch<'a> {
    /// Called after each step.
    pub(crate) on_step: Option<OnStep<'a>>,
    /// Becomes true when the run is to stop.
    pub(crate) stop: Option<&'a AtomicBool>,
    /// Whether a bar on the terminal shows the progress.
    pub(crate) progress_bar: bool,
}

/// The loop and what it writes to.
pub(crate) struct Run<'a> {
    config: &'a Config,
    watch: Watch<'a>,
    trainer: Trainer,
    loader: DataLoader,
    weights: Weights,
    eval: Vec<Example>,
    metrics: MetricsFile,
    started: Instant,
    summary: Summary,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        config: &'a Config,
        watch: Watch<'a>,
        (mut trainer, loader): (Trainer, DataLoader),
        weights: Weights,
        eval: Vec<Example>,
    ) -> Result<Self, TrainError> {
        let output = &config.run.output;
        std::fs::create_dir_all(output).map_err(output_error(output))?;
        let settings = output.join("run.toml");
        std::fs::write(&settings, config.to_toml()).map_err(output_error(&settings))?;
        let path = output.join("metrics.jsonl");
        let keep_until = config.run.resume.is_some().then(|| trainer.num_steps());
        let metrics = MetricsFile::open(&path, keep_until).map_err(output_error(&path))?;
        let num_trainable = trainer.num_trainable();
        let summary = Summary {
            output: output.clone(),
            num_trainable,
            ..Summary::default()
        };
        Ok(Self {
            config,
            watch,
            trainer,
            loader,
            weights,
            eval,
            metrics,
            started: Instant::now(),
            summary,
        })
    }

    /// Steps until `total_steps` are done, then writes the result.
    pub(crate) fn finish(mut self, total_steps: usize) -> Result<Summary, TrainError> {
        let every =
            |steps: Option<usize>, step: usize| steps.is_some_and(|n| step.is_multiple_of(n));
        let settings = &self.config.run;
        let bar = progress_bar(
            total_steps,
            self.trainer.num_steps(),
            !self.watch.progress_bar,
        );
        let mut speed = Speedometer::default();
        while self.trainer.num_steps() < total_steps {
            let batch = self.loader.next_step();
            let output = self.trainer.step(&batch.micro_batches);
            let (step, last) = (
                self.trainer.num_steps(),
                self.trainer.num_steps() == total_steps,
            );
            speed.add(batch.num_tokens());
            self.summary.num_tokens += batch.num_tokens();
            bar.set_position(step as u64);
            let pause = Instant::now();
            if step.is_multiple_of(settings.log_steps) || last {
                self.log(&batch, &output, speed.take(), &bar)?;
            }
            if every(settings.eval_steps, step) || last {
                self.evaluate(&batch, &bar)?;
            }
            let is_broken = self.report(&batch, &output, total_steps).is_break();
            let is_told = (self.watch.stop).is_some_and(|stop| stop.load(Ordering::Relaxed));
            let stops = !last && (is_broken || is_told);
            if stops || every(settings.save_steps, step) {
                let checkpoint = self.save_checkpoint(total_steps)?;
                self.summary.stopped = stops.then_some(checkpoint);
            }
            if stops {
                break;
            }
            speed.pause(pause);
        }
        if self.summary.stopped.is_some() {
            bar.abandon();
        } else {
            bar.finish();
            self.weights
                .save(&self.trainer.model, &settings.output, DType::BF16)?;
        }
        self.summary.num_steps = self.trainer.num_steps();
        self.summary.seconds = self.started.elapsed().as_secs_f64();
        self.summary.peak_memory = peak_memory();
        Ok(self.summary)
    }

    /// Tells the caller of the step that was taken.
    fn report(
        &mut self,
        batch: &StepBatch,
        output: &StepOutput,
        total_steps: usize,
    ) -> ControlFlow<()> {
        let (step, epoch) = (self.trainer.num_steps(), self.epoch(batch));
        let Some(on_step) = &mut self.watch.on_step else {
            return ControlFlow::Continue(());
        };
        let (loss, grad_norm) = output.read();
        on_step(&StepReport {
            step,
            total_steps,
            epoch,
            loss,
            grad_norm,
            learning_rate: output.learning_rate,
            num_tokens: batch.num_tokens(),
        })
    }

    fn log(
        &mut self,
        batch: &StepBatch,
        output: &StepOutput,
        speed: f64,
        bar: &ProgressBar,
    ) -> Result<(), TrainError> {
        let (loss, grad_norm) = output.read();
        let step = self.trainer.num_steps();
        if !loss.is_finite() {
            bar.abandon();
            return Err(TrainError::Diverged {
                step,
                loss,
                output: self.config.run.output.clone(),
            });
        }
        self.summary.first_loss.get_or_insert(loss);
        self.summary.last_loss = Some(loss);
        bar.set_message(format!("loss {loss:.4}  {speed:.0} tokens/s"));
        let record = Record {
            loss: Some(loss),
            learning_rate: Some(output.learning_rate),
            grad_norm: Some(grad_norm),
            tokens_per_second: Some(speed),
            ..self.record(batch)
        };
        self.write(&record)
    }

    fn evaluate(&mut self, batch: &StepBatch, bar: &ProgressBar) -> Result<(), TrainError> {
        let batches = sequential_batches(&self.eval, self.config.run.batch_size);
        let Some(loss) = self.trainer.evaluate(batches) else {
            return Ok(());
        };
        self.summary.eval_loss = Some(loss);
        bar.println(format!(
            "step {}: eval loss {loss:.4}",
            self.trainer.num_steps()
        ));
        let record = Record {
            eval_loss: Some(loss),
            ..self.record(batch)
        };
        self.write(&record)
    }

    fn save_checkpoint(&self, total_steps: usize) -> Result<PathBuf, TrainError> {
        let step = self.trainer.num_steps();
        let state = TrainerState {
            step,
            total_steps,
            seed: self.config.run.seed,
            loader: self.loader.state(),
        };
        let dir = self.config.run.output.join(format!("checkpoint-{step}"));
        checkpoint::save(&dir, &state, self.trainer.optimizer(), |folder| {
            let saved = self.weights.save(&self.trainer.model, folder, DType::F32);
            saved.map_err(|error| CheckpointError::Weights(error.to_string()))
        })?;
        Ok(dir)
    }

    /// Passes over the training data, with the fraction of the current one.
    fn epoch(&self, batch: &StepBatch) -> f64 {
        let done = self.loader.state().index as f64 / self.loader.num_rows().max(1) as f64;
        batch.epoch as f64 + done
    }

    fn record(&self, batch: &StepBatch) -> Record {
        Record {
            step: self.trainer.num_steps(),
            epoch: self.epoch(batch),
            peak_memory: peak_memory(),
            elapsed: self.started.elapsed().as_secs_f64(),
            ..Record::default()
        }
    }

    fn write(&mut self, record: &Record) -> Result<(), TrainError> {
        let path = self.metrics.path().to_path_buf();
        self.metrics.write(record).map_err(output_error(&path))
    }
}
