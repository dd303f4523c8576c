//! Methods of Python's strings and lists that minijinja's own set lacks.

use std::borrow::Cow;
use std::ops::Range;

use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, State, Value};

use super::arguments::invalid;
use super::text_classes::{is_all, is_space, recased};
use super::{fuel, python};

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
        "strip" | "lstrip" | "rstrip" => strip(text, method, args),
        "split" => split(text, args),
        "splitlines" => splitlines(text, args),
        "startswith" | "endswith" => has_affix(text, method, args),
        "expandtabs" => expandtabs(state, text, args),
        "title" | "swapcase" | "casefold" => from_args(args).map(|()| recased(text, method).into()),
        "isdecimal" | "isdigit" | "isidentifier" | "isprintable" | "isspace" | "istitle" => {
            from_args(args).map(|()| is_all(text, method).into())
        }
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
        "expandtabs" => &["tabsize"],
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

/// `text[start:end]`, and the place of its first character. Behind the end there is not even an empty part.
fn within(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    let len = text.chars().count();
    if start.is_some_and(|start| usize::try_from(start).is_ok_and(|at| at > len)) {
        return None;
    }
    let range = slice(len, start, end);
    let byte = |place: usize| {
        let place = text.char_indices().nth(place);
        place.map_or(text.len(), |(at, _)| at)
    };
    Some((&text[byte(range.start)..byte(range.end)], range.start))
}

/// Where a part of a text begins, in characters.
fn place(
    method: &str,
    args: &[Value],
    text: &str,
    find: impl Fn(&str, &str) -> Option<usize>,
) -> Result<Value, Error> {
    let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let found = within(text, start, end).and_then(|(within, first)| {
        let before = &within[..find(within, part)?];
        Some(first + before.chars().count())
    });
    match found {
        Some(place) => Ok(Value::from(place)),
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
            let mut rest = text.trim_end_matches(is_space);
            while !rest.is_empty() {
                let start = rest.rfind(is_space).filter(|_| parts.len() < most);
                let start = start.map_or(0, |at| {
                    at + rest[at..].chars().next().map_or(0, char::len_utf8)
                });
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
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

fn strip(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    let is_cut = |c| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    Ok(Value::from(match method {
        "lstrip" => text.trim_start_matches(is_cut),
        "rstrip" => text.trim_end_matches(is_cut),
        _ => text.trim_matches(is_cut),
    }))
}

fn split(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => parts.extend(text.splitn(most + 1, separator)),
        None => {
            let mut rest = text.trim_start_matches(is_space);
            while !rest.is_empty() {
                let end = rest.find(is_space).filter(|_| parts.len() < most);
                let end = end.unwrap_or(rest.len());
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
        }
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keepends,): (Option<Value>,) = from_args(args)?;
    let keepends = keepends.is_some_and(|keepends| keepends.is_true());
    Ok(lines(text, keepends).into_iter().map(Value::from).collect())
}

/// The lines of a text, which end where Python has it.
pub(super) fn lines(text: &str, keepends: bool) -> Vec<&str> {
    let is_end =
        |c| matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_end).unwrap_or(rest.len());
        let mut behind = rest[end..].chars();
        let first = behind.next();
        let is_pair = first == Some('\r') && behind.next() == Some('\n');
        let next = end + first.map_or(0, char::len_utf8) + usize::from(is_pair);
        lines.push(&rest[..if keepends { next } else { end }]);
        rest = &rest[next..];
    }
    lines
}

/// `startswith` and `endswith`: a text or a tuple of texts, within a part of the text.
fn has_affix(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (affix, start, end): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let within = within(text, start, end).map(|(within, _)| within);
    let has = |affix: &Value| match (affix.as_str(), method) {
        (Some(affix), "startswith") => Ok(within.is_some_and(|text| text.starts_with(affix))),
        (Some(affix), _) => Ok(within.is_some_and(|text| text.ends_with(affix))),
        (None, _) => Err(invalid(format!(
            "{method}: expected a text or a tuple of texts, found {}",
            affix.kind()
        ))),
    };
    let found = match python::is_tuple(affix) {
        true => {
            let mut affixes = affix.try_iter()?.checked();
            affixes.try_fold(false, |found, affix| Ok::<_, Error>(found || has(&affix?)?))?
        }
        false => has(affix)?,
    };
    Ok(Value::from(found))
}

fn expandtabs(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let (width,): (Option<i64>,) = from_args(args)?;
    let width = usize::try_from(width.unwrap_or(8)).unwrap_or(0);
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let missing = if width == 0 {
                    0
                } else {
                    width - column % width
                };
                fuel::pay(state, missing)?;
                out.extend(std::iter::repeat_n(' ', missing));
                column += missing;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}
