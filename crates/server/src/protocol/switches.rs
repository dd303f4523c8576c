//! Switches in the forms that clients write.

use model_qwen::json_type;
use serde_json::Value;

use crate::error::ApiError;

/// A switch in the forms that pydantic takes.
pub(crate) fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
        Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// A switch inside of a field; null says what its absence says.
///
/// # Errors
/// 400 with the field if it is none.
pub(crate) fn switch(param: &str, value: Option<&Value>) -> Result<Option<bool>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match boolean(value) {
            Some(on) => Ok(Some(on)),
            None => Err(ApiError::expected(param, "a boolean", json_type(value))),
        },
    }
}
