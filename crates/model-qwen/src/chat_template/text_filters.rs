//! Filters of texts.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::arguments::{Given, arguments, count, invalid, is_true};
use super::number_filters::python_float;
use super::pretty;
use super::text_classes::is_space;
use super::text_methods::{lines, of_text};
use super::wrap::Wrap;
use super::{fuel, python};

/// Puts these filters where templates find them.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("string", python::string);
    for name in ["e", "escape"] {
        environment.add_filter(name, python::escape);
    }
    environment.add_filter("forceescape", python::force_escape);
    environment.add_filter("pprint", pretty::pprint);
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("xmlattr", xmlattr);
    environment.add_filter("wordwrap", wordwrap);
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("striptags", striptags);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("indent", indent);
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
}

fn text_of(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Ok(String::new());
    }
    let text = python::to_display(value, &|num_bytes| fuel::pay(state, num_bytes))?;
    fuel::pay(state, text.len())?;
    Ok(text)
}

/// Text of text: as safe as `value`.
fn as_safe_as(value: &Value, text: String) -> Value {
    match value.is_safe() {
        true => Value::from_safe_string(text),
        false => Value::from(text),
    }
}

fn filesizeformat(value: &Value, given: Given) -> Result<String, Error> {
    const DECIMAL: [&str; 8] = ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
    const BINARY: [&str; 8] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];
    let [binary] = arguments(given, ["binary"])?;
    let (base, prefixes) = match is_true(binary, false) {
        true => (1024.0_f64, BINARY),
        false => (1000.0, DECIMAL),
    };
    let num_bytes = python_float(value);
    let num_bytes = num_bytes.ok_or_else(|| invalid("filesizeformat: expected a number"))?;
    if num_bytes == 1.0 {
        return Ok("1 Byte".to_owned());
    }
    if num_bytes < base {
        return Ok(format!("{} Bytes", num_bytes.trunc()));
    }
    let mut unit = base;
    for (i, prefix) in prefixes.iter().enumerate() {
        unit *= base;
        if num_bytes < unit || i + 1 == prefixes.len() {
            return Ok(format!("{:.1} {prefix}", base * num_bytes / unit));
        }
    }
    Err(invalid("filesizeformat: expected a number"))
}

fn xmlattr(state: &State<'_, '_>, value: &Value, given: Given) -> Result<String, Error> {
    let [autospace] = arguments(given, ["autospace"])?;
    if value.kind() != ValueKind::Map {
        return Err(invalid("xmlattr: expected a mapping"));
    }
    let mut attributes = Vec::new();
    for key in value.try_iter()?.checked() {
        let key = key?;
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = key.as_str().unwrap_or_default();
        if name.is_empty() || name.contains(|c: char| c.is_ascii_whitespace() || "/>=".contains(c))
        {
            return Err(invalid(format!(
                "xmlattr: invalid name of an attribute: {key:?}"
            )));
        }
        let (name, item) = (python::escape(state, &key)?, python::escape(state, &item)?);
        attributes.push(format!("{name}=\"{item}\""));
    }
    let space = if is_true(autospace, true) && !attributes.is_empty() {
        " "
    } else {
        ""
    };
    Ok(space.to_owned() + &attributes.join(" "))
}

fn wordwrap(state: &State<'_, '_>, text: &str, given: Given) -> Result<String, Error> {
    let names = [
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let [width, break_long_words, wrapstring, break_on_hyphens] = arguments(given, names)?;
    let wrap = Wrap {
        width: count(width, "wordwrap: width", 79)?,
        break_long_words: is_true(break_long_words, true),
        break_on_hyphens: is_true(break_on_hyphens, true),
    };
    let between = wrapstring.filter(|value| !value.is_none());
    let between = between.unwrap_or_else(|| Value::from("\n"));
    let between = between
        .as_str()
        .ok_or_else(|| invalid("wordwrap: wrapstring: expected a text"))?;
    fuel::pay(state, text.len().saturating_mul(32 + between.len()))?;
    let mut wrapped = Vec::new();
    for line in lines(text, false) {
        wrapped.push(wrap.lines(line)?.join(between));
    }
    Ok(wrapped.join(between))
}

fn wordcount(state: &State<'_, '_>, value: &Value) -> Result<usize, Error> {
    let text = text_of(state, value)?;
    let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    Ok(words.filter(|word| !word.is_empty()).count())
}

fn center(state: &State<'_, '_>, value: &Value, given: Given) -> Result<Value, Error> {
    let [width] = arguments(given, ["width"])?;
    let width = Value::from(count(width, "center: width", 80)?);
    let text = text_of(state, value)?;
    let centred = of_text(state, &text, "center", &[width]);
    let centred = centred.unwrap_or_else(|| Ok(Value::from(text)))?;
    Ok(as_safe_as(
        value,
        centred.as_str().unwrap_or_default().to_owned(),
    ))
}

fn truncate(state: &State<'_, '_>, text: &str, given: Given) -> Result<String, Error> {
    let [length, killwords, end, leeway] =
        arguments(given, ["length", "killwords", "end", "leeway"])?;
    let length = count(length, "truncate: length", 255)?;
    let leeway = count(
        leeway.filter(|value| !value.is_none()),
        "truncate: leeway",
        5,
    )?;
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = end
        .as_str()
        .ok_or_else(|| invalid("truncate: end: expected a text"))?;
    fuel::pay(state, text.len())?;
    let kept = length.checked_sub(end.chars().count());
    let kept = kept.ok_or_else(|| {
        invalid(format!(
            "truncate: length: expected the length of {end:?} or more"
        ))
    })?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let at = text
        .char_indices()
        .nth(kept)
        .map_or(text.len(), |(at, _)| at);
    let kept = &text[..at];
    let words = kept.rsplit_once(' ').map_or(kept, |(words, _)| words);
    Ok(if is_true(killwords, false) {
        kept
    } else {
        words
    }
    .to_owned()
        + end)
}

fn striptags(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let text = text_of(state, value)?;
    fuel::pay(state, text.len().saturating_mul(2))?;
    let (mut kept, mut rest) = (String::new(), text.as_str());
    while let Some(start) = rest.find('<') {
        let tag = &rest[start..];
        let (at, mark) = if tag.starts_with("<!--") {
            (4, "-->")
        } else {
            (0, ">")
        };
        let Some(end) = tag[at..].find(mark) else {
            break;
        };
        kept.push_str(&rest[..start]);
        rest = &tag[at + end + mark.len()..];
    }
    kept.push_str(rest);
    let words: Vec<&str> = kept
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    unescape(&words.join(" "))
}

/// `html.unescape` of what `escape` makes, and of numbers.
fn unescape(text: &str) -> Result<String, Error> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '#');
        let name = &rest[..end.unwrap_or(rest.len())];
        let number = name
            .strip_prefix('#')
            .map(|digits| match digits.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => digits.parse(),
            });
        let c = match (name, number) {
            ("amp", _) => '&',
            ("lt", _) => '<',
            ("gt", _) => '>',
            ("quot", _) => '"',
            ("apos", _) => '\'',
            ("nbsp", _) => '\u{a0}',
            (_, Some(Ok(code))) if code >= 0xa0 || (0x20..0x7f).contains(&code) => {
                char::from_u32(code).unwrap_or('\u{fffd}')
            }
            // An ampersand that begins nothing.
            ("" | "#", _) => {
                out.push('&');
                continue;
            }
            _ => return Err(invalid(format!("striptags: `&{name}` is not supported"))),
        };
        out.push(c);
        rest = &rest[name.len()..];
        rest = rest.strip_prefix(';').unwrap_or(rest);
    }
    out.push_str(rest);
    Ok(out)
}

