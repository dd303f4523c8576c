//! The expressions of a template, as tokens.

use std::borrow::Cow;
use std::ops::Range;

/// Filters that make text safe, with which `+` escapes.
const ESCAPING: [&str; 4] = ["e", "escape", "forceescape", "safe"];

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Name,
    Number,
    Text,
    Open,
    Close,
    Operator,
}

#[derive(Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
    /// For a bracket, the place of its partner.
    pub(super) partner: usize,
}

/// What stands between `{{` and `}}`, or `{%` and `%}`.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) is_tag: bool,
    pub(super) tokens: Vec<Token>,
}

impl Part {
    pub(super) fn escapes(&self, source: &str) -> bool {
        self.tokens.iter().any(|token| match token.kind {
            Kind::Name => ESCAPING.contains(&&source[token.range.clone()]),
            Kind::Text => ESCAPING.contains(&source[token.range.clone()].trim_matches(['\'', '"'])),
            _ => false,
        })
    }
}

/// The parts of a template that have expressions; `None` where one has no end.
pub(super) fn expressions(source: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(start) = source[at..].find('{') {
        at += start;
        let (is_tag, end) = match source.as_bytes().get(at + 1) {
            Some(b'#') => {
                at += 2 + source[at + 2..].find("#}")? + 2;
                continue;
            }
            Some(b'{') => (false, "}}"),
            Some(b'%') => (true, "%}"),
            _ => {
                at += 1;
                continue;
            }
        };
        at += 2;
        at += usize::from(source[at..].starts_with(['-', '+']));
        let part = Part {
            is_tag,
            tokens: tokens(source, &mut at, end)?,
        };
        let is_raw = match part.tokens.first() {
            Some(first) => is_tag && &source[first.range.clone()] == "raw",
            None => false,
        };
        if is_raw {
            at = end_of_raw(source, at)?;
            continue;
        }
        parts.push(part);
    }
    Some(parts)
}

/// Where `{% endraw %}` ends.
fn end_of_raw(source: &str, mut at: usize) -> Option<usize> {
    loop {
        at += source[at..].find("{%")? + 2;
        let rest = source[at..].trim_start_matches(['-', '+']).trim_start();
        if rest.starts_with("endraw") {
            return Some(at + source[at..].find("%}")? + 2);
        }
    }
}

/// The tokens up to `end`, behind which `at` stands then.
fn tokens(source: &str, at: &mut usize, end: &str) -> Option<Vec<Token>> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut open = Vec::new();
    loop {
        let rest = &source[*at..];
        let c = rest.chars().next()?;
        let is_end = rest.starts_with(end)
            || rest.starts_with('-') && rest[1..].starts_with(end)
            || rest.starts_with('+') && rest[1..].starts_with(end);
        if is_end && open.is_empty() {
            *at += end.len() + usize::from(!rest.starts_with(end));
            return Some(tokens);
        }
        if c.is_whitespace() {
            *at += c.len_utf8();
            continue;
        }
        let mut partner = tokens.len();
        let (kind, len) = match c {
            '\'' | '"' => (Kind::Text, text_len(rest, c)?),
            '(' | '[' | '{' => {
                open.push((c, tokens.len()));
                (Kind::Open, 1)
            }
            ')' | ']' | '}' => {
                let (opened, place) = open.pop()?;
                if !matches!((opened, c), ('(', ')') | ('[', ']') | ('{', '}')) {
                    return None;
                }
                tokens[place].partner = tokens.len();
                partner = place;
                (Kind::Close, 1)
            }
            '0'..='9' => (Kind::Number, number_len(rest)),
            c if c.is_alphabetic() || c == '_' => {
                let is_inside = |c: char| c.is_alphanumeric() || c == '_';
                let len = rest.find(|c| !is_inside(c)).unwrap_or(rest.len());
                (Kind::Name, len)
            }
            c => {
                let two = ["**", "//", "==", "!=", "<=", ">="];
                let is_two = two.iter().any(|two| rest.starts_with(two));
                (Kind::Operator, if is_two { 2 } else { c.len_utf8() })
            }
        };
        let range = *at..*at + len;
        *at = range.end;
        tokens.push(Token {
            kind,
            range,
            partner,
        });
    }
}

/// Bytes of a text with its quotes.
fn text_len(rest: &str, quote: char) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            c if c == quote => return Some(i + 1),
            _ => {}
        }
    }
    None
}

/// Bytes of a number, whose exponent may have a sign.
fn number_len(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let is_hex = rest.starts_with("0x") || rest.starts_with("0X");
    let mut len = 1;
    while let Some(&byte) = bytes.get(len) {
        let is_sign = matches!(byte, b'+' | b'-')
            && !is_hex
            && matches!(bytes[len - 1], b'e' | b'E')
            && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
        // `1.upper` is no number, and neither is `1..2`.
        let is_point = byte == b'.' && bytes.get(len + 1).is_some_and(u8::is_ascii_digit);
        if !(byte.is_ascii_alphanumeric() || byte == b'_' || is_sign || is_point) {
            break;
        }
        len += 1;
    }
    len
}

/// A text whose long escapes are written out.
pub(super) fn with_escapes(text: &str) -> Result<Cow<'_, str>, String> {
    const OTHER: [&str; 6] = ["\\U", "\\N{", "\\\n", "\\a", "\\v", "\\/"];
    if !OTHER.iter().any(|escape| text.contains(escape)) {
        return Ok(text.into());
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = &rest[at..];
        let long = escape
            .strip_prefix("\\U")
            .and_then(|digits| digits.get(..8));
        let long = long.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let len = match long.and_then(char::from_u32) {
            // Neither a quote nor a backslash needs the long form.
            Some(c) if c.is_ascii() => {
                out.push_str(&format!("\\x{:02x}", c as u32));
                10
            }
            Some(c) => {
                out.push(c);
                10
            }
            None if escape.starts_with("\\N{") => {
                return Err(
                    "`\\N{…}` in a text: characters have no names here, write the character itself"
                        .to_owned(),
                );
            }
            None if escape.starts_with("\\\n") => 2,
            None if escape.starts_with("\\a") => {
                out.push_str("\\x07");
                2
            }
            None if escape.starts_with("\\v") => {
                out.push_str("\\x0b");
                2
            }
            None if escape.starts_with("\\/") => {
                out.push_str("\\\\/");
                2
            }
            None => {
                let len = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&escape[..len]);
                len
            }
        };
        rest = &escape[len..];
    }
    out.push_str(rest);
    Ok(out.into())
}
