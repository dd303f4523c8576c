//! `'%s' % value` of Python: printf-style formatting, and sums and remainders as Python has them.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, State, Value};

use super::arguments::{Given, invalid};
use super::python::is_tuple;
use super::{fuel, python};

/// `a % b`: a text that is filled in, or a remainder.
pub(super) fn remainder(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if a.as_str().is_some() {
        return fill_in(state, a, b);
    }
    let (Some(_), Some(_)) = (number(a), number(b)) else {
        return Err(unsupported("%", a, b));
    };
    let by_zero = || invalid("%: division by zero");
    if let (Some(a), Some(b)) = (integer(a), integer(b)) {
        let remainder = a.checked_rem(b).ok_or_else(by_zero)?;
        let has_other_sign = remainder != 0 && (remainder < 0) != (b < 0);
        return Ok(from_integer(if has_other_sign {
            remainder + b
        } else {
            remainder
        }));
    }
    let (a, b) = (number(a).unwrap_or_default(), number(b).unwrap_or_default());
    if b == 0.0 {
        return Err(by_zero());
    }
    let remainder = a % b;
    Ok(Value::from(match remainder {
        0.0 => 0.0_f64.copysign(b),
        remainder if (remainder < 0.0) != (b < 0.0) => remainder + b,
        remainder => remainder,
    }))
}

/// `a + b`, which escapes what is joined to safe text.
pub(super) fn sum(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        fuel::pay(state, left.len() + right.len())?;
        if !a.is_safe() && !b.is_safe() {
            return Ok(Value::from([left, right].concat()));
        }
        let (a, b) = (python::escape(state, a)?, python::escape(state, b)?);
        let parts = [
            a.as_str().unwrap_or_default(),
            b.as_str().unwrap_or_default(),
        ];
        return Ok(Value::from_safe_string(parts.concat()));
    }
    if let (Some(_), Some(_)) = (number(a), number(b)) {
        if let (Some(a), Some(b)) = (integer(a), integer(b)) {
            let sum = a.checked_add(b);
            return sum
                .map(from_integer)
                .ok_or_else(|| invalid("+: the sum is too large"));
        }
        let sum = number(a).unwrap_or_default() + number(b).unwrap_or_default();
        return Ok(Value::from(sum));
    }
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if !is_list(a) || !is_list(b) || is_tuple(a) != is_tuple(b) {
        return Err(unsupported("+", a, b));
    }
    let mut items = Vec::new();
    for item in a.try_iter()?.checked().chain(b.try_iter()?.checked()) {
        fuel::pay(state, 64)?;
        items.push(item?);
    }
    Ok(match is_tuple(a) {
        true => Value::from(Tuple::from(items)),
        false => Value::from(items),
    })
}

/// The filter `format`: `text % args`, or `text % kwargs`.
pub(super) fn format_filter(
    state: &State<'_, '_>,
    text: &Value,
    args: Given,
) -> Result<Value, Error> {
    let args = args.into_values();
    let (args, named): (&[Value], Kwargs) = from_args(&args)?;
    let text = python::string(state, text.clone())?;
    let names: Vec<&str> = named.args().collect();
    if names.is_empty() {
        return fill_in(state, &text, &Value::from(Tuple::from(args.to_vec())));
    }
    if !args.is_empty() {
        return Err(invalid(
            "format: can't handle positional and keyword arguments at the same time",
        ));
    }
    let mut pairs = Vec::new();
    for name in names {
        pairs.push((Value::from(name), named.get::<Value>(name)?));
    }
    fill_in(state, &text, &Value::from_pairs(pairs))
}

/// A conversion such as `%(name)-5.2f`.
#[derive(Debug, Default)]
struct Field<'t> {
    key: Option<&'t str>,
    flags: &'t str,
    width: Option<usize>,
    precision: Option<usize>,
    conversion: char,
}

/// Values in the order in which fields take them.
struct Args<'v> {
    given: &'v Value,
    rest: std::vec::IntoIter<Value>,
}

impl Args<'_> {
    fn next(&mut self) -> Result<Value, Error> {
        let next = self.rest.next();
        next.ok_or_else(|| invalid("%: not enough arguments for format string"))
    }

    /// A width or a precision that is among the values.
    fn next_width(&mut self) -> Result<i64, Error> {
        i64::try_from(self.next()?).map_err(|_| invalid("%: `*` wants a whole number"))
    }

    fn of_field(&mut self, field: &Field<'_>) -> Result<Value, Error> {
        let Some(key) = field.key else {
            return self.next();
        };
        if self.given.kind() != ValueKind::Map {
            return Err(invalid("%: format requires a mapping"));
        }
        self.rest = Vec::new().into_iter();
        let value = self.given.get_item(&Value::from(key))?;
        match value.is_undefined() {
            true => Err(invalid(format!("%: no key {key:?}"))),
            false => Ok(value),
        }
    }
}

/// `text % value`.
fn fill_in(state: &State<'_, '_>, text: &Value, value: &Value) -> Result<Value, Error> {
    let items = match is_tuple(value) {
        true => value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?,
        false => vec![value.clone()],
    };
    let mut args = Args {
        given: value,
        rest: items.into_iter(),
    };
    let mut out = String::new();
    let mut rest = text.as_str().unwrap_or_default();
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let mut field = Field::default();
        rest = read_field(&rest[at + 1..], &mut field, &mut args)?;
        let widths = [field.width, field.precision].into_iter().flatten();
        fuel::pay(state, widths.fold(at, usize::saturating_add))?;
        if field.conversion == '%' {
            out.push('%');
            continue;
        }
        let value = args.of_field(&field)?;
        out.push_str(&field.write(state, &value, text.is_safe())?);
    }
    out.push_str(rest);
    let takes_any = !is_tuple(value)
        && matches!(
            value.kind(),
            ValueKind::Map | ValueKind::Seq | ValueKind::Undefined
        );
    if args.rest.next().is_some() && !takes_any {
        return Err(invalid(
            "%: not all arguments converted during string formatting",
        ));
    }
    Ok(match text.is_safe() {
        true => Value::from_safe_string(out),
        false => Value::from(out),
    })
}

