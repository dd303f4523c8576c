//! Marks that say whether a turn or a record is learnt: 0 and 1 are obeyed, anything else is refused.

use serde_json::{Map, Value};

use super::super::error::DataError;
use super::reader::{Reader, is_filled};

/// Marks of turns and records of OpenAI (`weight`), LLaMA-Factory (`loss_weight`), ms-swift (`loss`, `loss_scale`) and axolotl
/// (`train`, `training`, `weight`).
const MARKS: [&str; 7] = [
    "weight",
    "loss_weight",
    "loss",
    "loss_scale",
    "train",
    "training",
    "trainable",
];
/// A mark of whole records only.
const SAMPLE_WEIGHT: &str = "sample_weight";
/// What the name of an unknown mark has in it.
const LIKE_MARKS: [&str; 4] = ["weight", "loss", "train", "mask"];

/// Whether this key of a record says whether the record is learnt.
pub(super) fn is_mark_of_record(key: &str) -> bool {
    MARKS.contains(&key) || key == SAMPLE_WEIGHT
}

/// Whether the name of a key looks like that of a mark.
pub(super) fn is_like_mark(key: &str) -> bool {
    let key = key.to_lowercase();
    LIKE_MARKS.iter().any(|part| key.contains(part))
}

impl Reader<'_> {
    /// Takes the marks out of a turn of `role`. Says whether the turn is learnt, as far as they go.
    pub(super) fn take_marks(
        &self,
        place: &str,
        role: &str,
        turn: &mut Map<String, Value>,
    ) -> Result<bool, DataError> {
        let keys = turn.keys().filter(|key| is_like_mark(key));
        let keys: Vec<String> = keys.cloned().collect();
        let mut learnt = true;
        for key in keys {
            let value = turn.shift_remove(&key).unwrap_or_default();
            if !is_filled(Some(&value)) {
                continue;
            }
            let field = format!("{place}.{key}");
            if !MARKS.contains(&key.as_str()) {
                let expected = format!("no mark but {}, 0 or 1", MARKS.join(", "));
                return Err(self.error(field, &expected, Some(&value)));
            }
            let mark = self.mark(&field, &value)?;
            if mark && role != "assistant" {
                let expected = "0: only what the assistant says is learnt";
                return Err(self.error(field, expected, Some(&value)));
            }
            learnt &= mark;
        }
        Ok(learnt)
    }

    /// Marks of the whole record.
    pub(super) fn check_marks(&self) -> Result<(), DataError> {
        for key in MARKS.into_iter().chain([SAMPLE_WEIGHT]) {
            let Some(value) = self.fields.get(key).filter(|value| is_filled(Some(value))) else {
                continue;
            };
            if !self.mark(key, value)? {
                return Err(self.teaches_nothing(format!("`{key}` is 0")));
            }
        }
        Ok(())
    }

    /// 0 or 1, also as a boolean and as text.
    fn mark(&self, field: &str, value: &Value) -> Result<bool, DataError> {
        let number = match value {
            Value::Bool(mark) => return Ok(*mark),
            Value::String(text) => match text.trim().to_lowercase().as_str() {
                "true" => return Ok(true),
                "false" => return Ok(false),
                text => text.parse().ok(),
            },
            value => value.as_f64(),
        };
        match number {
            Some(1.0) => Ok(true),
            Some(0.0) => Ok(false),
            _ => Err(self.error(field, "0 or 1", Some(value))),
        }
    }
}
