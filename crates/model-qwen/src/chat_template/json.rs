//! `json.dumps` of Python, and the filter `tojson` that transformers makes of it.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::fuel::{Text, pay};
use super::python::{to_value, write_float};

/// `json.dumps(value, ensure_ascii=False)`.
pub(super) fn to_json(value: &serde_json::Value) -> String {
    let mut text = Text::new(&|_| Ok(()));
    // A JSON value always has a JSON form.
    let _ = JsonStyle::default().write(&mut text, &to_value(value), 0);
    text.out
}

/// The filter `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let args = args.into_values();
    let (positional, kwargs): (&[Value], Kwargs) = from_args(&args)?;
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    if positional.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let argument = |i: usize| -> Result<Option<Value>, Error> {
        let value = match positional.get(i) {
            Some(value) => Some(value.clone()),
            None => kwargs.get::<Option<Value>>(names[i])?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let mut style = JsonStyle {
        ensure_ascii: argument(0)?.is_some_and(|v| v.is_true()),
        sort_keys: argument(3)?.is_some_and(|v| v.is_true()),
        ..JsonStyle::default()
    };
    if let Some(indent) = argument(1)? {
        style.indent = Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) if text.len() <= MAX_SPACE => text.to_owned(),
            (None, Some(width)) if width <= MAX_SPACE => " ".repeat(width),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("tojson: indent: expected 0 to {MAX_SPACE} or a string of this length"),
                ));
            }
        });
        style.item_separator = ",".to_owned();
    }
    if let Some(separators) = argument(2)? {
        let pair: Vec<Value> = separators.try_iter()?.take(3).collect();
        let [item, key] = pair.as_slice() else {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators: expected a pair of strings",
            ));
        };
        let separator = |value: &Value| match value.as_str() {
            Some(text) if text.len() <= MAX_SPACE => Ok(text.to_owned()),
            _ => Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: separators: expected strings of at most {MAX_SPACE} bytes"),
            )),
        };
        style.item_separator = separator(item)?;
        style.key_separator = separator(key)?;
    }
    kwargs.assert_all_used()?;
    let pay = |num_bytes| pay(state, num_bytes);
    let mut text = Text::new(&pay);
    style.write(&mut text, &value, 0)?;
    Ok(Value::from(text.out))
}

/// Most bytes between two values, for each level.
const MAX_SPACE: usize = 64;

/// The arguments of `json.dumps`.
struct JsonStyle {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

impl JsonStyle {
    fn write(&self, text: &mut Text<'_>, value: &Value, depth: usize) -> Result<(), Error> {
        text.start_value()?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked();
                self.write_items(text, ['[', ']'], depth, items, |text, item| {
                    self.write(text, item, depth + 1)
                })
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                let keys = keys.into_iter().map(Ok);
                self.write_items(text, ['{', '}'], depth, keys, |text, key| {
                    self.write_string(&mut text.out, &self.key_text(key)?);
                    text.out.push_str(&self.key_separator);
                    self.write(text, &value.get_item(key)?, depth + 1)
                })
            }
            _ => self.write_scalar(&mut text.out, value),
        }
    }

    fn write_scalar(&self, out: &mut String, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => {
                let float = f64::try_from(value.clone())?;
                write_float(out, float, ["NaN", "Infinity", "-Infinity"]);
            }
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            other => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("tojson: a value of kind {other} has no JSON form"),
                ));
            }
        }
        Ok(())
    }

    fn write_items(
        &self,
        text: &mut Text<'_>,
        [open, close]: [char; 2],
        depth: usize,
        items: impl Iterator<Item = Result<Value, Error>>,
        mut write: impl FnMut(&mut Text<'_>, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        text.out.push(open);
        let mut num = 0;
        text.nested(|text| {
            for item in items {
                if num > 0 {
                    text.out.push_str(&self.item_separator);
                }
                num += 1;
                self.new_line(&mut text.out, depth + 1);
                write(text, &item?)?;
            }
            Ok(())
        })?;
        if num > 0 {
            self.new_line(&mut text.out, depth);
        }
        text.out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    /// `json.dumps` turns keys that are not strings into strings.
    fn key_text(&self, key: &Value) -> Result<String, Error> {
        match key.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => {
                let mut text = String::new();
                self.write_scalar(&mut text, key)?;
                Ok(text)
            }
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && !matches!(c, ' '..='~')) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
