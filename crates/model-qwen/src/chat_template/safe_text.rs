//! Methods of Python's `Markup`, which is text that is escaped.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::arguments::invalid;
use super::plain_text::{self, cost};
use super::{fuel, python};

/// Calls a method of safe text, which gives safe text, and escapes what it puts in.
pub(super) fn call(
    state: &mut State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    fuel::pay(state, cost(text, method, args))?;
    let escaped = |value: &Value| -> Result<Value, Error> {
        let escaped = python::escape(state, value)?;
        Ok(Value::from(escaped.as_str().unwrap_or_default()))
    };
    let args = match (method, args) {
        ("join", [items]) => {
            let items = items.try_iter()?.checked();
            let items = items
                .map(|item| escaped(&item?))
                .collect::<Result<Vec<_>, _>>()?;
            vec![Value::from(items)]
        }
        ("replace", [old, new, rest @ ..]) => [&[old.clone(), escaped(new)?], rest].concat(),
        ("format" | "format_map" | "ljust" | "rjust" | "center", [_, _, ..]) | ("format", _) => {
            return Err(invalid(format!("{method}: not supported for escaped text")));
        }
        _ => args.to_vec(),
    };
    let result = plain_text::call(state, text, method, &args)?;
    let safe = |value: &Value| match value.as_str() {
        Some(text) => Value::from_safe_string(text.to_owned()),
        None => value.clone(),
    };
    if !matches!(result.kind(), ValueKind::Seq) {
        return Ok(safe(&result));
    }
    let parts = result.try_iter()?.checked();
    let parts = parts
        .map(|part| Ok(safe(&part?)))
        .collect::<Result<Vec<_>, Error>>()?;
    Ok(match python::is_tuple(&result) {
        true => Value::from(Tuple::from(parts)),
        false => Value::from(parts),
    })
}
