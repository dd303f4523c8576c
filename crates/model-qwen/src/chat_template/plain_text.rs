//! Python's methods of strings that are not escaped, each at the cost of what it reads and writes.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{fuel, python, text_methods};

/// Calls a method of a text.
pub(super) fn call(
    state: &mut State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (method, args) {
        ("format", _) => {
            check_widths(text)?;
            fuel::pay(state, format_cost(state, text, args)?)?;
        }
        ("join", [items]) => return join(state, text, items),
        _ => {
            fuel::pay(state, cost(text, method, args))?;
            if let Some(result) = text_methods::of_text(state, text, method, args) {
                return result;
            }
        }
    }
    unknown_method_callback(state, &Value::from(text), method, args)
}

/// About as many bytes as a method reads and writes.
pub(super) fn cost(text: &str, method: &str, args: &[Value]) -> usize {
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
