//! Fields of one record, checked; errors name the field.

use serde_json::{Map, Value, json};

use super::super::error::{DataError, NOTHING};
use super::super::example::Source;
use super::super::names::shown_keys;
use super::super::wide;
use super::extras::Extras;
use super::values::listed;
use crate::config::Columns;

/// Reads fields of one record; errors know the record's place and its own names of the fields.
pub(super) struct Reader<'a> {
    pub(super) source: &'a Source,
    pub(super) fields: &'a Map<String, Value>,
    pub(super) columns: &'a Columns,
}

impl Reader<'_> {
    pub(super) fn error(
        &self,
        field: impl Into<String>,
        expected: &str,
        found: Option<&Value>,
    ) -> DataError {
        self.error_found(field, expected, describe(found))
    }

    pub(super) fn error_found(
        &self,
        field: impl Into<String>,
        expected: &str,
        found: String,
    ) -> DataError {
        DataError::Field {
            source_place: self.source.clone(),
            field: self.own_name(&field.into()),
            expected: expected.into(),
            found,
        }
    }

    /// The record is well-formed and has nothing to learn.
    pub(super) fn teaches_nothing(&self, reason: impl Into<String>) -> DataError {
        DataError::TeachesNothing {
            source_place: self.source.clone(),
            reason: reason.into(),
        }
    }

    /// `question[0].role` of `prompt[0].role`, where `--columns prompt=question` says so.
    pub(super) fn own_name(&self, field: &str) -> String {
        let end = field.find(['.', '[']).unwrap_or(field.len());
        let (part, rest) = field.split_at(end);
        format!("{}{rest}", self.columns.field_of(part))
    }

    /// The value of a key, unless it is null.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<String, DataError> {
        match self.fields.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            other => Err(self.error(key, "text", other)),
        }
    }

    /// A text; with null or an empty one, the record teaches nothing.
    pub(super) fn text_or_nothing(&self, key: &str) -> Result<String, DataError> {
        match self.fields.get(key) {
            Some(Value::Null) => {
                Err(self.teaches_nothing(format!("`{}` is empty", self.own_name(key))))
            }
            _ => {
                let text = self.text(key)?;
                match text.trim().is_empty() {
                    true => Err(self.teaches_nothing(format!("`{}` is empty", self.own_name(key)))),
                    false => Ok(text),
                }
            }
        }
    }

    /// A text that is there to be learnt: nothing in it teaches nothing, and a key that is missing is an error.
    pub(super) fn to_learn(&self, key: &str) -> Result<String, DataError> {
        let text = match self.fields.get(key) {
            Some(Value::Null) => String::new(),
            None if self.columns.is_empty() => {
                let found = format!("nothing among {}", named(self.fields));
                return Err(self.error_found(key, &self.expected_text(), found));
            }
            _ => self.text(key)?,
        };
        match text.trim().is_empty() {
            true => Err(self.teaches_nothing(format!("`{}` is empty", self.own_name(key)))),
            false => Ok(text),
        }
    }

    /// What is expected of an answer that is missing.
    fn expected_text(&self) -> String {
        let is_call = |item: &Value| item.get("name").is_some() && item.get("arguments").is_some();
        let calls = self.value("answers").and_then(listed);
        match calls.filter(|calls| calls.iter().all(is_call)) {
            // As in xLAM's data.
            Some(_) => {
                "text; calls are learnt in `messages`, as `tool_calls` of the assistant".into()
            }
            None => "text".into(),
        }
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>, DataError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            other => Err(self.error(key, "text", other)),
        }
    }

    /// A list, also as JSON in a text (as tables have it). An empty one teaches nothing.
    pub(super) fn list(&self, key: &str, of: &str) -> Result<Vec<Value>, DataError> {
        let expected = format!("a list of {of}");
        let items = match self.fields.get(key) {
            Some(Value::Array(items)) => items.clone(),
            Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => match self.json_list(key, text)? {
                Some(items) => items,
                None if text.trim().is_empty() => Vec::new(),
                None => return Err(self.error(key, &expected, self.fields.get(key))),
            },
            other => return Err(self.error(key, &expected, other)),
        };
        match items.is_empty() {
            true => Err(self.teaches_nothing(format!("`{}` is empty", self.own_name(key)))),
            false => Ok(items),
        }
    }

    /// The JSON of a text that is a list; `None` where it is none.
    fn json_list(&self, field: &str, text: &str) -> Result<Option<Vec<Value>>, DataError> {
        let Ok(Value::Array(items)) = serde_json::from_str(text) else {
            return Ok(None);
        };
        match wide::written_wide_integer(text, &|_| true) {
            Some((place, number)) => {
                let found = format!("the number {number}");
                Err(self.error_found(format!("{field}{place}"), wide::EXPECTED, found))
            }
            None => Ok(Some(items)),
        }
    }

    /// The JSON of a text of which a template writes every number; `None` where it is none.
    pub(super) fn json(&self, field: &str, text: &str) -> Result<Option<Value>, DataError> {
        let Ok(value) = serde_json::from_str(text) else {
            return Ok(None);
        };
        match wide::wide_integer(text) {
            Some(number) => {
                Err(self.error_found(field, wide::EXPECTED, format!("the number {number}")))
            }
            None => Ok(Some(value)),
        }
    }

    /// Function schemas and variables for the template.
    pub(super) fn extras(&self) -> Result<Extras, DataError> {
        let key = "chat_template_kwargs";
        let variables = match self.value(key) {
            None => Map::new(),
            Some(Value::Object(variables)) => variables.clone(),
            // As tables have it.
            Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
            Some(value @ Value::String(text)) => match self.json(key, text)? {
                Some(Value::Object(variables)) => variables,
                Some(Value::Null) => Map::new(),
                _ => return Err(self.error(key, "an object", Some(value))),
            },
            other => return Err(self.error(key, "an object", other)),
        };
        let tools = match self.tools("tools")? {
            Some(tools) => Some(tools),
            // The older form of the same.
            None => self.tools("functions")?,
        };
        Ok(Extras {
            tools: tools.map(Value::Array),
            variables,
        })
    }

    /// A list of functions; the list and each of them also as JSON in a text.
    fn tools(&self, key: &str) -> Result<Option<Vec<Value>>, DataError> {
        let expected = "a list of functions";
        let tools = match self.value(key) {
            None => return Ok(None),
            Some(Value::Array(tools)) => tools.clone(),
            Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
            Some(Value::String(text)) => match self.json(key, text)? {
                Some(Value::Array(tools)) => tools,
                Some(Value::Null) => return Ok(None),
                _ => return Err(self.error_found(key, expected, format!("the text {text:?}"))),
            },
            other => return Err(self.error(key, expected, other)),
        };
        let mut read = Vec::new();
        for (index, tool) in tools.into_iter().enumerate() {
            let parsed = match &tool {
                Value::String(text) => self.json(&format!("{key}[{index}]"), text)?,
                _ => None,
            };
            match parsed.unwrap_or(tool) {
                Value::Object(tool) => read.push(as_tool(tool)),
                other => {
                    let field = format!("{key}[{index}]");
                    return Err(self.error(
                        field,
                        "an object that describes a function",
                        Some(&other),
                    ));
                }
            }
        }
        Ok(Some(read).filter(|tools| !tools.is_empty()))
    }
}

