//! Methods of Python's strings and lists that minijinja's own set lacks.

use std::borrow::Cow;
use std::ops::Range;

use minijinja::value::{Kwargs, Tuple, from_args};
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
        "find" | "index" => place(method, args, text, |text, part| text.find(part)),
        "rfind" | "rindex" => place(method, args, text, |text, part| text.rfind(part)),
        "rsplit" => rsplit(text, args),
        "ljust" | "rjust" | "center" => padded(state, text, method, args),
        "zfill" => zfill(state, text, args),
        _ => return None,
    })
}

/// `list.index(value, start, end)`.
pub(super) fn list_index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let range = slice(list.len().unwrap_or(0), start, end);
    let items = list.try_iter()?.checked().enumerate();
    for (i, item) in items.skip(range.start).take(range.len()) {
        if item? == *wanted {
            return Ok(Value::from(i));
        }
    }
    Err(invalid(format!("{wanted:?} is not in list")))
}

/// The arguments of a method by place, some of which Python takes by name, too.
pub(super) fn by_place<'a>(method: &str, args: &'a [Value]) -> Result<Cow<'a, [Value]>, Error> {
    let names: &[&str] = match method {
        "split" | "rsplit" => &["sep", "maxsplit"],
        "splitlines" => &["keepends"],
        _ => return Ok(args.into()),
    };
    let Some((last, places)) = args.split_last().filter(|(last, _)| last.is_kwargs()) else {
        return Ok(args.into());
    };
    let (mut places, named) = (places.to_vec(), Kwargs::try_from(last.clone())?);
    for name in names.iter().skip(places.len()) {
        let value: Option<Value> = named.get(name)?;
        places.push(value.unwrap_or(Value::from(())));
    }
    named.assert_all_used()?;
    Ok(places.into())
}

/// What `[start:end]` is of `len` items.
fn slice(len: usize, start: Option<i64>, end: Option<i64>) -> Range<usize> {
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at.min(len),
        Err(_) => len.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(len, place));
    start..end.max(start)
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

/// Where a part of a text begins, in characters.
fn place(
    method: &str,
    args: &[Value],
    text: &str,
    find: impl Fn(&str, &str) -> Option<usize>,
) -> Result<Value, Error> {
    let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let len = text.chars().count();
    let range = slice(len, start, end);
    let byte = |place: usize| {
        text.char_indices()
            .nth(place)
            .map_or(text.len(), |(at, _)| at)
    };
    let within = &text[byte(range.start)..byte(range.end)];
    // Behind the end there is not even an empty part.
    let is_behind = start.is_some_and(|start| usize::try_from(start).is_ok_and(|at| at > len));
    match find(within, part).filter(|_| !is_behind) {
        Some(at) => Ok(Value::from(range.start + within[..at].chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid("substring not found")),
    }
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
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut fill = fill.unwrap_or(" ").chars();
    let fill = match (fill.next(), fill.next()) {
        (Some(fill), None) => fill,
        _ => {
            return Err(invalid(
                "the fill character must be exactly one character long",
            ));
        }
    };
    let width = usize::try_from(width).unwrap_or(0);
    let missing = missing(state, text, width)?;
    let pad = |num: usize| std::iter::repeat_n(fill, num).collect::<String>();
    Ok(Value::from(match method {
        "ljust" => text.to_owned() + &pad(missing),
        "rjust" => pad(missing) + text,
        _ => {
            // As Python rounds.
            let left = missing / 2 + (missing & width & 1);
            pad(left) + text + &pad(missing - left)
        }
    }))
}

fn zfill(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (width,): (i64,) = from_args(args)?;
    let missing = missing(state, text, usize::try_from(width).unwrap_or(0))?;
    let (sign, digits) = text.split_at(text.starts_with(['+', '-']).into());
    Ok(Value::from(sign.to_owned() + &"0".repeat(missing) + digits))
}

/// Characters that a text lacks of a width, which are paid for.
fn missing(state: &State<'_, '_>, text: &str, width: usize) -> Result<usize, Error> {
    let missing = width.saturating_sub(text.chars().count());
    fuel::pay(state, missing.saturating_mul(4))?;
    Ok(missing)
}
