//! Ranges and contradictions that neither clap nor a type rules out.

use model_qwen::Dtype;

use super::{ApiKey, Config, ConfigError, LoraOptions, MaxModelLen};

impl Config {
    /// Checks every setting's range, and that no two contradict each other. Messages name the setting as the command line
    /// does: `--max-num-seqs` is [`Config::max_num_seqs`].
    ///
    /// # Errors
    /// [`ConfigError::Flag`].
    pub fn check(&self) -> Result<(), ConfigError> {
        for (flag, value) in [
            ("--max-num-seqs", self.max_num_seqs),
            (
                "--max-num-batched-tokens",
                self.max_num_batched_tokens.unwrap_or(1),
            ),
            ("--block-size", self.block_size),
            ("--max-num-queued-reqs", self.max_num_queued_reqs),
        ] {
            at_least_one(flag, value)?;
        }
        if let MaxModelLen::Tokens(tokens) = self.max_model_len {
            at_least_one("--max-model-len", tokens)?;
        }
        if self.kv_cache_dtype == Dtype::F16 {
            return wrong(
                "--kv-cache-dtype",
                "expected auto, float32 or bfloat16, found float16".to_owned(),
            );
        }
        if let Some(fraction) = self.memory.gpu_memory_utilization
            && !(fraction > 0.0 && fraction <= 1.0)
        {
            return wrong(
                "--gpu-memory-utilization",
                format!("expected a fraction above 0 and at most 1, found {fraction}"),
            );
        }
        if self.kv_events.is_some() && !self.enable_prefix_caching {
            return wrong(
                "--kv-events-config",
                "events tell what the prefix cache has; it is off by --no-enable-prefix-caching"
                    .to_owned(),
            );
        }
        if self.api_keys.iter().any(ApiKey::is_empty) {
            return wrong("--api-key (or VLLM_API_KEY)", "the key is empty".to_owned());
        }
        if !self.api_keys.iter().all(ApiKey::is_visible) {
            return wrong(
                "--api-key (or VLLM_API_KEY, --api-key-file)",
                "a key begins or ends with a blank, or has characters beyond ASCII, which no header carries as they are"
                    .to_owned(),
            );
        }
        if self.served_model_names.iter().any(String::is_empty) {
            return wrong("--served-model-name", "the name is empty".to_owned());
        }
        match &self.lora {
            Some(lora) => lora.check(&self.served_model_names),
            None => Ok(()),
        }
    }
}

impl LoraOptions {
    /// [`Config::check`] of these settings.
    pub(super) fn check(&self, served_model_names: &[String]) -> Result<(), ConfigError> {
        at_least_one("--max-loras", self.max_loras)?;
        at_least_one("--max-lora-rank", self.max_lora_rank)?;
        if let Some(num) = self.max_cpu_loras
            && num < self.max_loras
        {
            return wrong(
                "--max-cpu-loras",
                format!(
                    "expected at least --max-loras, {}, found {num}",
                    self.max_loras
                ),
            );
        }
        for (i, module) in self.modules.iter().enumerate() {
            if module.name.is_empty() {
                return wrong("--lora-modules", "an adapter's name is empty".to_owned());
            }
            if module.path.as_os_str().is_empty() {
                let name = &module.name;
                return wrong("--lora-modules", format!("the path of `{name}` is empty"));
            }
            let taken = self.modules[..i]
                .iter()
                .any(|other| other.name == module.name)
                || served_model_names.contains(&module.name);
            if taken {
                return wrong(
                    "--lora-modules",
                    format!("the name `{}` is given twice", module.name),
                );
            }
        }
        Ok(())
    }
}

fn at_least_one(flag: &'static str, value: usize) -> Result<(), ConfigError> {
    match value {
        0 => wrong(flag, "expected at least 1, found 0".to_owned()),
        _ => Ok(()),
    }
}

fn wrong(flag: &'static str, message: String) -> Result<(), ConfigError> {
    Err(ConfigError::Flag { flag, message })
}