/// A function as chat templates expect it: one that stands alone gets the wrapper of OpenAI's tools.
fn as_tool(mut tool: Map<String, Value>) -> Value {
    let has = |key: &str| tool.contains_key(key);
    let is_function = tool.get("type").is_none_or(|kind| kind == "function");
    match is_function && !has("function") && (has("name") || has("parameters")) {
        true => {
            // In the form of OpenAI's responses it stands beside the name.
            tool.shift_remove("type");
            json!({"type": "function", "function": tool})
        }
        false => tool.into(),
    }
}

/// Whether a value says anything: null and what is empty do not.
pub(super) fn is_filled(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => !fields.is_empty(),
        Some(_) => true,
    }
}

/// What a value is, for "found …".
pub(crate) fn describe(value: Option<&Value>) -> String {
    match value {
        None => NOTHING.into(),
        Some(Value::Null) => "null".into(),
        Some(Value::Bool(value)) => format!("{value}"),
        Some(Value::Number(value)) => format!("the number {value}"),
        Some(Value::String(text)) if text.chars().count() > 40 => {
            format!("{:?}…", text.chars().take(40).collect::<String>())
        }
        Some(Value::String(text)) => format!("{text:?}"),
        Some(Value::Array(_)) => "a list".into(),
        Some(Value::Object(_)) => "an object".into(),
    }
}

/// The first names of fields, for messages.
pub(crate) fn named(fields: &Map<String, Value>) -> String {
    shown_keys(fields.keys())
}
