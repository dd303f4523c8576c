//! Which tool a call is of, and the input of a custom tool as the arguments of a function.

use serde_json::{Map, Value, json};

/// Between a namespace and the name of a tool, where the model reads both as one name; as in vLLM.
const SEPARATOR: &str = "__";
/// The argument of a custom tool.
const INPUT: &str = "input";

/// A tool that the model calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callee {
    /// Its name in its namespace.
    pub name: String,
    /// Where it has one.
    pub namespace: Option<String>,
    /// Whether its input is a text, not an object.
    pub is_custom: bool,
}

/// The name that the model reads.
pub fn flat_name(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{namespace}{SEPARATOR}{name}"),
        None => name.to_owned(),
    }
}

/// The arguments of a call with this input.
pub fn arguments_of(input: &str) -> String {
    json!({ INPUT: input }).to_string()
}

/// The input in the arguments of a call, as far as they go. Arguments of another form are the input as they are.
pub fn input_of(arguments: &str) -> String {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(object)) => only_text(&object).unwrap_or_else(|| arguments.to_owned()),
        Ok(Value::String(text)) => text,
        Ok(_) => arguments.to_owned(),
        Err(_) => cut_off(arguments).unwrap_or_default(),
    }
}

fn only_text(object: &Map<String, Value>) -> Option<String> {
    let text = match object.get(INPUT) {
        Some(text) => text,
        None if object.len() == 1 => object.values().next()?,
        None => return None,
    };
    text.as_str().map(str::to_owned)
}

/// The input in arguments that end within it, perhaps within an escape: two of `\u1234` are the longest.
fn cut_off(arguments: &str) -> Option<String> {
    let ends = arguments.char_indices().rev().map(|(at, _)| at).take(12);
    let ends = std::iter::once(arguments.len()).chain(ends);
    let objects =
        ends.filter_map(|end| serde_json::from_str(&format!("{}\"}}", &arguments[..end])).ok());
    objects.filter_map(|object| only_text(&object)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_comes_back() {
        for input in ["", "*** Begin \"Patch\"\n+é\u{1F600}\\", "{}"] {
            assert_eq!(input_of(&arguments_of(input)), input);
        }
        for (arguments, input) in [
            (r#"{"patch": "a"}"#, "a"),
            (r#"{"a": "b", "c": "d"}"#, r#"{"a": "b", "c": "d"}"#),
            (r#"{"input": 5}"#, r#"{"input": 5}"#),
            (r#""a""#, "a"),
            ("[1]", "[1]"),
            ("", ""),
            (r#"{"input"#, ""),
            (r#"{"input": "a\nb"#, "a\nb"),
            (r#"{"input": "a\"#, "a"),
            (r#"{"input": "a\ud83d\ude0"#, "a"),
            (r#"{"input": "a""#, "a"),
        ] {
            assert_eq!(input_of(arguments), input, "{arguments}");
        }
    }
}
