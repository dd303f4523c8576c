//! How much memory a run may take.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, Method};

/// The memory of the device that a run may take, see [`crate::memory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MemoryOptions {
    /// Bytes that the device is taken to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<u64>,
    /// The part of it that the run may take; `None` is 0.9 of a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory_utilization: Option<f64>,
    /// Say what the run takes instead of training.
    #[serde(skip)]
    pub dry_run: bool,
}

/// `--batch-size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText")]
pub enum BatchSize {
    /// As many rows of a step as fit.
    #[serde(rename = "auto")]
    Auto,
    /// So many rows.
    #[serde(untagged)]
    Rows(usize),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a whole number, 1 or more, or \"auto\""
)]
enum NumberOrText {
    Number(usize),
    Text(String),
}

impl TryFrom<NumberOrText> for BatchSize {
    type Error = String;

    fn try_from(value: NumberOrText) -> Result<Self, String> {
        match value {
            NumberOrText::Number(rows) => Ok(Self::Rows(rows)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Rows).map_err(|_| {
                format!("expected a whole number, 1 or more, or `auto`, found `{text}`")
            }),
        }
    }
}

impl Config {
    /// Settings of memory, and what does not go with them.
    pub(super) fn check_memory(&self) -> Result<(), ConfigError> {
        let conflict = |text: &str| Err(ConfigError::Conflict(text.to_owned()));
        let fraction = self.memory.gpu_memory_utilization.unwrap_or(1.0);
        if !(fraction > 0.0 && fraction <= 1.0) {
            return conflict(&format!(
                "--gpu-memory-utilization: expected a fraction above 0 and at most 1, found {fraction}"
            ));
        }
        if self.run.batch_size_auto && self.method.method == Method::Grpo {
            return conflict(
                "--batch-size auto: with --method grpo the batch is the answers to a prompt: give a number, or leave it out",
            );
        }
        if self.memory.dry_run && self.run.preview.is_some() {
            return conflict("--dry-run and --preview each show something else: give one of them");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_size_is_a_number_or_auto() {
        assert_eq!("auto".parse(), Ok(BatchSize::Auto));
        assert_eq!(" 8".parse(), Ok(BatchSize::Rows(8)));
        assert!(
            "-1".parse::<BatchSize>()
                .unwrap_err()
                .contains("`auto`, found `-1`")
        );
        let of =
            |text: &str| serde_json::from_str::<BatchSize>(text).map_err(|error| error.to_string());
        assert_eq!(of("\"auto\""), Ok(BatchSize::Auto));
        assert_eq!(of("3"), Ok(BatchSize::Rows(3)));
        assert!(of("\"many\"").unwrap_err().contains("`auto`"));
        assert!(of("1.5").unwrap_err().contains("whole number"));
    }
}
