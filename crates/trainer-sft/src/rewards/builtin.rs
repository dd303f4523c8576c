//! Rewards from 0 to 1 that need no other program.

use std::path::Path;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::answer::{Answer, Lack};
use super::schema::Schema;
use crate::config::ConfigError;
use crate::data::format::describe;

/// A built-in reward.
#[derive(Debug)]
pub(super) enum Builtin {
    /// 1 for the text of a field of the record.
    ExactMatch { column: String },
    /// 1 for a text in which the pattern is found.
    Regex(Box<Regex>),
    /// 1 for an object or a list in JSON and nothing else.
    Json,
    /// 1 for JSON that a schema lets through.
    JsonSchema(Box<Schema>),
    /// 1 for so many tokens; less the farther away the number is.
    Length { least: usize, most: usize },
}

/// The field of [`Builtin::ExactMatch`] where no other is named.
const ANSWER: &str = "answer";

impl Builtin {
    /// Parses `name` or `name:value`.
    ///
    /// # Errors
    /// A name that is not known, and a value that does not go with it.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |expected: &str, found: &str| ConfigError::Value {
            flag: "reward",
            expected: expected.to_owned(),
            found: format!("`{text}`{found}"),
        };
        let (name, value) = match text.split_once(':') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match (name, value) {
            ("exact_match", value) => {
                let column = value.unwrap_or(ANSWER).to_owned();
                match column.is_empty() {
                    true => Err(wrong("exact_match:COLUMN", "")),
                    false => Ok(Self::ExactMatch { column }),
                }
            }
            ("json", None) => Ok(Self::Json),
            ("regex", Some("")) => Err(wrong(
                "regex:PATTERN",
                ": every answer has an empty text in it, and would get the same reward",
            )),
            ("regex", Some(pattern)) => Regex::new(pattern)
                .map(|regex| Self::Regex(Box::new(regex)))
                .map_err(|error| wrong("a regular expression", &format!(": {error}"))),
            ("json_schema", Some(file)) => Schema::load(Path::new(file))
                .map(|schema| Self::JsonSchema(Box::new(schema)))
                .map_err(|reason| wrong("a file with a JSON schema", &format!(": {reason}"))),
            ("length", Some(range)) => {
                let bounds = range.split_once('-');
                let bounds = bounds.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                match bounds {
                    Some((least, most)) if least <= most && most > 0 => {
                        Ok(Self::Length { least, most })
                    }
                    _ => Err(wrong("two numbers of tokens such as length:10-50", "")),
                }
            }
            _ => Err(wrong(
                "exact_match, exact_match:COLUMN, regex:PATTERN, json, json_schema:FILE or length:MIN-MAX",
                "",
            )),
        }
    }

    /// As metrics name it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::ExactMatch { .. } => "exact_match",
            Self::Regex(_) => "regex",
            Self::Json => "json",
            Self::JsonSchema(_) => "json_schema",
            Self::Length { .. } => "length",
        }
    }

    /// Checks that a record has what the reward is about.
    pub(super) fn check(&self, columns: &Map<String, Value>) -> Result<(), Lack> {
        let Self::ExactMatch { column } = self else {
            return Ok(());
        };
        match (columns.get(column), columns.get(column).and_then(expected)) {
            // Any answer without a text would be right.
            (Some(_), Some(text)) if text.trim().is_empty() => Err(Lack::Value(column.clone())),
            (_, Some(_)) => Ok(()),
            (Some(Value::Null), None) => Err(Lack::Value(column.clone())),
            (_, None) => {
                let found = match columns.get(column) {
                    None => "no such field".to_owned(),
                    value => describe(value),
                };
                Err(Lack::Field(format!(
                    "field `{column}`: --reward exact_match expected a text or a number, found {found}"
                )))
            }
        }
    }

    /// The reward of an answer.
    pub(super) fn of(&self, answer: &Answer<'_>) -> f64 {
        let text = answer.completion.trim();
        let is = |is: bool| f64::from(u8::from(is));
        match self {
            Self::ExactMatch { column } => {
                let wanted = answer.columns.get(column).and_then(expected);
                is(wanted.is_some_and(|wanted| wanted.trim() == text))
            }
            // A pattern that gives up has found nothing.
            Self::Regex(regex) => is(regex.is_match(answer.completion).unwrap_or(false)),
            Self::Json => is(json(text).is_some_and(|value| value.is_object() || value.is_array())),
            Self::JsonSchema(schema) => is(json(text).is_some_and(|value| schema.accepts(&value))),
            Self::Length { least, most } => {
                let (len, least, most) = (answer.num_tokens, *least, *most);
                let away = least.saturating_sub(len).max(len.saturating_sub(most)) as f64;
                let bound = if len < least { least } else { most };
                (1.0 - away / bound.max(1) as f64).max(0.0)
            }
        }
    }
}

