//! Values as Python has them: JSON into template values, printing as `str()` and `repr()` print.

use std::fmt::Write;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectExt, ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, Output, State, Value};

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
        ValueKind::Bool
        | ValueKind::None
        | ValueKind::Number
        | ValueKind::Seq
        | ValueKind::Map
        | ValueKind::Iterable => {
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
pub(super) fn to_repr(value: &Value, pay: Pay<'_>) -> Result<String, Error> {
    let mut text = Text::new(pay);
    write_repr(&mut text, value)?;
    Ok(text.out)
}

/// What `ascii` makes of a text.
pub(super) fn to_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii() {
            true => out.push(c),
            false => write_escape(&mut out, c),
        }
    }
    out
}

/// Whether a value is a tuple, as the groups of `groupby` are.
pub(super) fn is_tuple(value: &Value) -> bool {
    value.downcast_object_ref::<Tuple>().is_some() || is_group(value)
}

/// Whether a value is a group of `groupby`, which has attributes besides.
fn is_group(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("GroupTuple"))
}

/// A namespace has attributes, and is a map here.
pub(super) fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("Namespace"))
}

/// `repr(value)`.
fn write_repr(text: &mut Text<'_>, value: &Value) -> Result<(), Error> {
    text.start_value()?;
    let out = &mut text.out;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => write_number(out, value)?,
        ValueKind::String => {
            if value.is_safe() {
                out.push_str("Markup(");
            }
            write_string_repr(out, value.as_str().unwrap_or_default());
            if value.is_safe() {
                out.push(')');
            }
        }
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq | ValueKind::Iterable => {
            // A tuple is a sequence, too.
            let tuple = is_tuple(value);
            let view = value.downcast_object_ref::<View>();
            if let Some(view) = view {
                out.push_str(view.name);
                out.push('(');
            }
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
            if view.is_some() {
                text.out.push(')');
            }
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

/// The filter `escape`, with the entities of Python's markupsafe.
pub(super) fn escape(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
    match value.is_safe() {
        true => Ok(value.clone()),
        false => force_escape(state, value),
    }
}

/// The filter `forceescape`, which escapes what is escaped again.
pub(super) fn force_escape(state: &State<'_, '_>, value: &Value) -> Result<Value, Error> {
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
    let is_dict = value.kind() == ValueKind::Map && !is_namespace(value);
    match is_dict || value.kind() == ValueKind::Seq && !is_group(value) {
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
            c if is_printable(c) => out.push(c),
            c => write_escape(out, c),
        }
    }
    out.push(quote);
}

/// `str.isprintable` of a character.
pub(super) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Rust escapes what Python does, and what is drawn on the character before it only at the beginning of a text.
    let mut text = [b'a'; 5];
    let len = 1 + c.encode_utf8(&mut text[1..]).len();
    let text = std::str::from_utf8(&text[..len]).unwrap_or_default();
    text.escape_debug().nth(1) == Some(c)
}

fn write_escape(out: &mut String, c: char) {
    let _ = match c as u32 {
        code @ ..0x100 => write!(out, "\\x{code:02x}"),
        code @ 0x100..0x10000 => write!(out, "\\u{code:04x}"),
        code => write!(out, "\\U{code:08x}"),
    };
}

/// What `dict.keys`, `dict.values` and `dict.items` give.
#[derive(Debug)]
pub(super) struct View {
    pub(super) name: &'static str,
    pub(super) items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|view| Box::new(view.items.iter().cloned()))
    }
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
