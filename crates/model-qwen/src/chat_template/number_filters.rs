//! The filters `int`, `float` and `round`.

use std::borrow::Cow;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, filters};

use super::arguments::{Given, arguments, count, invalid};
use super::text_classes::is_space;

/// Puts these filters where templates find them.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
}

fn check_defined(filter: &str, value: &Value) -> Result<(), Error> {
    match value.is_undefined() {
        true => Err(Error::new(
            ErrorKind::UndefinedError,
            format!("{filter}: the value is undefined"),
        )),
        false => Ok(()),
    }
}

/// `float(value)`.
pub(super) fn python_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => number_text(value.as_str()?)?.parse().ok(),
        _ => None,
    }
}

/// A number's text without what Python takes besides digits.
fn number_text(text: &str) -> Option<Cow<'_, str>> {
    let text = text.trim_matches(is_space);
    if !text.contains('_') {
        return Some(text.into());
    }
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let are_between = bytes.iter().enumerate().all(|(i, byte)| {
        *byte != b'_' || i > 0 && is_digit(bytes.get(i - 1)) && is_digit(bytes.get(i + 1))
    });
    are_between.then(|| text.replace('_', "").into())
}

fn float(value: &Value, given: Given) -> Result<Value, Error> {
    let [default] = arguments(given, ["default"])?;
    check_defined("float", value)?;
    Ok(match python_float(value) {
        Some(float) => Value::from(float),
        None => default.unwrap_or_else(|| Value::from(0.0)),
    })
}

fn int(value: &Value, given: Given) -> Result<Value, Error> {
    let [default, base] = arguments(given, ["default", "base"])?;
    check_defined("int", value)?;
    let base = u32::try_from(count(base, "int: base", 10)?).unwrap_or(u32::MAX);
    if !(2..=36).contains(&base) {
        return Err(invalid("int: base: expected 2 to 36"));
    }
    let of_text = value.as_str().and_then(number_text).and_then(|text| {
        let (sign, digits) = text.split_at(text.starts_with(['+', '-']).into());
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        let lower = digits.to_ascii_lowercase();
        let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
        i128::from_str_radix(&format!("{sign}{digits}"), base).ok()
    });
    let of_number = || match value.kind() {
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        _ => {
            let float = python_float(value).filter(|float| float.is_finite())?;
            // Python has no largest number.
            (float.abs() < 1e38).then(|| Value::from(float as i128))
        }
    };
    let int = of_text.map(Value::from).or_else(of_number);
    let small = |value: Value| i64::try_from(value.clone()).map_or(value, Value::from);
    Ok(small(int.or(default).unwrap_or_else(|| Value::from(0))))
}

fn round(value: Value, given: Given) -> Result<Value, Error> {
    let [precision, method] = arguments(given, ["precision", "method"])?;
    let precision = precision.map(i32::try_from).transpose()?;
    let method = method.unwrap_or_else(|| Value::from("common"));
    // Up and down give a float always.
    let value = match (method.as_str(), python_float(&value)) {
        (Some("ceil" | "floor"), Some(float)) => Value::from(float),
        _ if value.kind() == ValueKind::Bool => Value::from(i64::from(value.is_true())),
        _ => value,
    };
    filters::round(
        value,
        precision,
        method.as_str(),
        Kwargs::from_iter([] as [(&str, Value); 0]),
    )
}
