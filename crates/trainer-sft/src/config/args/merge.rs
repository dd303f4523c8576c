//! Flags over file.

use std::path::PathBuf;

use super::Args;
use crate::config::{LrSchedule, Method, MethodConfig, NO_REPORT};

impl Args {
    /// The method and its settings, as far as they are given.
    pub(in crate::config) fn method_config(&self) -> MethodConfig {
        MethodConfig {
            method: self.method.unwrap_or_default(),
            beta: self.beta,
            loss_type: self.loss_type,
            label_smoothing: self.label_smoothing,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
            ref_adapter: self.ref_adapter.clone(),
        }
    }

    /// A file's settings of GRPO are none of another method.
    fn without_grpo(self) -> Self {
        Self {
            num_generations: None,
            temperature: None,
            max_completion_length: None,
            num_iterations: None,
            epsilon: None,
            epsilon_high: None,
            scale_rewards: None,
            reward: Vec::new(),
            reward_url: Vec::new(),
            reward_weights: Vec::new(),
            reward_timeout: None,
            ..self
        }
    }

    /// These settings where given, `file`'s otherwise.
    pub(crate) fn over(self, file: Self) -> Self {
        // The file's settings of another schedule are no settings of this one.
        let changed = (self.lr_schedule).filter(|own| file.lr_schedule != Some(*own));
        let fits = |has: fn(LrSchedule) -> bool| changed.is_none_or(has);
        let is_none = self.report_to == [NO_REPORT];
        let is_given = self.method.is_some();
        let method = self.method_config().over(file.method_config(), is_given);
        let has_changed = self.method.is_some_and(|own| own != Method::Grpo);
        let file = match has_changed && file.method == Some(Method::Grpo) {
            true => file.without_grpo(),
            false => file,
        };
        let list = |own: Vec<PathBuf>, other| if own.is_empty() { other } else { own };
        Self {
            config: None,
            data: list(self.data, file.data),
            // A flag wins over the file's other way of saying the same.
            eval_split: match self.eval_data.is_empty() {
                true => self.eval_split.or(file.eval_split),
                false => self.eval_split,
            },
            eval_data: match (self.eval_data.is_empty(), self.eval_split) {
                (true, Some(_)) => Vec::new(),
                _ => list(self.eval_data, file.eval_data),
            },
            columns: if self.columns.is_empty() {
                file.columns
            } else {
                self.columns
            },
            strict: self.strict.or(file.strict),
            streaming: self.streaming.or(file.streaming),
            max_length: self.max_length.or(file.max_length),
            packing: self.packing.or(file.packing),
            train_on: self.train_on.or(file.train_on),
            thinking: self.thinking.or(file.thinking),
            preview: self.preview,
            model: self.model.or(file.model),
            quantization: self.quantization.or(file.quantization),
            double_quant: self.double_quant.or(file.double_quant),
            no_double_quant: false,
            dtype: self.dtype.or(file.dtype),
            compute_dtype: self.compute_dtype.or(file.compute_dtype),
            device: self.device.or(file.device),
            full: self.full.or(file.full),
            init_config: self.init_config.or(file.init_config),
            tokenizer: self.tokenizer.or(file.tokenizer),
            method: self.method.or(file.method),
            beta: method.beta,
            loss_type: method.loss_type,
            label_smoothing: method.label_smoothing,
            desirable_weight: method.desirable_weight,
            undesirable_weight: method.undesirable_weight,
            ref_adapter: method.ref_adapter,
            lora_r: self.lora_r.or(file.lora_r),
            lora_alpha: self.lora_alpha.or(file.lora_alpha),
            lora_dropout: self.lora_dropout.or(file.lora_dropout),
            target_modules: if self.target_modules.is_empty() {
                file.target_modules
            } else {
                self.target_modules
            },
            use_rslora: self.use_rslora.or(file.use_rslora),
            use_dora: self.use_dora.or(file.use_dora),
            init_lora_weights: self.init_lora_weights.or(file.init_lora_weights),
            modules_to_save: match self.modules_to_save.is_empty() {
                true => file.modules_to_save,
                false => self.modules_to_save,
            },
            optim: self.optim.or(file.optim),
            learning_rate: self.learning_rate.or(file.learning_rate),
            lr_schedule: self.lr_schedule.or(file.lr_schedule),
            warmup_steps: match self.warmup_ratio {
                Some(_) => self.warmup_steps,
                None => self.warmup_steps.or(file.warmup_steps),
            },
            warmup_ratio: self.warmup_ratio.or(file.warmup_ratio),
            min_lr: match self.min_lr_rate {
                Some(_) => self.min_lr,
                None => self
                    .min_lr
                    .or(file.min_lr.filter(|_| fits(LrSchedule::has_min_lr))),
            },
            min_lr_rate: match self.min_lr {
                Some(_) => self.min_lr_rate,
                None => self
                    .min_lr_rate
                    .or(file.min_lr_rate.filter(|_| fits(LrSchedule::has_min_lr))),
            },
            lr_power: self
                .lr_power
                .or(file.lr_power.filter(|_| fits(LrSchedule::has_power))),
            lr_decay_steps: self.lr_decay_steps.or(file
                .lr_decay_steps
                .filter(|_| fits(LrSchedule::has_decay_steps))),
            loraplus_lr_ratio: self.loraplus_lr_ratio.or(file.loraplus_lr_ratio),
            neftune_noise_alpha: self.neftune_noise_alpha.or(file.neftune_noise_alpha),
            weight_decay: self.weight_decay.or(file.weight_decay),
            max_grad_norm: self.max_grad_norm.or(file.max_grad_norm),
            max_steps: match self.epochs {
                Some(_) => self.max_steps,
                None => self.max_steps.or(file.max_steps),
            },
            epochs: self.epochs.or(file.epochs),
            batch_size: self.batch_size.or(file.batch_size),
            gpu_memory_utilization: (self.gpu_memory_utilization).or(file.gpu_memory_utilization),
            device_memory: self.device_memory.or(file.device_memory),
            dry_run: self.dry_run,
            gradient_accumulation: self.gradient_accumulation.or(file.gradient_accumulation),
            gradient_checkpointing: self.gradient_checkpointing.or(file.gradient_checkpointing),
            seed: self.seed.or(file.seed),
            output: self.output.or(file.output),
            save_steps: self.save_steps.or(file.save_steps),
            log_steps: self.log_steps.or(file.log_steps),
            save_total_limit: self.save_total_limit.or(file.save_total_limit),
            eval_steps: self.eval_steps.or(file.eval_steps),
            load_best: self.load_best.or(file.load_best),
            early_stopping_patience: self
                .early_stopping_patience
                .or(file.early_stopping_patience),
            early_stopping_threshold: self
                .early_stopping_threshold
                .or(file.early_stopping_threshold),
            report_to: match self.report_to.is_empty() {
                true => file.report_to,
                false => self.report_to,
            },
            logging_dir: self.logging_dir.or(file.logging_dir.filter(|_| !is_none)),
            sample_prompts: self.sample_prompts.or(file.sample_prompts),
            sample_steps: self.sample_steps.or(file.sample_steps),
            sample_max_tokens: self.sample_max_tokens.or(file.sample_max_tokens),
            num_generations: self.num_generations.or(file.num_generations),
            temperature: self.temperature.or(file.temperature),
            max_completion_length: self.max_completion_length.or(file.max_completion_length),
            num_iterations: self.num_iterations.or(file.num_iterations),
            epsilon: self.epsilon.or(file.epsilon),
            epsilon_high: self.epsilon_high.or(file.epsilon_high),
            scale_rewards: self.scale_rewards.or(file.scale_rewards),
            reward: match self.reward.is_empty() {
                true => file.reward,
                false => self.reward,
            },
            reward_url: match self.reward_url.is_empty() {
                true => file.reward_url,
                false => self.reward_url,
            },
            reward_weights: match self.reward_weights.is_empty() {
                true => file.reward_weights,
                false => self.reward_weights,
            },
            reward_timeout: self.reward_timeout.or(file.reward_timeout),
            resume: self.resume,
            resume_anyway: self.resume_anyway,
            adapter: self.adapter.or(file.adapter),
        }
    }
}
