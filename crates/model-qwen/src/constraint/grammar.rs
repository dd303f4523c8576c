//! What a text may have to keep to.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::regex_to_lark;
use regex_syntax::escape;
use serde_json::{Map, Value, json};

use super::{ebnf, json_schema, numbers, patterns, structural_tag};
use crate::json_file::json_type;

/// Bytes of a grammar or of a regular expression, at most.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Characters of a reason that are of use to anybody.
const MAX_REASON: usize = 600;

/// What a text has to keep to, from its first character to its last.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// JSON that a JSON Schema (draft 2020-12, and what older ones have in common with it) accepts. Properties come in the order
    /// of the schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// All of the text matches a regular expression, in the syntax of Rust's `regex` crate without look-around.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in llguidance's dialect of Lark, whose first rule is `start`.
    Lark(String),
    /// A grammar in the EBNF of GBNF (`root ::= …`), as llama.cpp and xgrammar have it.
    Ebnf(String),
    /// Free text with parts that keep to a format, in xgrammar's terms: an object with `format`, or the older one with
    /// `structures` and `triggers`.
    StructuralTag(Value),
}

/// A grammar that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is not understood, contradicts itself, or needs something that is not supported.
    #[error("{0}")]
    Invalid(String),
    /// It is more than the limits allow.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The tokenizer's vocabulary can't be used.
    #[error("the tokenizer cannot be used with grammars: {0}")]
    Tokenizer(String),
}

/// How JSON is written, and how schemas are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonStyle {
    /// No white space outside of strings.
    pub compact: bool,
    /// A regular expression of the white space that may be wherever JSON may have some.
    pub whitespace_pattern: Option<String>,
    /// An object whose schema lists properties and says nothing of other ones has none; but if several schemas say something of an
    /// object (`allOf`), or one of its required properties is not listed, it may have other ones.
    pub closed_objects: bool,
}

impl Grammar {
    /// A grammar in Lark or EBNF, whichever `source` looks like: rules of EBNF have `::=`.
    pub fn from_source(source: String) -> Self {
        match ebnf::has_rules(&source) {
            true => Self::Ebnf(source),
            false => Self::Lark(source),
        }
    }

    /// The same with its JSON in this style. `x-guidance` in a schema, llguidance's own key, wins.
    #[must_use]
    pub fn styled(self, style: &JsonStyle) -> Self {
        if *style == JsonStyle::default() {
            return self;
        }
        match self {
            Self::JsonObject => {
                Self::JsonSchema(json_schema::styled(json!({"type": "object"}), style))
            }
            Self::JsonSchema(schema) => Self::JsonSchema(json_schema::styled(schema, style)),
            Self::StructuralTag(tag) => Self::StructuralTag(structural_tag::styled(tag, style)),
            other => other,
        }
    }

    /// The grammar as llguidance takes it.
    pub(super) fn to_llguidance(&self) -> Result<TopLevelGrammar, GrammarError> {
        Ok(match self {
            Self::JsonSchema(schema) => {
                TopLevelGrammar::from_json_schema(json_schema::prepared(schema)?)
            }
            Self::JsonObject => {
                let schema = json_schema::prepared(&json!({"type": "object"}))?;
                TopLevelGrammar::from_json_schema(schema)
            }
            Self::Regex(regex) => {
                patterns::check(sized(regex)?)?;
                regex_grammar(unanchored(regex))
            }
            Self::Choice(choices) => regex_grammar(sized(&alternatives(choices)?)?),
            Self::Lark(source) => {
                numbers::check_lark(sized(source)?)?;
                TopLevelGrammar::from_lark(source.clone())
            }
            Self::Ebnf(source) => TopLevelGrammar::from_lark(ebnf::to_lark(sized(source)?)?),
            Self::StructuralTag(tag) => structural_tag::to_llguidance(tag)?,
        })
    }
}

pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T, GrammarError> {
    Err(GrammarError::Invalid(message.into()))
}

pub(super) fn sized(source: &str) -> Result<&str, GrammarError> {
    if source.is_empty() {
        return invalid("expected a text, found an empty one");
    }
    match source.len() {
        ..=MAX_SOURCE_BYTES => Ok(source),
        len => Err(GrammarError::TooLarge(format!(
            "expected at most {MAX_SOURCE_BYTES} bytes, found {len}"
        ))),
    }
}

fn regex_grammar(regex: &str) -> TopLevelGrammar {
    let grammar = GrammarWithLexer {
        name: Some("regex".to_owned()),
        lark_grammar: Some(format!("start: {}", lark_regex(regex))),
        ..GrammarWithLexer::default()
    };
    TopLevelGrammar::from_grammar(grammar)
}

/// A regular expression as Lark writes it.
pub(super) fn lark_regex(regex: &str) -> String {
    format!("/{}/", regex_to_lark(regex, ""))
}

/// A text as Lark writes it.
pub(super) fn lark_string(text: &str) -> String {
    // Lark takes JSON's strings, but no bare DEL.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A regular expression that matches all of a text has no need of anchors at its ends, which llguidance doesn't take.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let Some(rest) = regex.strip_suffix('$') else {
        return regex;
    };
    let escapes = rest.bytes().rev().take_while(|byte| *byte == b'\\').count();
    match escapes % 2 {
        0 => rest,
        _ => regex,
    }
}

/// A regular expression of exactly these texts.
fn alternatives(choices: &[String]) -> Result<String, GrammarError> {
    if choices.is_empty() {
        return invalid("expected at least one choice, found none");
    }
    if choices.iter().any(String::is_empty) {
        return invalid("expected choices of at least one character, found an empty one");
    }
    let choices: Vec<String> = choices.iter().map(|choice| escape(choice)).collect();
    Ok(format!("(?:{})", choices.join("|")))
}

/// What is worth reading in an error of llguidance.
pub(super) fn reason(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let ends = ["<non-verbose/>", "<backtrace>", "<state>"];
    let end = ends.iter().filter_map(|end| text.find(end)).min();
    let text = text[..end.unwrap_or(text.len())].trim();
    let text = match text {
        // llguidance's name for it.
        "NoExtensionBias" => "no text fits it",
        text => text,
    };
    match text.chars().nth(MAX_REASON) {
        None => text.to_owned(),
        Some(_) => text.chars().take(MAX_REASON).chain("…".chars()).collect(),
    }
}

/// An object of a request, whose every key is known; other keys may say nothing: null, false or an empty list.
pub(super) fn object<'a>(
    value: &'a Value,
    what: &str,
    keys: &[&str],
) -> Result<&'a Map<String, Value>, GrammarError> {
    let Value::Object(object) = value else {
        return invalid(format!(
            "{what}: expected an object, found {}",
            json_type(value)
        ));
    };
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    let unknown = object
        .iter()
        .find(|(key, value)| !keys.contains(&key.as_str()) && !says_nothing(value));
    match unknown {
        None => Ok(object),
        Some((key, _)) => invalid(format!(
            "{what}: the key `{key}` is not supported, expected {}",
            keys.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_are_left_out() {
        for (regex, expected) in [
            ("^a$", "a"),
            (r"^a\$", r"a\$"),
            (r"a\\$", r"a\\"),
            ("a", "a"),
            ("^", ""),
        ] {
            assert_eq!(unanchored(regex), expected, "{regex}");
        }
    }

    #[test]
    fn reasons_are_short_and_without_states() {
        assert_eq!(reason(&"no\n<state>\n5"), "no");
        assert_eq!(reason(&"NoExtensionBias"), "no text fits it");
        assert_eq!(reason(&"é".repeat(2000)).chars().count(), MAX_REASON + 1);
    }
}