/// Reads a field, and gives what is behind it.
fn read_field<'t>(
    mut rest: &'t str,
    field: &mut Field<'t>,
    args: &mut Args<'_>,
) -> Result<&'t str, Error> {
    if let Some(inside) = rest.strip_prefix('(') {
        let mut depth = 1;
        let end = inside.find(|c| {
            depth += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            depth == 0
        });
        let end = end.ok_or_else(|| invalid("%: incomplete format key"))?;
        field.key = Some(&inside[..end]);
        rest = &inside[end + 1..];
    }
    let flags = rest.len() - rest.trim_start_matches(['#', '0', '-', ' ', '+']).len();
    (field.flags, rest) = rest.split_at(flags);
    let mut is_left = false;
    if let Some(behind) = rest.strip_prefix('*') {
        let width = args.next_width()?;
        is_left = width < 0;
        field.width = Some(usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX));
        rest = behind;
    } else {
        (field.width, rest) = read_number(rest);
    }
    if is_left {
        field.flags = "-";
    }
    if let Some(behind) = rest.strip_prefix('.') {
        if let Some(behind) = behind.strip_prefix('*') {
            field.precision = Some(usize::try_from(args.next_width()?).unwrap_or(0));
            rest = behind;
        } else {
            let (precision, behind) = read_number(behind);
            field.precision = Some(precision.unwrap_or(0));
            rest = behind;
        }
    }
    rest = rest.trim_start_matches(['h', 'l', 'L']);
    let conversion = rest.chars().next();
    field.conversion = conversion.ok_or_else(|| invalid("%: incomplete format"))?;
    Ok(&rest[field.conversion.len_utf8()..])
}

fn read_number(text: &str) -> (Option<usize>, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let number = (!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX));
    (number, rest)
}

impl Field<'_> {
    fn write(&self, state: &State<'_, '_>, value: &Value, is_safe: bool) -> Result<String, Error> {
        let pay = |num_bytes| fuel::pay(state, num_bytes);
        let wanted = |what: &str| {
            invalid(format!(
                "%: %{} format: {what} is required, not {}",
                self.conversion,
                value.kind()
            ))
        };
        match self.conversion {
            's' | 'r' | 'a' => {
                let shown = match self.conversion {
                    's' if value.is_undefined() => String::new(),
                    's' => python::to_display(value, &pay)?,
                    'r' => python::to_repr(value, &pay)?,
                    _ => python::to_ascii(&python::to_repr(value, &pay)?),
                };
                let shown = match is_safe && !(value.is_safe() && self.conversion == 's') {
                    true => python::escape(state, &Value::from(shown))?,
                    false => Value::from(shown),
                };
                let shown = shown.as_str().unwrap_or_default();
                let end = self
                    .precision
                    .and_then(|most| shown.char_indices().nth(most));
                Ok(self.padded(&shown[..end.map_or(shown.len(), |(at, _)| at)]))
            }
            'c' => {
                let code = integer(value).and_then(|code| u32::try_from(code).ok());
                let single = value.as_str().filter(|text| text.chars().count() == 1);
                match (code.and_then(char::from_u32), single) {
                    (Some(c), _) => Ok(self.padded(&c.to_string())),
                    (None, Some(single)) => Ok(self.padded(single)),
                    (None, None) => Err(wanted("int or char")),
                }
            }
            'd' | 'i' | 'u' => {
                let float = number(value).ok_or_else(|| wanted("a real number"))?;
                let value = match integer(value) {
                    Some(integer) => from_integer(integer),
                    // Python cuts what is behind the point.
                    None if float.abs() < 1e38 => from_integer(float as i128),
                    None => return Err(invalid("%: the number is too large")),
                };
                self.numeric('d', &value)
            }
            'x' | 'X' | 'o' => {
                let value = integer(value).ok_or_else(|| wanted("an integer"))?;
                self.numeric(self.conversion, &from_integer(value))
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let value = number(value).ok_or_else(|| wanted("a real number"))?;
                self.numeric(self.conversion, &Value::from(value))
            }
            other => Err(invalid(format!(
                "%: unsupported format character {other:?}"
            ))),
        }
    }

    fn padded(&self, text: &str) -> String {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        let spaces = " ".repeat(missing);
        match self.flags.contains('-') {
            true => text.to_owned() + &spaces,
            false => spaces + text,
        }
    }

    fn numeric(&self, conversion: char, value: &Value) -> Result<String, Error> {
        let mut spec = format!("%{}", self.flags);
        if let Some(width) = self.width {
            spec += &width.to_string();
        }
        if let Some(precision) = self.precision {
            spec += &format!(".{precision}");
        }
        spec.push(conversion);
        format(FormatStyle::Printf, &spec, std::slice::from_ref(value))
    }
}

/// A number; true and false are 1 and 0.
fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone())
            .ok()
            .or(integer(value).map(|i| i as f64)),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn from_integer(integer: i128) -> Value {
    match i64::try_from(integer) {
        Ok(small) => Value::from(small),
        Err(_) => Value::from(integer),
    }
}

fn unsupported(operator: &str, a: &Value, b: &Value) -> Error {
    invalid(format!(
        "unsupported operand types for {operator}: {} and {}",
        a.kind(),
        b.kind()
    ))
}
