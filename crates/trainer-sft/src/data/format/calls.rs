//! Tool calls, in the forms of OpenAI, LLaMA-Factory and ms-swift, as the objects that templates expect.

use serde_json::{Map, Value, json};

use super::super::error::DataError;
use super::reader::{Reader, describe};

impl Reader<'_> {
    /// `tool_calls` of a message, and the older `function_call`.
    pub(super) fn take_calls(
        &self,
        place: &str,
        message: &mut Map<String, Value>,
    ) -> Result<Vec<Value>, DataError> {
        let mut calls = Vec::new();
        let field = format!("{place}.tool_calls");
        match message.shift_remove("tool_calls") {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for (index, item) in items.into_iter().enumerate() {
                    calls.push(self.call(&format!("{field}[{index}]"), item)?);
                }
            }
            // Tables have lists as text.
            Some(Value::String(text)) => calls.extend(self.calls_in_text(&field, &text)?),
            other => return Err(self.error(field, "a list of calls", other.as_ref())),
        }
        match message.shift_remove("function_call") {
            None | Some(Value::Null) => {}
            Some(call) => calls.push(self.call(&format!("{place}.function_call"), call)?),
        }
        Ok(calls)
    }

    /// A turn that is a call: JSON of one call or of a list of calls, after the reasoning if there is any. Gives the text
    /// before the JSON too.
    pub(super) fn text_and_calls(
        &self,
        field: &str,
        text: &str,
    ) -> Result<(String, Vec<Value>), DataError> {
        let (before, json) = match text.rsplit_once("</think>") {
            Some((reasoning, json)) if serde_json::from_str::<Value>(text).is_err() => {
                (format!("{reasoning}</think>"), json)
            }
            _ => (String::new(), text),
        };
        Ok((before, self.calls_in_text(field, json)?))
    }

    /// JSON of one call or of a list of calls.
    pub(super) fn calls_in_text(&self, field: &str, text: &str) -> Result<Vec<Value>, DataError> {
        match self.json(field, text)? {
            Some(call @ Value::Object(_)) => Ok(vec![self.call(field, call)?]),
            Some(Value::Array(items)) if !items.is_empty() => {
                let calls = items.into_iter().enumerate();
                calls
                    .map(|(index, item)| self.call(&format!("{field}[{index}]"), item))
                    .collect()
            }
            _ => {
                let expected =
                    "a call, or a list of calls, as JSON objects with `name` and `arguments`";
                Err(self.error_found(field, expected, describe(Some(&text.into()))))
            }
        }
    }

    /// One call: `{"name": …, "arguments": …}`, or that under `function`.
    fn call(&self, place: &str, call: Value) -> Result<Value, DataError> {
        let expected = "an object with `name` and `arguments`";
        let whole = place.to_owned();
        let Value::Object(mut outer) = call else {
            return Err(self.error(place, expected, Some(&call)));
        };
        let (place, mut function) = match outer.shift_remove("function") {
            Some(Value::Object(function)) => (format!("{place}.function"), function),
            Some(other) => {
                return Err(self.error(format!("{place}.function"), expected, Some(&other)));
            }
            None if outer.contains_key("name") => (place.to_owned(), std::mem::take(&mut outer)),
            None => return Err(self.error(format!("{place}.function"), expected, None)),
        };
        let name = match function.shift_remove("name") {
            Some(Value::String(name)) if !name.trim().is_empty() => name,
            other => return Err(self.error(format!("{place}.name"), "text", other.as_ref())),
        };
        let arguments = self.arguments(&place, function.shift_remove("arguments"))?;
        let known = ["id", "type", "index", "description"];
        for (place, fields) in [(&place, &function), (&whole, &outer)] {
            let rest = fields
                .iter()
                .find(|(key, value)| !value.is_null() && !known.contains(&key.as_str()));
            if let Some((key, value)) = rest {
                let expected = "nothing but `name` and `arguments` in a call";
                return Err(self.error(format!("{place}.{key}"), expected, Some(value)));
            }
        }
        let id = outer.shift_remove("id").or(function.shift_remove("id"));
        let mut read =
            json!({"type": "function", "function": {"name": name, "arguments": arguments}});
        if let (Some(fields), Some(id)) = (read.as_object_mut(), id) {
            fields.insert("id".into(), id);
        }
        Ok(read)
    }

    /// Arguments are an object, or JSON of one, even twice. Nothing says that there are none.
    fn arguments(&self, place: &str, arguments: Option<Value>) -> Result<Value, DataError> {
        let mut value = arguments.unwrap_or_default();
        for _ in 0..2 {
            if let Value::String(text) = &value {
                let field = format!("{place}.arguments");
                value = match (text.trim().is_empty(), self.json(&field, text)?) {
                    (true, _) => Value::Null,
                    (false, Some(value)) => value,
                    (false, None) => {
                        let found = format!("the text {text:?}");
                        return Err(self.error_found(field, "a JSON object", found));
                    }
                };
            }
        }
        match value {
            Value::Null => Ok(Value::Object(Map::new())),
            Value::Object(_) => Ok(value),
            other => Err(self.error(format!("{place}.arguments"), "a JSON object", Some(&other))),
        }
    }
}
