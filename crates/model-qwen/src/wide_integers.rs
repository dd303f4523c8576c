//! Whole numbers that do not fit into 64 bits: parsed, they would be other numbers.

use serde_json::Value;

/// Stands before a wide number that was made a text, to be found again.
const MARK: char = '\u{f8ff}';
/// What is accepted, for messages.
pub const WIDE_EXPECTED: &str = "whole numbers of at most 64 bits; write a longer one as a text";

/// The first whole number of a JSON text that does not fit into 64 bits.
pub fn wide_integer(json: &str) -> Option<&str> {
    let mut numbers = Numbers(json, 0);
    numbers.find(|number| is_wide(number))
}

/// The first whole number of more than 64 bits in a JSON text that a template writes, which is in a field of `written`, and its
/// place before it: in a list of turns, or in the fields of an object that `is_read` says.
pub fn written_wide_integer(
    json: &str,
    is_read: &dyn Fn(&str) -> bool,
    written: &[&str],
) -> Option<(String, String)> {
    wide_integer(json)?;
    let mut marked = String::with_capacity(json.len() + 8);
    let mut numbers = Numbers(json, 0);
    let mut done = 0;
    while let Some(number) = numbers.next() {
        if is_wide(number) {
            let start = numbers.1 - number.len();
            marked.push_str(&json[done..start]);
            marked.push_str(&format!("\"{MARK}{number}\""));
            done = numbers.1;
        }
    }
    marked.push_str(&json[done..]);
    // What is no JSON gets an error of its own.
    match serde_json::from_str(&marked).ok()? {
        Value::Object(fields) => {
            let mut fields = fields.iter().filter(|(key, _)| is_read(key));
            fields.find_map(|(key, value)| {
                find(value, key.clone(), written.contains(&key.as_str()), written)
            })
        }
        other => find(&other, String::new(), false, written),
    }
}

fn find(
    value: &Value,
    path: String,
    is_written: bool,
    written: &[&str],
) -> Option<(String, String)> {
    match value {
        Value::String(text) if is_written => Some((path, text.strip_prefix(MARK)?.to_owned())),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| {
                find(item, format!("{path}[{index}]"), is_written, written)
            })
        }
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let is_written = is_written || written.contains(&key.as_str());
            find(value, format!("{path}.{key}"), is_written, written)
        }),
        _ => None,
    }
}

fn is_wide(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    digits.len() > 18
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && number.parse::<i64>().is_err()
        && number.parse::<u64>().is_err()
}

/// What is behind the string of JSON that begins at `start`; behind the end where it has none.
pub fn behind_string(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < json.len() && json[at] != b'"' {
        at += if json[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The numbers of a JSON text from a byte on.
struct Numbers<'a>(&'a str, usize);

impl<'a> Iterator for Numbers<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let Self(text, at) = self;
        let bytes = text.as_bytes();
        while *at < bytes.len() {
            match bytes[*at] {
                b'"' => *at = behind_string(bytes, *at),
                b'-' | b'0'..=b'9' => {
                    let start = *at;
                    let is_of_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
                    while bytes.get(*at).is_some_and(is_of_number) {
                        *at += 1;
                    }
                    return Some(&text[start..*at]);
                }
                _ => *at += 1,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: [&str; 3] = ["prompt", "tools", "arguments"];
    const WRITTEN: [&str; 2] = ["arguments", "tools"];

    #[test]
    fn wide_numbers_are_found_where_they_are_written() {
        for (json, expected) in [
            (
                r#"{"prompt":[{"arguments":{"n":[1,123456789012345678901234567890]}}]}"#,
                Some(("prompt[0].arguments.n[1]", "123456789012345678901234567890")),
            ),
            (
                r#"{"tools":[{"x":-9223372036854775809}]}"#,
                Some(("tools[0].x", "-9223372036854775809")),
            ),
            (
                r#"{"arguments":{"n":18446744073709551615,"m":-9223372036854775808}}"#,
                None,
            ),
            (
                r#"{"arguments":{"f":1e22,"g":123456789012345678901.0,"s":"\"99999999999999999999"}}"#,
                None,
            ),
            (
                r#"{"id":123456789012345678901234567890,"arguments":{}}"#,
                None,
            ),
            (
                r#"{"meta":{"tools":[{"id":123456789012345678901234567890}]}}"#,
                None,
            ),
            (r#"{"arguments":"\"#, None),
        ] {
            let found = written_wide_integer(json, &|field| READ.contains(&field), &WRITTEN);
            let found = found
                .as_ref()
                .map(|(path, number)| (path.as_str(), number.as_str()));
            assert_eq!(found, expected, "{json}");
        }
    }
}
