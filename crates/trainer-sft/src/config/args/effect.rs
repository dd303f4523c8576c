//! Flags that another setting makes ineffective.

use model_qwen::Quantization;

use super::Args;
use crate::config::{ConfigError, Method};

impl Args {
    /// Refuses two of these settings that say the same.
    pub(super) fn check_twice(&self) -> Result<(), ConfigError> {
        match self.training.says_twice() {
            None => Ok(()),
            Some([one, other]) => Err(ConfigError::Conflict(format!(
                "--{one} and --{other} say the same: leave one of them out"
            ))),
        }
    }

    /// Refuses these flags where another setting of the run, a flag or one of a file, makes them ineffective.
    pub(crate) fn check_effect(&self, run: &Self) -> Result<(), ConfigError> {
        let full = run.model.full == Some(true);
        let dense = full || run.model.quantization == Some(Quantization::None);
        let new_adapter = "--full trains the model itself and makes no adapter";
        let in_f32 = "--full trains weights in f32";
        let own = run.lora.adapter.is_some();
        let own_form = "the adapter of --adapter keeps its rank, alpha and layers";
        let no_blocks = "the weights are not in 4-bit blocks";
        let grpo = run.method.method == Some(Method::Grpo);
        let no_examples =
            "--method grpo learns from its own answers, of up to --max-completion-length tokens";
        for (flag, is_given, is_idle, why) in [
            ("lora-r", self.lora.lora_r.is_some(), full, new_adapter),
            (
                "lora-alpha",
                self.lora.lora_alpha.is_some(),
                full,
                new_adapter,
            ),
            (
                "lora-dropout",
                self.lora.lora_dropout.is_some(),
                full,
                new_adapter,
            ),
            (
                "target-modules",
                !self.lora.target_modules.is_empty(),
                full,
                new_adapter,
            ),
            (
                "use-rslora",
                self.lora.use_rslora.is_some(),
                full,
                new_adapter,
            ),
            ("use-dora", self.lora.use_dora.is_some(), full, new_adapter),
            (
                "init-lora-weights",
                self.lora.init_lora_weights.is_some(),
                full,
                new_adapter,
            ),
            (
                "modules-to-save",
                !self.lora.modules_to_save.is_empty(),
                full,
                new_adapter,
            ),
            ("lora-r", self.lora.lora_r.is_some(), own, own_form),
            ("lora-alpha", self.lora.lora_alpha.is_some(), own, own_form),
            (
                "target-modules",
                !self.lora.target_modules.is_empty(),
                own,
                own_form,
            ),
            ("use-rslora", self.lora.use_rslora.is_some(), own, own_form),
            ("use-dora", self.lora.use_dora.is_some(), own, own_form),
            (
                "init-lora-weights",
                self.lora.init_lora_weights.is_some(),
                own,
                own_form,
            ),
            (
                "modules-to-save",
                !self.lora.modules_to_save.is_empty(),
                own,
                own_form,
            ),
            (
                "double-quant",
                self.model.double_quant == Some(true),
                dense,
                no_blocks,
            ),
            (
                "no-double-quant",
                self.model.no_double_quant,
                dense,
                no_blocks,
            ),
            (
                "max-length",
                self.data.max_length.is_some(),
                grpo,
                no_examples,
            ),
            ("train-on", self.data.train_on.is_some(), grpo, no_examples),
            ("thinking", self.data.thinking.is_some(), grpo, no_examples),
            ("dtype", self.model.dtype.is_some(), full, in_f32),
            (
                "all-reduce",
                self.model.all_reduce.is_some(),
                run.model.devices.len() < 2,
                "one device has nothing to sum",
            ),
        ] {
            if is_given && is_idle {
                let text = format!("--{flag} would have no effect: {why}; leave it out");
                return Err(ConfigError::Conflict(text));
            }
        }
        Ok(())
    }
}
