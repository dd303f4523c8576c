//! What a text may have to keep to.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use regex_syntax::escape;
use serde_json::{Value, json};

use super::grammar_error::{GrammarError, invalid};
use super::json_style::JsonStyle;
use super::lark::{lark_regex, sized};
use super::{ebnf, json_schema, lark, patterns, structural_tag};

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
            Self::Lark(source) => lark::to_llguidance(source)?,
            Self::Ebnf(source) => ebnf::to_llguidance(source)?,
            Self::StructuralTag(tag) => structural_tag::to_llguidance(tag)?,
        })
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
}