fn urlencode(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let quote = |value: &Value, is_query: bool| -> Result<String, Error> {
        let text = text_of(state, value)?;
        fuel::pay(state, text.len().saturating_mul(3))?;
        let mut out = String::with_capacity(text.len());
        for byte in text.bytes() {
            match byte {
                b' ' if is_query => out.push('+'),
                b'/' if !is_query => out.push('/'),
                b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
                byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
                byte => out.push_str(&format!("%{byte:02X}")),
            }
        }
        Ok(out)
    };
    let mut pairs = Vec::new();
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                pairs.push([quote(&key, true)?, quote(&value.get_item(&key)?, true)?].join("="));
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for pair in value.try_iter()?.checked() {
                let pair = pair?
                    .try_iter()?
                    .checked()
                    .take(3)
                    .collect::<Result<Vec<_>, _>>()?;
                let [key, item] = &*pair else {
                    return Err(invalid("urlencode: expected pairs"));
                };
                pairs.push([quote(key, true)?, quote(item, true)?].join("="));
            }
        }
        _ => return quote(value, false),
    }
    Ok(pairs.join("&"))
}

fn indent(state: &State<'_, '_>, value: &Value, given: Given) -> Result<Value, Error> {
    let [width, first, blank] = arguments(given, ["width", "first", "blank"])?;
    let margin = match width.as_ref().and_then(Value::as_str) {
        Some(margin) => margin.to_owned(),
        None => {
            let width = count(width, "indent: width", 4)?;
            fuel::pay(state, width)?;
            " ".repeat(width)
        }
    };
    let text = value
        .as_str()
        .ok_or_else(|| invalid("indent: expected a text"))?;
    let text = format!("{text}\n");
    let text_lines = lines(&text, false);
    fuel::pay(
        state,
        text.len() + text_lines.len().saturating_mul(margin.len() + 16),
    )?;
    let indents_blank = is_true(blank, false);
    let mut out = String::new();
    if is_true(first, false) {
        out.push_str(&margin);
    }
    for (i, line) in text_lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if indents_blank || !line.is_empty() {
                out.push_str(&margin);
            }
        }
        out.push_str(line);
    }
    // `blank` also indents behind the last newline.
    Ok(as_safe_as(value, out))
}

fn trim(state: &State<'_, '_>, value: &Value, given: Given) -> Result<Value, Error> {
    let [chars] = arguments(given, ["chars"])?;
    let text = text_of(state, value)?;
    let chars = chars.filter(|chars| !chars.is_none());
    let trimmed = match chars.as_ref().map(|chars| chars.as_str()) {
        Some(Some(chars)) => {
            fuel::pay(state, text.len().saturating_mul(chars.len()))?;
            text.trim_matches(|c| chars.contains(c))
        }
        Some(None) => return Err(invalid("trim: chars: expected a text")),
        None => text.trim_matches(is_space),
    };
    Ok(as_safe_as(value, trimmed.to_owned()))
}

fn replace(state: &State<'_, '_>, value: &Value, given: Given) -> Result<String, Error> {
    let [old, new, count] = arguments(given, ["old", "new", "count"])?;
    let (Some(old), Some(new)) = (old, new) else {
        return Err(ErrorKind::MissingArgument.into());
    };
    let most = count.filter(|count| !count.is_none());
    let most = most
        .map(i64::try_from)
        .transpose()?
        .and_then(|most| usize::try_from(most).ok());
    let text = text_of(state, value)?;
    let (old, new) = (text_of(state, &old)?, text_of(state, &new)?);
    let num = text.matches(&old).take(most.unwrap_or(usize::MAX)).count();
    fuel::pay(state, text.len() + num.saturating_mul(new.len()))?;
    Ok(text.replacen(&old, &new, num))
}
