//! The forms that values may have.

use serde_json::{Number, Value};

use crate::protocol::switches::boolean;

/// Which forms a value may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Number,
    Boolean,
    Integers,
    Numbers,
    Booleans,
    Tokens,
    Other,
}

/// Null, an empty text, list or object.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// As [`is_empty`], or a switch that is off, or an object of nothing else.
pub(in crate::protocol) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Object(fields) => fields.values().all(says_nothing),
        other => is_empty(other),
    }
}

/// Writes a value as its kind is read. What has another kind stays as it is, and is refused where it is read.
pub(super) fn normalize(kind: Kind, value: &mut Value) {
    match (kind, &mut *value) {
        (Kind::Integer | Kind::Tokens, Value::Number(_)) | (Kind::Integer, Value::String(_)) => {
            if let Some(number) = integer(value) {
                *value = number;
            }
        }
        (Kind::Number, Value::String(text)) => {
            let number = text.trim().parse().ok().and_then(Number::from_f64);
            if let Some(number) = number {
                *value = Value::Number(number);
            }
        }
        (Kind::Boolean, Value::String(_) | Value::Number(_)) => {
            if let Some(on) = boolean(value) {
                *value = Value::Bool(on);
            }
        }
        (Kind::Integers, Value::Array(items)) => {
            items
                .iter_mut()
                .for_each(|item| normalize(Kind::Integer, item));
        }
        (Kind::Tokens, Value::Array(items)) => {
            items
                .iter_mut()
                .for_each(|item| normalize(Kind::Tokens, item));
        }
        (Kind::Numbers, Value::Object(fields)) => {
            fields
                .values_mut()
                .for_each(|field| normalize(Kind::Number, field));
        }
        (Kind::Booleans, Value::Object(fields)) => {
            fields
                .values_mut()
                .for_each(|field| normalize(Kind::Boolean, field));
        }
        _ => {}
    }
}

/// `16.0`, `"16"` and `"16.0"` as 16.
fn integer(value: &Value) -> Option<Value> {
    /// Whole numbers up to here are exact in an f64.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = |number: f64| {
        (number.fract() == 0.0 && number.abs() <= EXACT).then(|| Value::from(number as i64))
    };
    match value {
        Value::Number(number) if number.is_f64() => whole(number.as_f64()?),
        Value::String(text) => {
            let text = text.trim();
            let exact = text.parse::<i64>().map(Value::from);
            let exact = exact.or_else(|_| text.parse::<u64>().map(Value::from));
            exact.ok().or_else(|| whole(text.parse().ok()?))
        }
        _ => None,
    }
}
