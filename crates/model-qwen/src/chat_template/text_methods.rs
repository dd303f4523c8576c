//! Methods of Python's strings and lists that minijinja's own set lacks.

use minijinja::value::{Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::fuel;

/// Calls a method of a string; `None` where it is none of these.
pub(super) fn of_text(
    state: &State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    Some(match method {
        "removeprefix" => with_text(args, |prefix| {
            text.strip_prefix(prefix).unwrap_or(text).into()
        }),
        "removesuffix" => with_text(args, |suffix| {
            text.strip_suffix(suffix).unwrap_or(text).into()
        }),
        "partition" => partition(args, |separator| text.split_once(separator), [text, "", ""]),
        "rpartition" => partition(
            args,
            |separator| text.rsplit_once(separator),
            ["", "", text],
        ),
        "index" => index(args, |part| text.find(part), text),
        "rindex" => index(args, |part| text.rfind(part), text),
        "rsplit" => rsplit(text, args),
        "ljust" | "rjust" | "center" | "zfill" => padded(state, text, method, args),
        _ => return None,
    })
}

/// `list.index(value)`.
pub(super) fn list_index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    for (i, item) in list.try_iter()?.checked().enumerate() {
        if item? == *wanted {
            return Ok(Value::from(i));
        }
    }
    Err(invalid(format!("{wanted:?} is not in list")))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn with_text(args: &[Value], result: impl Fn(&str) -> Value) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    Ok(result(part))
}

fn separator(args: &[Value]) -> Result<&str, Error> {
    let (separator,): (&str,) = from_args(args)?;
    match separator.is_empty() {
        true => Err(invalid("empty separator")),
        false => Ok(separator),
    }
}

fn partition<'t>(
    args: &[Value],
    split: impl Fn(&str) -> Option<(&'t str, &'t str)>,
    otherwise: [&'t str; 3],
) -> Result<Value, Error> {
    let separator = separator(args)?;
    let parts = match split(separator) {
        Some((before, after)) => [before, separator, after],
        None => otherwise,
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn index(args: &[Value], find: impl Fn(&str) -> Option<usize>, text: &str) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    let at = find(part).ok_or_else(|| invalid("substring not found"))?;
    Ok(Value::from(text[..at].chars().count()))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    // A negative number is none.
    let most = most.and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => parts.extend(text.rsplitn(most + 1, separator)),
        None => {
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                let start = rest
                    .rfind(char::is_whitespace)
                    .filter(|_| parts.len() < most);
                let start = start.map_or(0, |at| {
                    at + rest[at..].chars().next().map_or(0, char::len_utf8)
                });
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end();
            }
        }
    }
    Ok(parts.into_iter().rev().map(Value::from).collect())
}

fn padded(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let mut fill = fill.unwrap_or(" ").chars();
    let fill = match (fill.next(), fill.next()) {
        (Some(fill), None) => fill,
        _ => {
            return Err(invalid(
                "the fill character must be exactly one character long",
            ));
        }
    };
    let missing = width.saturating_sub(text.chars().count());
    fuel::pay(state, missing.saturating_mul(4))?;
    let pad = |num: usize, fill: char| std::iter::repeat_n(fill, num).collect::<String>();
    let sign = text.starts_with(['+', '-']).into();
    Ok(Value::from(match method {
        "ljust" => text.to_owned() + &pad(missing, fill),
        "rjust" => pad(missing, fill) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(sign);
            sign.to_owned() + &pad(missing, '0') + digits
        }
        _ => {
            // As Python rounds.
            let left = missing / 2 + (missing & width & 1);
            pad(left, fill) + text + &pad(missing - left, fill)
        }
    }))
}
