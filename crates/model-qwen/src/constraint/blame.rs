//! What is wrong with a grammar, in terms of the client's own expressions.
//!
//! llguidance says where in its own grammar an expression fails. A client wants to know where in its own expression.

use serde_json::{Map, Value};

use super::grammar::Grammar;
use super::grammar_error::GrammarError;
use super::keywords::with_place;
use super::patterns::{MAX_SHOWN, fault};
use super::subschemas::find_inside;

/// Where llguidance writes what is wrong with the terminal of a regular expression, and where its own grammar begins.
const OF_TERMINAL: &str = "(in regex): ";
const OWN_GRAMMAR: &str = "\n   1 | start:";
/// How the message of a regular expression begins that cannot be parsed.
const PARSE_ERROR: &str = "regex parse error";
/// How llguidance calls assertions, which look at the characters beside them.
const LOOK: &str = "lookarounds not supported";

/// The error of a grammar, in terms of the client's own expressions.
pub(super) fn blamed(grammar: &Grammar, error: GrammarError) -> GrammarError {
    let GrammarError::Invalid(reason) = error else {
        return error;
    };
    GrammarError::Invalid(match grammar {
        Grammar::Regex(_) => of_regex(&reason),
        Grammar::JsonSchema(schema) => of_schema(schema, reason),
        _ => reason,
    })
}

/// The part of a reason that is about the expression.
fn of_regex(reason: &str) -> String {
    if reason.contains(LOOK) {
        let message = "it matches the whole text, so anchors inside of it and word boundaries are not supported";
        return message.to_owned();
    }
    let own = reason.split_once(OF_TERMINAL).map_or(reason, |(_, of)| of);
    let own = own.split_once(OWN_GRAMMAR).map_or(own, |(own, _)| own);
    own.to_owned()
}

/// The reason in terms of the schema's own expression, if it is about one.
fn of_schema(schema: &Value, reason: String) -> String {
    match in_schema(schema) {
        None => with_place(schema, reason),
        Some(fault) if reason.contains(PARSE_ERROR) => fault,
        Some(fault) => format!("{reason}; also {fault}"),
    }
}

/// The first regular expression of a schema whose syntax is wrong: its place, and what is wrong.
fn in_schema(schema: &Value) -> Option<String> {
    let (steps, fault) = find_inside(schema, &mut |schema: &Map<String, Value>| {
        let own = schema.get("pattern").and_then(Value::as_str);
        if let Some(fault) = own.and_then(fault) {
            return Some(format!("pattern: {fault}"));
        }
        let names = schema.get("patternProperties").and_then(Value::as_object)?;
        names.keys().find_map(|pattern| {
            let fault = fault(pattern)?;
            let shown: String = pattern.chars().take(MAX_SHOWN).collect();
            Some(format!("patternProperties[{shown:?}]: {fault}"))
        })
    })?;
    let steps = steps.iter().rev().map(|step| format!("{step}."));
    Some(steps.chain([fault]).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pattern_of_a_schema_is_named() {
        let inside = json!({ "type": "array", "items": { "type": "string", "pattern": "(a" } });
        let schema = json!({ "type": "object", "properties": { "names": inside } });
        let expected = "properties.names.items.pattern: unclosed group at character 1: `(`";
        assert_eq!(in_schema(&schema).unwrap(), expected);
        let names = json!({ "patternProperties": { "[z-a]": {} } });
        let found = in_schema(&names).unwrap();
        assert!(
            found.starts_with(r#"patternProperties["[z-a]"]: invalid character class range"#),
            "{found}"
        );
        assert_eq!(in_schema(&json!({ "pattern": "a" })), None);
        let options = json!({ "anyOf": [{ "pattern": "a" }, { "pattern": "a{3,1}" }] });
        let found = in_schema(&options).unwrap();
        assert!(found.starts_with("anyOf[1].pattern: "), "{found}");
    }

    #[test]
    fn a_reason_that_is_about_no_expression_stays() {
        let schema = json!({ "$defs": { "unused": { "pattern": "(a" } }, "minItems": -1 });
        let blames = |schema: &Value, reason: &str| {
            let error = GrammarError::Invalid(reason.to_owned());
            blamed(&Grammar::JsonSchema(schema.clone()), error).to_string()
        };
        let fault = "$defs.unused.pattern: unclosed group at character 1: `(`";
        let parses = "regex parse error:\n    (a\n    ^\nerror: unclosed group";
        assert_eq!(blames(&schema, parses), fault);
        let said = format!("minItems is below 0; also {fault}");
        assert_eq!(blames(&schema, "minItems is below 0"), said);
        assert_eq!(blames(&json!({ "pattern": "a" }), "no text"), "no text");
    }
}
