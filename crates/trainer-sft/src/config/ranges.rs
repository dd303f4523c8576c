//! Ranges of numbers.

use super::error::ConfigError;

/// Ranks of an adapter, at most: beyond it stands a typing error, and the first step takes hours.
pub(super) const MAX_RANK: usize = 16_384;
/// Examples of a batch and batches of a step, at most: their product and that with a length stay numbers.
pub(super) const MAX_BATCH: usize = 1 << 20;

pub(super) fn whole_in_range(
    flag: &'static str,
    value: usize,
    least: usize,
    most: usize,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a whole number from {least} to {most}"),
        found: value.to_string(),
    })
}

pub(super) fn at_least(flag: &'static str, value: usize, least: usize) -> Result<(), ConfigError> {
    if value >= least {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a whole number from {least} up"),
        found: value.to_string(),
    })
}

pub(super) fn positive(flag: &'static str, value: f64) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: "a number above 0".into(),
        found: value.to_string(),
    })
}

pub(super) fn in_range(
    flag: &'static str,
    value: f64,
    low: f64,
    high: f64,
) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Value {
        flag,
        expected: format!("a number from {low} to {high}"),
        found: value.to_string(),
    })
}