/// What an answer has to be.
fn expected(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reward(text: &str, completion: &str, columns: &Value) -> f64 {
        let reward = Builtin::parse(text).unwrap();
        let columns = columns.as_object().unwrap();
        assert_eq!(reward.check(columns), Ok(()));
        reward.of(&Answer {
            prompt: &json!("?"),
            completion,
            num_tokens: completion.split_whitespace().count(),
            columns,
        })
    }

    #[test]
    fn an_answer_is_compared_with_its_record() {
        let record = json!({"answer": " 4\n", "other": 4.5});
        assert_eq!(reward("exact_match", "4 ", &record), 1.0);
        assert_eq!(reward("exact_match", "four", &record), 0.0);
        assert_eq!(reward("exact_match:other", "4.5", &record), 1.0);
        let missing = Builtin::parse("exact_match").unwrap();
        let refused = missing.check(json!({"answer": [4]}).as_object().unwrap());
        let expected =
            "field `answer`: --reward exact_match expected a text or a number, found a list";
        assert_eq!(refused.unwrap_err(), Lack::Field(expected.to_owned()));
        for empty in [json!({"answer": " "}), json!({"answer": null})] {
            let lack = missing.check(empty.as_object().unwrap()).unwrap_err();
            assert_eq!(lack, Lack::Value("answer".to_owned()));
        }
    }

    #[test]
    fn forms_are_recognised() {
        let none = json!({});
        for (text, completion, expected) in [
            ("json", " {\"a\": [1]}\n", 1.0),
            ("json", "[]", 1.0),
            ("json", "42", 0.0),
            ("json", "```json\n{}\n```", 0.0),
            ("json", "{} and more", 0.0),
            ("regex:^a.*z$", "a to z", 1.0),
            ("regex:(?<=x)y", "y", 0.0),
            ("length:2-4", "a b", 1.0),
            ("length:2-4", "a", 0.5),
            ("length:2-4", "a b c d e", 0.75),
            ("length:2-4", "a b c d e f g h i", 0.0),
            ("length:0-4", "", 1.0),
        ] {
            assert_eq!(
                reward(text, completion, &none),
                expected,
                "{text} {completion}"
            );
        }
    }

    #[test]
    fn a_schema_decides_what_counts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let schema = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}});
        std::fs::write(file.path(), schema.to_string()).unwrap();
        let text = format!("json_schema:{}", file.path().display());
        let none = json!({});
        assert_eq!(reward(&text, "{\"age\": 3, \"name\": \"Ann\"}", &none), 1.0);
        assert_eq!(reward(&text, "{\"name\": 3}", &none), 0.0);
        assert_eq!(reward(&text, "Ann", &none), 0.0);
        std::fs::write(file.path(), "{\"type\": \"text\"}").unwrap();
        let refused = Builtin::parse(&text).unwrap_err().to_string();
        assert!(
            refused.contains("expected a file with a JSON schema"),
            "{refused}"
        );
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (text, expected) in [
            (
                "json:x",
                "expected exact_match, exact_match:COLUMN, regex:PATTERN",
            ),
            ("accuracy", "found `accuracy`"),
            (
                "regex:(",
                "expected a regular expression, found `regex:(`: ",
            ),
            (
                "length:5",
                "expected two numbers of tokens such as length:10-50",
            ),
            ("length:5-2", "found `length:5-2`"),
            ("exact_match:", "expected exact_match:COLUMN"),
            ("regex:", "every answer has an empty text in it"),
            ("json_schema:/none", "expected a file with a JSON schema"),
        ] {
            let refused = Builtin::parse(text).unwrap_err().to_string();
            assert!(
                refused.starts_with("--reward: ") && refused.contains(expected),
                "{refused}"
            );
        }
    }
}
