//! What llguidance leaves open in formats: it has a 29 February each year, a leap second each minute, and hostnames without an end.

use serde_json::{Map, Value, json};

/// Begins as a date that is no 29 February, or as the one of a leap year.
const DATE: &str = concat!(
    "^(?:",
    "[0-9]{4}-(?:0[13-9]|1[0-2]|02-(?:[01]|2[0-8]))",
    "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29",
    ")",
);
/// Has seconds below 60, or the leap second at the end of a day of UTC. Other places have it at other hours: here they do without.
const TIME: &str = r"^(?:[0-9]{2}:[0-9]{2}:[0-5]|23:59:60(?:\.[0-9]+)?(?:[zZ]|[+-]00:00))";
/// The same after a date.
const TIME_OF_DATE: &str =
    r"[tT](?:[0-9]{2}:[0-9]{2}:[0-5]|23:59:60(?:\.[0-9]+)?(?:[zZ]|[+-]00:00))";
/// Characters of a hostname, by RFC 1123 and the 255 bytes of a DNS name.
const MAX_HOSTNAME: u64 = 253;

/// Adds what is missing, in other keywords.
pub(super) fn complete(schema: &mut Map<String, Value>) {
    if schema.contains_key("const") || schema.contains_key("enum") {
        return;
    }
    match schema.get("format").and_then(Value::as_str) {
        Some("date") => add_pattern(schema, DATE),
        Some("time") => add_pattern(schema, TIME),
        Some("date-time") => {
            add_pattern(schema, DATE);
            add_pattern(schema, TIME_OF_DATE);
        }
        Some("hostname") => {
            let most = schema.entry("maxLength").or_insert(MAX_HOSTNAME.into());
            if most.as_u64().is_some_and(|most| most > MAX_HOSTNAME) {
                *most = MAX_HOSTNAME.into();
            }
        }
        _ => {}
    }
}

fn add_pattern(schema: &mut Map<String, Value>, pattern: &str) {
    if !schema.contains_key("pattern") {
        schema.insert("pattern".to_owned(), pattern.into());
        return;
    }
    let all = schema.entry("allOf").or_insert_with(|| json!([]));
    // llguidance says what is wrong with another value.
    if let Value::Array(all) = all {
        all.push(json!({ "pattern": pattern }));
    }
}
