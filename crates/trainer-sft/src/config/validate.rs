//! What the settings of a run may be, and which of them exclude each other.

use lora_4bit::ComputeDtype;
use lora_4bit::peft::SAVABLE;
use model_qwen::{Quantization, linear_names};

use super::error::ConfigError;
use super::ranges::{MAX_BATCH, MAX_RANK, at_least, in_range, positive, whole_in_range};
use super::{Columns, Config, GradientCheckpointing, LrSchedule, Method, NO_REPORT, TENSORBOARD};

/// The value of `--target-modules` that means every linear layer but the output head.
pub const ALL_LINEAR: &str = "all-linear";

impl Config {
    /// Checks every setting's range, and that no two exclude each other. Messages name the settings as the command line does:
    /// `--lora-r` is [`LoraOptions::r`](super::LoraOptions::r).
    ///
    /// # Errors
    /// The first setting that is out of range or excluded by another one.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self {
            model,
            // Checked by functions of their own.
            method: _,
            samples: _,
            grpo: _,
            data,
            lora,
            optimizer,
            run,
            memory: _,
        } = self;
        if model.compute_dtype == ComputeDtype::Bits16 {
            return Err(ConfigError::Value {
                flag: "compute-dtype",
                expected: "f32, bf16 or auto".into(),
                found: format!("{:?}", model.compute_dtype).to_lowercase(),
            });
        }
        at_least("max-length", data.max_length, 2)?;
        Columns::parse(&data.columns)?
            .check_parts(self.method.method, |part| self.grpo.is_about(part))?;
        whole_in_range("lora-r", lora.r, 1, MAX_RANK)?;
        positive("lora-alpha", lora.alpha)?;
        in_range("lora-dropout", lora.dropout(), 0.0, 0.99)?;
        check_target_modules(&lora.target_modules)?;
        let savable = SAVABLE.map(|(name, _)| name);
        let unknown = |name: &&String| !savable.contains(&name.as_str());
        if let Some(name) = lora.modules_to_save.iter().find(unknown) {
            return Err(ConfigError::Value {
                flag: "modules-to-save",
                expected: format!("a list of {}", savable.join(", ")),
                found: format!("`{name}`"),
            });
        }
        positive("learning-rate", self.learning_rate())?;
        in_range("warmup-ratio", optimizer.warmup_ratio, 0.0, 1.0)?;
        self.check_schedule()?;
        self.check_method()?;
        positive(
            "loraplus-lr-ratio",
            optimizer.loraplus_lr_ratio.unwrap_or(1.0),
        )?;
        positive(
            "neftune-noise-alpha",
            optimizer.neftune_noise_alpha.unwrap_or(1.0),
        )?;
        in_range("weight-decay", optimizer.weight_decay, 0.0, 10.0)?;
        in_range("max-grad-norm", optimizer.max_grad_norm, 0.0, 1e9)?;
        positive("epochs", self.epochs())?;
        self.check_memory()?;
        self.check_devices()?;
        if self.method.method == Method::Grpo {
            // Before the batch, whose size they are by default.
            self.check_grpo_ranges()?;
        }
        whole_in_range("batch-size", run.batch_size, 1, MAX_BATCH)?;
        whole_in_range(
            "gradient-accumulation",
            run.gradient_accumulation,
            1,
            MAX_BATCH,
        )?;
        at_least("log-steps", run.log_steps, 1)?;
        for (flag, value) in [
            ("max-steps", run.max_steps),
            ("save-steps", run.save_steps),
            ("eval-steps", run.eval_steps),
            ("save-total-limit", run.save_total_limit),
            ("early-stopping-patience", run.early_stopping_patience),
            ("lr-decay-steps", optimizer.lr_decay_steps),
            ("preview", run.preview),
        ] {
            at_least(flag, value.unwrap_or(1), 1)?;
        }
        let threshold = run.early_stopping_threshold.unwrap_or(0.0);
        in_range("early-stopping-threshold", threshold, 0.0, 1e9)?;
        if let Some(part) = data.eval_split
            && !(part > 0.0 && part < 1.0)
        {
            return Err(ConfigError::Value {
                flag: "eval-split",
                expected: "a number between 0 and 1".into(),
                found: part.to_string(),
            });
        }
        check_report_to(&run.report_to, run.logging_dir.is_some())?;
        if run.output.as_os_str().is_empty() {
            return Err(ConfigError::Value {
                flag: "output",
                expected: "a folder".into(),
                found: "an empty path".into(),
            });
        }
        self.check_samples()?;
        self.check_grpo()?;
        self.check_conflicts()
    }

    /// Checks that data is there: records that a program has in memory, or files.
    ///
    /// # Errors
    /// Nothing to learn, nothing to evaluate on where that is asked for, or records that should be read from files.
    pub(crate) fn check_data(&self, has_records: bool, has_eval: bool) -> Result<(), ConfigError> {
        if !has_records && self.data.train.is_empty() {
            return Err(match &self.run.resume {
                Some(path) => ConfigError::NoSettings { path: path.clone() },
                None => ConfigError::NoData,
            });
        }
        if has_records && self.data.streaming {
            let text = "--streaming reads files while the run goes on, and the records of a program are in memory before it: leave it out";
            return Err(ConfigError::Conflict(text.into()));
        }
        let has_eval = has_eval || !self.data.eval.is_empty();
        if self.data.eval_split.is_some() && has_eval {
            let text = "--eval-split takes the evaluation data from --data, and --eval-data reads its own: leave one of them out";
            return Err(ConfigError::Conflict(text.into()));
        }
        if self.run.eval_steps.is_some() && !has_eval && self.data.eval_split.is_none() {
            return Err(ConfigError::NoEvalData);
        }
        Ok(())
    }

    /// The settings as a file for `--config`, without the folder they were written to.
    pub fn to_toml(&self) -> String {
        // A table of strings, numbers, lists and booleans always has a TOML form.
        toml::to_string(self).unwrap_or_default()
    }
}

