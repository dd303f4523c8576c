//! Python's methods of strings, lists and dicts, each at the cost of what it reads and writes.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python::View;
use super::{fuel, python, safe_text, text_methods};

/// Calls a method that minijinja itself does not have.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let args = &*text_methods::by_place(method, args)?;
    match value.as_str() {
        Some(text) => match (method, args) {
            ("format", _) if !value.is_safe() => {
                check_widths(text)?;
                fuel::pay(state, format_cost(state, text, args)?)?;
            }
            ("join", [items]) if !value.is_safe() => return join(state, text, items),
            _ if value.is_safe() => {
                fuel::pay(state, string_cost(text, method, args))?;
                return safe_text::call(state, text, method, args);
            }
            _ => {
                fuel::pay(state, string_cost(text, method, args))?;
                if let Some(result) = text_methods::of_text(state, text, method, args) {
                    return result;
                }
            }
        },
        None if value.kind() == ValueKind::Seq => {
            let num = value.len().unwrap_or(0);
            fuel::pay(state, num.saturating_mul(64))?;
            match method {
                "index" => return text_methods::list_index(value, args),
                "copy" if !python::is_tuple(value) => {
                    let () = from_args(args)?;
                    return Ok(value.clone());
                }
                _ => {}
            }
        }
        None if value.kind() == ValueKind::Map && !python::is_namespace(value) => {
            if let Some(result) = of_dict(state, value, method, args) {
                return result;
            }
        }
        None => {}
    }
    unknown_method_callback(state, value, method, args)
}

/// Calls a method of a dict; `None` where it is none of these.
fn of_dict(
    state: &State<'_, '_>,
    dict: &Value,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    let name = match method {
        "keys" => "dict_keys",
        "values" => "dict_values",
        "items" => "dict_items",
        // Nothing changes a dict, so that both may be one.
        "copy" => return Some(from_args(args).map(|()| dict.clone())),
        _ => return None,
    };
    let view = || {
        let () = from_args(args)?;
        fuel::pay(state, dict.len().unwrap_or(0).saturating_mul(64))?;
        let mut items = Vec::new();
        for key in dict.try_iter()?.checked() {
            let key = key?;
            items.push(match method {
                "keys" => key,
                "values" => dict.get_item(&key)?,
                _ => {
                    let value = dict.get_item(&key)?;
                    Value::from(Tuple::from([key, value]))
                }
            });
        }
        Ok(Value::from_object(View { name, items }))
    };
    Some(view())
}

/// About as many bytes as a method reads and writes.
fn string_cost(text: &str, method: &str, args: &[Value]) -> usize {
    let len = |i: usize| args.get(i).and_then(Value::as_str).map_or(0, str::len);
    let all = args.iter().filter_map(Value::as_str).map(str::len);
    let read = text.len() + all.sum::<usize>();
    let more = match method {
        // Each character is looked for among those of the argument.
        "strip" | "lstrip" | "rstrip" => text.len().saturating_mul(len(0)),
        "replace" => {
            let num = args.first().and_then(Value::as_str);
            let num = num.map_or(0, |old| text.matches(old).count());
            num.saturating_mul(len(1))
        }
        // A part takes the memory of a value.
        "split" | "rsplit" => match args.first().and_then(Value::as_str) {
            Some(separator) => text.matches(separator).count().saturating_mul(64),
            None => text.len().saturating_mul(32),
        },
        "splitlines" => text.matches('\n').count().saturating_mul(64),
        "startswith" | "endswith" => {
            let prefixes = args.first().and_then(Value::len).unwrap_or(0);
            prefixes.saturating_mul(64)
        }
        _ => 0,
    };
    read.saturating_add(more)
}

/// `separator.join(items)`.
fn join(state: &State<'_, '_>, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut joined = String::new();
    for (i, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        let is_nested = matches!(
            item.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        );
        let shown = match item.as_str() {
            Some(_) => None,
            None if is_nested => Some(python::to_display(&item, &|num| fuel::pay(state, num))?),
            None => Some(item.to_string()),
        };
        let text = shown.as_deref().or(item.as_str()).unwrap_or_default();
        fuel::pay(state, separator.len() + text.len())?;
        if i > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
    }
    Ok(Value::from(joined))
}

/// Each field may show each argument.
fn format_cost(state: &State<'_, '_>, format: &str, args: &[Value]) -> Result<usize, Error> {
    let mut longest = 1000;
    for arg in args {
        let len = python::to_display(arg, &|num| fuel::pay(state, num))?.len();
        longest = longest.max(len);
    }
    let fields = format.matches('{').count();
    Ok(fields.saturating_mul(longest).saturating_add(format.len()))
}

/// Refuses a format in which a number has more than three digits: the width of a field, mostly.
fn check_widths(format: &str) -> Result<(), Error> {
    let mut digits = format.split(|c: char| !c.is_ascii_digit());
    if digits.any(|number| number.len() > 3) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "format: expected widths below 1000",
        ));
    }
    Ok(())
}
