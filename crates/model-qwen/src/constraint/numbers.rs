//! Numbers of a schema, kept to those that llguidance can write.
//!
//! llguidance counts in `f64` and `i64`: beyond their ends it recurses without end, and between the integers that an `f64` holds
//! it writes another one.

use serde_json::{Map, Number, Value};

use super::grammar_error::{GrammarError, invalid};
use super::subschemas::for_each_mut;

/// The largest `f64` below 2^63.
const MAX: i64 = i64::MAX - 1023;

/// Brings bounds nearer that no number here can reach, in all schemas inside `schema`.
///
/// # Errors
/// For bounds that only larger numbers keep to, and for constants that would not be written as they are.
pub(super) fn bounded(schema: &mut Value) -> Result<(), GrammarError> {
    let mut result = Ok(());
    for_each_mut(schema, &mut |schema| {
        if result.is_ok() {
            result = bound(schema).and_then(|()| check_constants(schema));
        }
    });
    result
}

/// Checks the schemas that a grammar in Lark has in `%json`.
///
/// # Errors
/// For numbers that llguidance cannot count to.
pub(super) fn check_lark(source: &str) -> Result<(), GrammarError> {
    let mut rest = source;
    while let Some((value, behind)) = next_json(rest) {
        rest = behind;
        // llguidance says what is wrong with text that is no JSON.
        if let Some(number) = value.as_ref().and_then(other_number) {
            return invalid(format!(
                "`%json`: {number} is no number that a float of 64 bits holds, between -{MAX} and {MAX}"
            ));
        }
    }
    Ok(())
}

/// What follows the first `%json` of a grammar in Lark, if it is JSON, and the rest of the grammar. Comments, texts and regular
/// expressions have none.
fn next_json(mut source: &str) -> Option<(Option<Value>, &str)> {
    loop {
        let (_, from) = source.split_at(source.find(['#', '/', '"', '%'])?);
        if let Some(json) = from.strip_prefix("%json") {
            let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
            let value = values.next().and_then(Result::ok);
            return Some((value, &json[values.byte_offset()..]));
        }
        source = if from.starts_with("//") || from.starts_with('#') {
            from.split_once('\n')?.1
        } else {
            match from.strip_prefix('%') {
                Some(behind) => behind,
                None => behind_quote(from)?,
            }
        };
    }
}

/// What comes after a text that ends with the sign that it begins with, unless that follows a backslash.
fn behind_quote(source: &str) -> Option<&str> {
    let mut signs = source.char_indices();
    let (_, quote) = signs.next()?;
    while let Some((at, sign)) = signs.next() {
        if sign == quote {
            return Some(&source[at + 1..]);
        }
        if sign == '\\' {
            signs.next();
        }
    }
    None
}

fn bound(schema: &mut Map<String, Value>) -> Result<(), GrammarError> {
    for (key, sign) in [
        ("minimum", -1),
        ("exclusiveMinimum", -1),
        ("maximum", 1),
        ("exclusiveMaximum", 1),
    ] {
        let Some(Value::Number(found)) = schema.get_mut(key) else {
            continue;
        };
        let outwards = found.as_f64().unwrap_or(f64::NAN) * f64::from(sign);
        if outwards > MAX as f64 {
            *found = (MAX * i64::from(sign)).into();
        } else if outwards.is_nan() || outwards < -(MAX as f64) {
            return invalid(format!(
                "`{key}`: expected a number between -{MAX} and {MAX}, found {found}"
            ));
        }
    }
    Ok(())
}

fn check_constants(schema: &Map<String, Value>) -> Result<(), GrammarError> {
    for key in ["const", "enum"] {
        let number = schema.get(key).and_then(other_number);
        if let Some(number) = number {
            return invalid(format!(
                "`{key}`: {number} cannot be written as it is, expected an integer that a float of 64 bits holds, or a number \
                 between -{MAX} and {MAX}"
            ));
        }
    }
    Ok(())
}

/// A number inside that would be written as another one.
fn other_number(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => (!is_held(number)).then_some(number),
        Value::Array(values) => values.iter().find_map(other_number),
        Value::Object(values) => values.values().find_map(other_number),
        Value::Null | Value::Bool(_) | Value::String(_) => None,
    }
}

fn is_held(number: &Number) -> bool {
    let Some(float) = number.as_f64().filter(|float| float.abs() <= MAX as f64) else {
        return false;
    };
    number
        .as_i128()
        .is_none_or(|integer| float as i128 == integer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bounds_out_of_reach_come_nearer() {
        let mut schema = json!({"items": {"minimum": i64::MIN, "exclusiveMaximum": u64::MAX, "maximum": 5}, "minimum": -1e300});
        bounded(&mut schema).unwrap();
        let expected = json!({"items": {"minimum": -MAX, "exclusiveMaximum": MAX, "maximum": 5}, "minimum": -MAX});
        assert_eq!(schema, expected);
    }

    #[test]
    fn schemas_of_a_lark_grammar_are_those_that_count() {
        let json = format!("%json {{\"const\": {}}}", i64::MIN);
        let lark = |start: &str, end: &str| check_lark(&format!("start: {start}{json}{end}"));
        for start in [
            "",
            "\"a\" ",
            "/\\//",
            "\"\\\"\" ",
            "%json {\"const\": \"#\"} ",
            "// \"\n",
        ] {
            assert!(lark(start, "").is_err(), "{start}");
            assert!(lark(start, " \"b\"\nb: /c/ # d").is_err(), "{start}");
        }
        for (start, end) in [
            ("// ", ""),
            ("\"a\" # ", "\n"),
            ("/", "/"),
            ("/\\/", "/"),
            ("\"a\" // it's \" ", ""),
            // llguidance refuses what does not end.
            ("\"", ""),
        ] {
            assert!(lark(start, end).is_ok(), "{start}");
        }
        assert!(check_lark("start: %json {\"const\": 5} %ignore /%/").is_ok());
        assert!(check_lark("start: %json {").is_ok());
    }

    #[test]
    fn other_numbers_are_refused() {
        for mut schema in [
            json!({"minimum": 1e30}),
            json!({"items": {"exclusiveMaximum": i64::MIN}}),
            json!({"const": i64::MIN}),
            json!({"enum": [1, -1e30]}),
            json!({"const": {"a": [9_007_199_254_740_993_i64]}}),
        ] {
            assert!(bounded(&mut schema).is_err(), "{schema}");
        }
        for mut schema in [
            json!({"const": [9_007_199_254_740_992_i64, -0.1, 1e-300, 0]}),
            json!({"minimum": -5, "maximum": 1e15}),
        ] {
            let before = schema.clone();
            bounded(&mut schema).unwrap();
            assert_eq!(schema, before);
        }
    }
}