impl Config {
    /// The settings of a schedule: in range, there where it needs them, and not there where it has none.
    fn check_schedule(&self) -> Result<(), ConfigError> {
        use LrSchedule::{CosineWithMinLr, WarmupStableDecay};
        let optimizer = &self.optimizer;
        let kind = optimizer.lr_schedule;
        let name = clap::ValueEnum::to_possible_value(&kind);
        let name = name.map_or_else(String::new, |value| value.get_name().to_owned());
        for (flag, is_given, is_used) in [
            ("min-lr", optimizer.min_lr.is_some(), kind.has_min_lr()),
            (
                "min-lr-rate",
                optimizer.min_lr_rate.is_some(),
                kind.has_min_lr(),
            ),
            ("lr-power", optimizer.lr_power.is_some(), kind.has_power()),
            (
                "lr-decay-steps",
                optimizer.lr_decay_steps.is_some(),
                kind.has_decay_steps(),
            ),
        ] {
            if is_given && !is_used {
                return Err(ConfigError::Conflict(format!(
                    "--{flag} would have no effect: the --lr-schedule {name} has no such setting; leave it out"
                )));
            }
        }
        let needs = |what: &str| {
            let text = format!("--lr-schedule {name} needs {what}");
            Err(ConfigError::Conflict(text))
        };
        match (optimizer.min_lr, optimizer.min_lr_rate) {
            (Some(_), Some(_)) => {
                let text = "--min-lr and --min-lr-rate say the same: leave one of them out";
                return Err(ConfigError::Conflict(text.into()));
            }
            (None, None) if kind == CosineWithMinLr => return needs("--min-lr or --min-lr-rate"),
            _ => {}
        }
        if kind == WarmupStableDecay && optimizer.lr_decay_steps.is_none() {
            return needs("--lr-decay-steps");
        }
        positive("lr-power", optimizer.lr_power.unwrap_or(1.0))?;
        let peak = self.learning_rate();
        for (flag, value, limit) in [
            ("min-lr", optimizer.min_lr, peak),
            ("min-lr-rate", optimizer.min_lr_rate, 1.0),
        ] {
            if let Some(value) = value
                && !(0.0..limit).contains(&value)
            {
                return Err(ConfigError::Value {
                    flag,
                    expected: format!("a number from 0 to below {limit}"),
                    found: value.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Checks that a run of `total_steps` has room for the last stage of its schedule.
    ///
    /// # Errors
    /// When warm-up and decay together take more steps.
    pub(crate) fn check_steps(&self, total_steps: usize) -> Result<(), ConfigError> {
        let warmup = self.optimizer.num_warmup_steps(total_steps);
        let left = total_steps.saturating_sub(warmup);
        match self.optimizer.lr_decay_steps {
            Some(decay) if decay > left => Err(ConfigError::Value {
                flag: "lr-decay-steps",
                expected: format!(
                    "at most {left}, the steps after a warm-up of {warmup} in a run of {total_steps}"
                ),
                found: decay.to_string(),
            }),
            _ => Ok(()),
        }
    }

    fn check_conflicts(&self) -> Result<(), ConfigError> {
        let (model, run) = (&self.model, &self.run);
        let init = model.init_config.is_some();
        let conflict = |text: &str| Err(ConfigError::Conflict(text.into()));
        if run.full && model.quantization == Some(Quantization::Nf4) {
            return conflict(
                "--full trains every weight, and 4-bit weights cannot be trained: leave --quantization out, or leave --full out to train a LoRA adapter on the 4-bit model",
            );
        }
        if run.full && self.optimizer.loraplus_lr_ratio.is_some() {
            return conflict(
                "--loraplus-lr-ratio would have no effect: --full trains the model itself and makes no adapter; leave it out",
            );
        }
        if self.optimizer.offload_activations
            && let GradientCheckpointing::False | GradientCheckpointing::Layers(_) =
                self.optimizer.gradient_checkpointing
        {
            return conflict(
                "--offload-activations moves what gradient checkpointing keeps, and --gradient-checkpointing false, or with a number, keeps activations on the device: leave one of them out",
            );
        }
        let start = self.lora.init;
        if start.changes_base() && !run.full {
            if self.quantization() != Quantization::None {
                return conflict(&format!(
                    "--init-lora-weights {start} takes a part out of the weights, and 4-bit weights would not be the same without it: add --quantization none"
                ));
            }
            if self.lora.use_dora {
                return conflict(&format!(
                    "--init-lora-weights {start} and --use-dora exclude each other: the adapter would have no plain form; leave one of them out"
                ));
            }
        }
        if init && !run.full {
            return conflict(
                "--init-config starts from random weights, which an adapter cannot repair: add --full",
            );
        }
        if init && model.model.is_some() {
            return conflict(
                "--init-config and --model exclude each other: the weights are either random or read from a model",
            );
        }
        if init && model.tokenizer.is_none() {
            return conflict(
                "--init-config needs --tokenizer FOLDER: the folder that has tokenizer.json and the chat template",
            );
        }
        if run.full && run.adapter.is_some() {
            return conflict(
                "--adapter goes on with an adapter, and --full trains the model itself: leave one of them out",
            );
        }
        if run.resume.is_some() && run.adapter.is_some() {
            return conflict(
                "--resume goes on with a run, and --adapter starts a new one from its result: leave one of them out",
            );
        }
        if run.resume_anyway && run.resume.is_none() {
            return conflict("--resume-anyway needs --resume: the run or checkpoint to go on from");
        }
        if self.data.streaming && self.data.eval_split.is_some() {
            return conflict(
                "--eval-split draws from all records, and --streaming does not know them before the run: give --eval-data instead",
            );
        }
        for (flag, is_given) in [
            (
                "early-stopping-patience",
                run.early_stopping_patience.is_some(),
            ),
            ("load-best", run.load_best),
        ] {
            if is_given && run.eval_steps.is_none() {
                let text =
                    format!("--{flag} needs --eval-steps: it compares the evaluations of the run");
                return conflict(&text);
            }
        }
        if run.early_stopping_threshold.is_some() && run.early_stopping_patience.is_none() {
            return conflict("--early-stopping-threshold needs --early-stopping-patience");
        }
        if run.save_total_limit.is_some() && run.save_steps.is_none() && !run.load_best {
            return conflict(
                "--save-total-limit needs --save-steps or --load-best: no other checkpoints are written",
            );
        }
        if self.data.streaming && run.max_steps.is_none() {
            return conflict(
                "--streaming needs --max-steps: how long an epoch is is not known before the data has been read",
            );
        }
        Ok(())
    }
}

fn check_report_to(programs: &[String], has_folder: bool) -> Result<(), ConfigError> {
    let unknown = |name: &&String| *name != TENSORBOARD && *name != NO_REPORT;
    if let Some(name) = programs.iter().find(unknown) {
        let instead = match name.as_str() {
            "wandb" => {
                "; `wandb sync FOLDER` uploads the event files that --report-to tensorboard writes"
            }
            _ => "; metrics.jsonl in the output folder has every number",
        };
        return Err(ConfigError::Value {
            flag: "report-to",
            expected: "tensorboard or none".into(),
            found: format!("`{name}`{instead}"),
        });
    }
    let conflict = |text: &str| Err(ConfigError::Conflict(text.into()));
    match programs.iter().any(|name| name == NO_REPORT) {
        true if programs.len() > 1 => {
            conflict("--report-to: `none` excludes any other program: leave it out")
        }
        true if has_folder => conflict(
            "--logging-dir would have no effect: --report-to is none; leave one of them out",
        ),
        _ => Ok(()),
    }
}

fn check_target_modules(given: &[String]) -> Result<(), ConfigError> {
    let wrong = |found: String| {
        Err(ConfigError::Value {
            flag: "target-modules",
            expected: format!("`{ALL_LINEAR}` or a list of {}", linear_names().join(", ")),
            found,
        })
    };
    let unknown = |name: &&String| *name != ALL_LINEAR && !linear_names().contains(&name.as_str());
    match given.iter().find(unknown) {
        Some(name) => wrong(format!("`{name}`")),
        None if given.is_empty() => wrong("an empty list".to_owned()),
        None if given.len() > 1 && given.iter().any(|name| name == ALL_LINEAR) => wrong(format!(
            "{}, where `{ALL_LINEAR}` has the other names in it",
            given.join(",")
        )),
        None => Ok(()),
    }
}
