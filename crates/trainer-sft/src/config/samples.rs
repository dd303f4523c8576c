//! What a run answers while it trains.

use std::path::PathBuf;

use serde::Serialize;

use super::{Config, ConfigError};

/// The most tokens of an answer where nothing else is said.
const MAX_TOKENS: usize = 128;

/// `--sample-prompts`: answers of the model before, while and after it trains.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SampleOptions {
    /// File with a prompt on each line.
    #[serde(rename = "sample_prompts")]
    pub prompts: Option<PathBuf>,
    /// Answer every so many steps; `None` is at each evaluation. Before the first step and at the end in any case.
    #[serde(rename = "sample_steps")]
    pub steps: Option<usize>,
    /// The most tokens of an answer; `None` is 128.
    #[serde(rename = "sample_max_tokens")]
    pub max_tokens: Option<usize>,
}

impl SampleOptions {
    /// The most tokens of an answer.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(MAX_TOKENS)
    }
}

impl Config {
    /// Ranges of the settings, and that they have prompts.
    pub(super) fn check_samples(&self) -> Result<(), ConfigError> {
        let samples = &self.samples;
        for (flag, value) in [
            ("sample-steps", samples.steps),
            ("sample-max-tokens", samples.max_tokens),
        ] {
            if value == Some(0) {
                return Err(ConfigError::Value {
                    flag,
                    expected: "a whole number from 1 up".into(),
                    found: "0".into(),
                });
            }
            if value.is_some() && samples.prompts.is_none() {
                return Err(ConfigError::Conflict(format!(
                    "--{flag} needs --sample-prompts: the prompts to answer"
                )));
            }
        }
        Ok(())
    }
}
