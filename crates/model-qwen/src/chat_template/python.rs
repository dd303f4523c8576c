//! Values as Python has them: JSON into template values, printing as `str()` and `repr()` print.

use std::fmt::Write;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

use super::fuel::{Pay, Text, pay};

/// A template value equal to `json.loads` of the same text.
pub(super) fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => Value::from(i),
            (_, Some(u), _) => Value::from(u),
            (_, _, float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(list) => list.iter().map(to_value).collect(),
        serde_json::Value::Object(object) => object_to_value(object),
    }
}

/// [`to_value`] of an object; keys keep their order.
pub(super) fn object_to_value(object: &serde_json::Map<String, serde_json::Value>) -> Value {
    let pairs = object.iter();
    Value::from_pairs(pairs.map(|(key, value)| (key.as_str(), to_value(value))))
}

/// What `{{ value }}` prints: `str(value)` of Python, nothing for an undefined value.
pub(super) fn format(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let text = to_display(value, &|num_bytes| pay(state, num_bytes))?;
            out.write_str(&text).map_err(Error::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// The filter `string`.
pub(super) fn string(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    match value.kind() {
        // Text stays safe text, and what is undefined stays empty.
        ValueKind::String => Ok(value),
        ValueKind::Undefined => Ok(Value::from("")),
        _ => to_display(&value, &|num_bytes| pay(state, num_bytes)).map(Value::from),
    }
}

/// `str(value)`.
pub(super) fn to_display(value: &Value, pay: Pay<'_>) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut text = Text::new(pay);
    write_repr(&mut text, value)?;
    Ok(text.out)
}

/// `repr(value)`.
fn write_repr(text: &mut Text<'_>, value: &Value) -> Result<(), Error> {
    text.start_value()?;
    let out = &mut text.out;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value)?,
        ValueKind::String => write_string_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            // A tuple is a sequence, too.
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            text.nested(|text| {
                for (i, item) in value.try_iter()?.checked().enumerate() {
                    if i > 0 {
                        text.out.push_str(", ");
                    }
                    write_repr(text, &item?)?;
                }
                Ok(())
            })?;
            text.out.push_str(match tuple {
                true if value.len() == Some(1) => ",)",
                true => ")",
                false => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            text.nested(|text| {
                for (i, key) in value.try_iter()?.checked().enumerate() {
                    let key = key?;
                    if i > 0 {
                        text.out.push_str(", ");
                    }
                    write_repr(text, &key)?;
                    text.out.push_str(": ");
                    write_repr(text, &value.get_item(&key)?)?;
                }
                Ok(())
            })?;
            text.out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// The filter `pprint`: `pprint.pformat`, which sorts keys, of what fits into a line.
pub(super) fn pprint(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    const WIDTH: usize = 80;
    let pay = |num_bytes| pay(state, num_bytes);
    let mut text = Text::new(&pay);
    write_repr(&mut text, &sorted(value, 0)?)?;
    match text.out.chars().count() > WIDTH {
        false => Ok(text.out),
        true => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("pprint: expected a value of at most {WIDTH} characters: use tojson"),
        )),
    }
}

/// A value with the keys of its dicts in order.
fn sorted(value: &Value, depth: usize) -> Result<Value, Error> {
    // What is nested deeper fits into no line.
    const DEEPEST: usize = 40;
    match value.kind() {
        _ if depth > DEEPEST => Ok(value.clone()),
        ValueKind::Map => {
            let keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            let mut pairs = Vec::with_capacity(keys.len());
            for key in keys {
                pairs.push((key.clone(), sorted(&value.get_item(&key)?, depth + 1)?));
            }
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(Value::from_pairs(pairs))
        }
        ValueKind::Seq => {
            let items = value.try_iter()?.checked();
            let items = items.map(|item| sorted(&item?, depth + 1));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            Ok(match value.downcast_object_ref::<Tuple>() {
                Some(_) => Value::from(Tuple::from(items)),
                None => Value::from(items),
            })
        }
        _ => Ok(value.clone()),
    }
}

/// The filter `escape`, with the entities of Python's markupsafe.
pub(super) fn escape(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = match value.is_undefined() {
        true => String::new(),
        false => to_display(value, &|num_bytes| pay(state, num_bytes))?,
    };
    pay(state, text.len().saturating_mul(5))?;
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Ok(Value::from_safe_string(escaped))
}

/// The filter `attr`, which sees no items of a dict.
pub(super) fn attr(value: &Value, name: &Value) -> Result<Value, Error> {
    // A namespace has attributes, and is a map here.
    let is_namespace = |value: &Value| {
        let object = value.as_object();
        object.is_some_and(|object| object.type_name().ends_with("Namespace"))
    };
    let is_dict = value.kind() == ValueKind::Map && !is_namespace(value);
    match is_dict || value.kind() == ValueKind::Seq {
        true => Ok(Value::UNDEFINED),
        false => value.get_item(name),
    }
}

fn write_string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn write_number(out: &mut String, value: &Value) -> Result<(), Error> {
    if value.is_integer() {
        out.push_str(&value.to_string());
    } else {
        write_float(out, f64::try_from(value.clone())?, ["nan", "inf", "-inf"]);
    }
    Ok(())
}

/// `repr(float)`: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn write_float(out: &mut String, x: f64, [nan, inf, neg_inf]: [&str; 3]) {
    if x.is_nan() {
        out.push_str(nan);
    } else if x.is_infinite() {
        out.push_str(if x > 0.0 { inf } else { neg_inf });
    } else if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        let _ = write!(out, "{x:?}");
    } else {
        // Rust writes 1e-7 and 1.5e300, Python 1e-07 and 1.5e+300.
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        let _ = write!(out, "{digits}e{sign}{exponent:0>2}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (100_000.0, "100000.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            let mut out = String::new();
            write_float(&mut out, x, ["NaN", "Infinity", "-Infinity"]);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn values_print_as_in_python() {
        let json =
            serde_json::json!({"a": [true, null, 1, 2.5, "it's", "q\"'", "line\n"], "b": {}});
        assert_eq!(
            to_display(&to_value(&json), &|_| Ok(())).unwrap(),
            r#"{'a': [True, None, 1, 2.5, "it's", 'q"\'', 'line\n'], 'b': {}}"#
        );
    }
}
