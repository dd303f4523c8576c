//! Values that Python's `json.dumps` writes and that JSON does not have.

use serde_json::Value;

use super::wide::behind_string;

/// These values.
const NO_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
/// Stands before such a value that was made a text, to be found again.
const MARK: char = '\u{f8ff}';

/// What is wrong with a text that `error` says is no JSON, if it is such a value: which one, where it is, and what to do.
pub(crate) fn no_number(json: &str, error: &serde_json::Error) -> Option<String> {
    let before: usize = json
        .split_inclusive('\n')
        .take(error.line().saturating_sub(1))
        .map(str::len)
        .sum();
    let at = before + error.column().saturating_sub(1);
    let all = places(json);
    let (_, value) = all
        .iter()
        .find(|(start, value)| (*start..start + value.len()).contains(&at))?;
    let place = match field(json, &all) {
        Some(field) if !field.is_empty() => format!("in field `{field}`"),
        _ => format!("at column {}", error.column()),
    };
    Some(format!(
        "found {value} {place}, and JSON has no such number: write null"
    ))
}

/// The values outside of strings, with the byte at which each begins.
fn places(json: &str) -> Vec<(usize, &'static str)> {
    let bytes = json.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at] == b'"' {
            at = behind_string(bytes, at);
            continue;
        }
        let value = NO_NUMBERS
            .into_iter()
            .find(|value| bytes[at..].starts_with(value.as_bytes()));
        found.extend(value.map(|value| (at, value)));
        at += value.map_or(1, str::len);
    }
    found
}

/// The field of the first of these values; `None` where the text is no JSON for another reason, too.
fn field(json: &str, all: &[(usize, &str)]) -> Option<String> {
    let mut marked = String::with_capacity(json.len() + 8 * all.len());
    let mut done = 0;
    for (start, value) in all {
        marked.push_str(&json[done..*start]);
        marked.push_str(&format!("\"{MARK}\""));
        done = start + value.len();
    }
    marked.push_str(&json[done..]);
    find(&serde_json::from_str(&marked).ok()?, String::new())
}

fn find(value: &Value, path: String) -> Option<String> {
    match value {
        Value::String(text) => (text.strip_prefix(MARK) == Some("")).then_some(path),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| find(item, format!("{path}[{index}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(key, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            find(value, format!("{path}{dot}{key}"))
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_named_with_its_field() {
        for (json, expected) in [
            (
                r#"{"a": "NaN", "score": NaN}"#,
                Some("found NaN in field `score`, "),
            ),
            (
                "{\"a\": [1,\n {\"b\": -Infinity}], \"c\": NaN}",
                Some("found -Infinity in field `a[1].b`, "),
            ),
            (r#"{"a": Infinity}"#, Some("found Infinity in field `a`, ")),
            (
                r#"{"a": NaN, "b": nonsense}"#,
                Some("found NaN at column 7, "),
            ),
            ("NaN", Some("found NaN at column 1, ")),
            (r#"{"a": nonsense, "b": NaN}"#, None),
            (r#"{"a": "NaN"#, None),
            ("{", None),
        ] {
            let error = serde_json::from_str::<Value>(json).unwrap_err();
            let found = no_number(json, &error);
            match expected {
                Some(expected) => {
                    let found = found.unwrap_or_default();
                    assert!(found.starts_with(expected), "{json}: {found}");
                    assert!(found.ends_with("write null"), "{found}");
                }
                None => assert_eq!(found, None, "{json}"),
            }
        }
    }
}
