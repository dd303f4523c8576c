//! One route with one method, as the document describes it.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use crate::error::shape::ErrorShape;

/// What an answer holds.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Json(Value),
    /// The same, or server-sent events with `stream`.
    Stream(Value),
    /// The same, or lines of JSON with `stream`.
    Lines(Value),
    Text,
    Nothing,
}

/// One route with one method.
pub(super) struct Operation {
    pub(super) path: &'static str,
    pub(super) method: &'static str,
    pub(super) summary: &'static str,
    pub(super) request: Option<Value>,
    pub(super) answer: Answer,
}

impl Operation {
    pub(super) fn describe(self) -> Value {
        let content = match self.answer {
            Answer::Json(schema) => json!({ "application/json": { "schema": schema } }),
            Answer::Stream(schema) => json!({
                "application/json": { "schema": schema },
                "text/event-stream": { "schema": { "type": "string" } },
            }),
            Answer::Lines(schema) => json!({
                "application/json": { "schema": schema },
                "application/x-ndjson": { "schema": { "type": "string" } },
            }),
            Answer::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
            Answer::Nothing => Value::Null,
        };
        let mut success = json!({ "description": "Success" });
        if !content.is_null() {
            success["content"] = content;
        }
        // Each API has errors in a shape of its own.
        let error = match ErrorShape::of(self.path) {
            ErrorShape::OpenAi => json!({ "$ref": "#/components/schemas/Error" }),
            ErrorShape::Anthropic | ErrorShape::Ollama => {
                json!({ "type": "object", "required": ["error"] })
            }
        };
        let error = json!({ "description": "An error", "content": { "application/json": { "schema": error } } });
        let mut described = json!({
            "summary": self.summary,
            "responses": { "200": success, "4XX": error, "5XX": error },
        });
        if let Some(schema) = self.request {
            let kind = match self.path {
                "/v1/files" => "multipart/form-data",
                _ => "application/json",
            };
            described["requestBody"] =
                json!({ "required": true, "content": { kind: { "schema": schema } } });
        }
        if self.path.contains("{id}") {
            described["parameters"] = json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
        }
        described
    }
}

/// The schema of a type.
pub(super) fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}
