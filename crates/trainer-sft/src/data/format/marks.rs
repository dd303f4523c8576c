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

/// Masks over the turns or the tokens of a record, and labels of tokens.
const MASKS: [&str; 9] = [
    "mask",
    "masks",
    "loss_mask",
    "loss_masks",
    "assistant_mask",
    "assistant_masks",
    "completion_mask",
    "train_mask",
    LABELS,
];
/// Of tokens where it has the label that is not learnt, and else classes.
const LABELS: &str = "labels";
/// The label of a token that is not learnt, in PyTorch.
const NOT_LEARNT: f64 = -100.0;

/// Whether a mask, which tables have as JSON, leaves something out, or is none.
fn leaves_out(key: &str, value: &Value) -> bool {
    match value {
        Value::String(text) if key == LABELS => {
            let labels = serde_json::from_str::<Value>(text).ok();
            labels.is_some_and(|labels| labels.is_array() && leaves_out(key, &labels))
        }
        Value::Array(items) => items.iter().any(|item| leaves_out(key, item)),
        Value::Number(label) if key == LABELS => label.as_f64() == Some(NOT_LEARNT),
        _ if key == LABELS => false,
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(mask) if !mask.is_string() => leaves_out(key, &mask),
            _ => !text.trim().is_empty(),
        },
        Value::Null | Value::Bool(true) => false,
        Value::Number(mark) => mark.as_f64() != Some(1.0),
        _ => true,
    }
}

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
        // The fields that `--columns` names are all that counts.
        let masks = MASKS.iter().filter(|_| self.columns.is_empty());
        for key in masks {
            let value = self.fields.get(*key).filter(|value| is_filled(Some(value)));
            if let Some(value) = value.filter(|value| leaves_out(key, value)) {
                let expected = "none that leaves something out: mark turns with `weight`, 0 or 1, or texts in `segments` with `label`";
                return Err(self.error(*key, expected, Some(value)));
            }
        }
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
