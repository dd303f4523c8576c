//! What a run does where nothing else is said.

use std::path::PathBuf;

use lora_4bit::ComputeDtype;
use model_qwen::Dtype;

use super::{
    ALL_LINEAR, AllReduce, Config, DataConfig, GradientCheckpointing, GrpoOptions, InitLora,
    LoraOptions, LrSchedule, MemoryOptions, MethodConfig, ModelConfig, Optim, OptimizerConfig,
    RunConfig, SampleOptions, Thinking, TrainOn,
};

impl Config {
    /// A LoRA run of the bundled model in NF4 that writes to the folder `output`. Set what should be otherwise; a run checks it
    /// with [`Self::check`].
    ///
    /// ```
    /// let mut config = trainer_sft::config::Config::new("adapters/captain");
    /// config.model.model = Some("Qwen/Qwen2.5-0.5B-Instruct".to_owned());
    /// config.run.max_steps = Some(20);
    /// config.check()?;
    /// # Ok::<(), trainer_sft::config::ConfigError>(())
    /// ```
    pub fn new(output: impl Into<PathBuf>) -> Self {
        Self {
            model: ModelConfig::default(),
            method: MethodConfig::default(),
            data: DataConfig::default(),
            lora: LoraOptions::default(),
            optimizer: OptimizerConfig::default(),
            run: RunConfig {
                output: output.into(),
                ..RunConfig::default()
            },
            samples: SampleOptions::default(),
            grpo: GrpoOptions::default(),
            memory: MemoryOptions::default(),
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            model: None,
            init_config: None,
            tokenizer: None,
            quantization: None,
            double_quant: true,
            dtype: Dtype::Auto,
            compute_dtype: ComputeDtype::Auto,
            device: "auto".into(),
            devices: Vec::new(),
            all_reduce: AllReduce::Auto,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            eval: Vec::new(),
            eval_split: None,
            columns: Vec::new(),
            strict: false,
            streaming: false,
            max_length: 1024,
            packing: false,
            train_on: TrainOn::Assistant,
            thinking: Thinking::Keep,
        }
    }
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            r: 16,
            alpha: 32.0,
            dropout: None,
            target_modules: vec![ALL_LINEAR.into()],
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
            init: InitLora::Uniform,
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            optim: Optim::Adamw,
            learning_rate: None,
            lr_schedule: LrSchedule::Cosine,
            warmup_ratio: 0.03,
            warmup_steps: None,
            min_lr: None,
            min_lr_rate: None,
            lr_power: None,
            lr_decay_steps: None,
            loraplus_lr_ratio: None,
            neftune_noise_alpha: None,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            gradient_checkpointing: GradientCheckpointing::Auto,
            offload_activations: false,
        }
    }
}

impl Default for RunConfig {
    /// Everything but the output folder, which has to be set.
    fn default() -> Self {
        Self {
            output: PathBuf::new(),
            numbered: false,
            full: false,
            epochs: None,
            max_steps: None,
            batch_size: 4,
            batch_size_auto: false,
            gradient_accumulation: 1,
            seed: 42,
            save_steps: None,
            log_steps: 1,
            save_total_limit: None,
            eval_steps: None,
            load_best: false,
            early_stopping_patience: None,
            early_stopping_threshold: None,
            report_to: Vec::new(),
            logging_dir: None,
            resume: None,
            resume_anyway: false,
            adapter: None,
            preview: None,
        }
    }
}
