//! The filter `pprint`: `pprint.pformat` of Python.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::fuel::{self, Pay};
use super::python::{self, is_tuple};
use super::text_classes::is_space;
use super::text_methods::lines;

/// Columns of a line.
const WIDTH: usize = 80;

/// The filter `pprint`, which sorts keys and breaks lines.
pub(super) fn pprint(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let pay = |num_bytes| fuel::pay(state, num_bytes);
    let value = sorted(value, &pay, 0)?;
    let mut printer = Printer {
        out: String::new(),
        pay: &pay,
    };
    printer.write(&value, 0, 0, 0)?;
    Ok(printer.out)
}

/// A value with the keys of its dicts in order.
fn sorted(value: &Value, pay: Pay<'_>, depth: usize) -> Result<Value, Error> {
    pay(64)?;
    match value.kind() {
        _ if depth > fuel::MAX_DEPTH => Ok(value.clone()),
        ValueKind::Map => {
            let keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            let mut pairs = Vec::with_capacity(keys.len());
            for key in keys {
                let item = sorted(&value.get_item(&key)?, pay, depth + 1)?;
                pairs.push((key, item));
            }
            pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(Value::from_pairs(pairs))
        }
        ValueKind::Seq => {
            let items = value.try_iter()?.checked();
            let items = items.map(|item| sorted(&item?, pay, depth + 1));
            let items = items.collect::<Result<Vec<_>, _>>()?;
            Ok(match is_tuple(value) {
                true => Value::from(Tuple::from(items)),
                false => Value::from(items),
            })
        }
        _ => Ok(value.clone()),
    }
}

fn width_of(text: &str) -> usize {
    text.chars().count()
}

struct Printer<'a> {
    out: String,
    pay: Pay<'a>,
}

impl Printer<'_> {
    fn repr(&self, value: &Value) -> Result<String, Error> {
        python::to_repr(value, self.pay)
    }

    /// Writes a value at a column, with `allowance` columns left for what closes the values around it.
    fn write(
        &mut self,
        value: &Value,
        indent: usize,
        allowance: usize,
        level: usize,
    ) -> Result<(), Error> {
        let repr = self.repr(value)?;
        if width_of(&repr) + indent + allowance <= WIDTH {
            self.out.push_str(&repr);
            return Ok(());
        }
        match value.kind() {
            ValueKind::Map => {
                self.out.push('{');
                let keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                let last = keys.len().saturating_sub(1);
                for (i, key) in keys.iter().enumerate() {
                    let name = self.repr(key)?;
                    self.out.push_str(&name);
                    self.out.push_str(": ");
                    let column = indent + 1 + width_of(&name) + 2;
                    let item = value.get_item(key)?;
                    let allowance = if i == last { allowance + 1 } else { 1 };
                    self.write(&item, column, allowance, level + 1)?;
                    if i < last {
                        self.new_line(",", indent + 1)?;
                    }
                }
                self.out.push('}');
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let is_tuple = is_tuple(value);
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                let (open, close) = match is_tuple {
                    true if items.len() == 1 => ("(", ",)"),
                    true => ("(", ")"),
                    false => ("[", "]"),
                };
                self.out.push_str(open);
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        self.new_line(",", indent + 1)?;
                    }
                    let is_last = i + 1 == items.len();
                    let allowance = if is_last { allowance + close.len() } else { 1 };
                    self.write(item, indent + 1, allowance, level + 1)?;
                }
                self.out.push_str(close);
            }
            ValueKind::String => {
                self.write_text(value.as_str().unwrap_or_default(), indent, allowance, level)?;
            }
            _ => self.out.push_str(&repr),
        }
        Ok(())
    }

    fn new_line(&mut self, before: &str, indent: usize) -> Result<(), Error> {
        (self.pay)(indent)?;
        self.out.push_str(before);
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', indent));
        Ok(())
    }

    /// Writes a text as several, one for a line.
    fn write_text(
        &mut self,
        text: &str,
        mut indent: usize,
        mut allowance: usize,
        level: usize,
    ) -> Result<(), Error> {
        if level == 0 {
            indent += 1;
            allowance += 1;
        }
        let repr_of = |text: &str| {
            (self.pay)(text.len())?;
            self.repr(&Value::from(text))
        };
        let room = WIDTH.saturating_sub(indent);
        let text_lines = lines(text, true);
        let mut chunks = Vec::new();
        for (i, line) in text_lines.iter().enumerate() {
            let is_last_line = i + 1 == text_lines.len();
            let room_at_end = room.saturating_sub(if is_last_line { allowance } else { 0 });
            let repr = repr_of(line)?;
            if width_of(&repr) <= room_at_end {
                chunks.push(repr);
                continue;
            }
            let parts = words_with_spaces(line);
            let mut current = String::new();
            for (j, part) in parts.iter().enumerate() {
                let is_last = is_last_line && j + 1 == parts.len();
                let room = if is_last { room_at_end } else { room };
                let is_full = width_of(&repr_of(&format!("{current}{part}"))?) > room;
                if is_full && !current.is_empty() {
                    chunks.push(repr_of(&current)?);
                    current.clear();
                }
                current.push_str(part);
            }
            if !current.is_empty() {
                chunks.push(repr_of(&current)?);
            }
        }
        let in_brackets = level == 0 && chunks.len() > 1;
        if in_brackets {
            self.out.push('(');
        }
        for (i, chunk) in chunks.iter().enumerate() {
            if i > 0 {
                self.new_line("", indent)?;
            }
            self.out.push_str(chunk);
        }
        if in_brackets {
            self.out.push(')');
        }
        Ok(())
    }
}

/// The words of a text, each with the white space behind it.
fn words_with_spaces(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(is_space).unwrap_or(rest.len());
        let behind = &rest[word..];
        let end = word + behind.find(|c| !is_space(c)).unwrap_or(behind.len());
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}
