//! Formats that come several times, and what follows a pattern in free text.

use serde_json::{Map, Value};

use super::content::Content;
use super::keys::{flag, list, object, optional_texts};
use super::{Free, Lark, Tag};
use crate::constraint::grammar_error::{GrammarError, invalid};
use crate::json_file::json_type;

/// Most repetitions that a number may name: the grammar grows with it.
const MAX_REPEATS: u64 = 10_000;

impl Lark {
    /// `optional`, `star`, `plus` and `repeat`.
    pub(super) fn repeated(
        &mut self,
        format: &Value,
        name: &str,
        depth: usize,
    ) -> Result<Content, GrammarError> {
        let bounds: &[&str] = match name {
            "repeat" => &["min", "max"],
            _ => &[],
        };
        let format = object(format, name, &[&["type", "content"], bounds].concat())?;
        let Some(content) = format.get("content") else {
            return invalid(format!("{name}: expected `content`"));
        };
        let content = self.format(content, depth + 1)?;
        match name {
            // Any text may be empty.
            "optional" | "star" | "plus" if content.is_any_text() => return Ok(content),
            _ if content.is_open() => {
                return invalid(format!("{name}: its content must not end in any text"));
            }
            _ => {}
        }
        let content = content.expression();
        let times = match name {
            "optional" => "?".to_owned(),
            "star" => "*".to_owned(),
            "plus" => "+".to_owned(),
            _ => times(format)?,
        };
        Ok(Content::closed(format!("({content}){times}")))
    }

    /// Free text in which what follows a pattern keeps to its format.
    pub(super) fn dispatch(
        &mut self,
        format: &Map<String, Value>,
        depth: usize,
    ) -> Result<Content, GrammarError> {
        let rules = list(format, "rules")?.iter().map(|rule| {
            let pair = rule.as_array().map(Vec::as_slice);
            let Some([Value::String(pattern), content]) = pair else {
                return invalid("dispatch: each of `rules` is a list of a text and a format");
            };
            Ok(Tag {
                begin: pattern.clone(),
                rest: self.format(content, depth + 1)?.expression(),
            })
        });
        let rules: Vec<Tag> = rules.collect::<Result<_, _>>()?;
        // A pattern that begins another one comes first: what makes it longer follows it.
        let patterns = rules.iter().map(|rule| rule.begin.as_str());
        let mut triggers: Vec<String> = Vec::new();
        for pattern in patterns.clone() {
            let begins = |other: &str| other != pattern && pattern.starts_with(other);
            if !patterns.clone().any(begins) && !triggers.iter().any(|known| known == pattern) {
                triggers.push(pattern.to_owned());
            }
        }
        let free = Free {
            triggers,
            excludes: optional_texts(format, "excludes")?,
            at_least_one: false,
            only_one: format.contains_key("loop") && !flag(format, "loop")?,
        };
        self.triggered(&rules, free)
    }
}

/// `min` and `max` of a `repeat`; a `max` of -1 is no bound.
fn times(format: &Map<String, Value>) -> Result<String, GrammarError> {
    let bound = |key: &str| match format.get(key) {
        Some(Value::Number(number)) => Ok(number),
        Some(other) => invalid(format!(
            "repeat: `{key}` is a number, found {}",
            json_type(other)
        )),
        None => invalid(format!("repeat: expected `{key}`")),
    };
    let (min, max) = (bound("min")?, bound("max")?);
    let within = |number: &serde_json::Number| number.as_u64().filter(|num| *num <= MAX_REPEATS);
    match (within(min), within(max), max.as_i64()) {
        (Some(min), Some(max), _) if min <= max => Ok(format!("{{{min},{max}}}")),
        (Some(min), None, Some(-1)) => Ok(format!("{{{min},}}")),
        _ => invalid(format!(
            "repeat: expected 0 <= `min` <= `max` <= {MAX_REPEATS}, or a `max` of -1, found {min} and {max}"
        )),
    }
}
