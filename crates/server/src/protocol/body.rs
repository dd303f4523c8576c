//! Reading a request body with errors that name the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

use super::field_names::field_names;
use crate::error::ApiError;

/// Largest accepted body in bytes.
pub const MAX_BODY_BYTES: usize = 32 << 20;

/// A JSON object that arrived as a body, whatever its `Content-Type`.
#[derive(Debug)]
pub struct Body(Value);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let too_large = || {
            let message = format!("The request body is larger than {MAX_BODY_BYTES} bytes.");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > MAX_BODY_BYTES) {
            return Err(too_large());
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => ApiError::new(StatusCode::BAD_REQUEST, rejection.body_text()),
        })?;
        let value = serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("The request body is not valid JSON: {error}"),
            )
        })?;
        match value {
            Value::Object(_) => Ok(Self(value)),
            other => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                format!(
                    "The request body must be a JSON object, found {}.",
                    kind(&other)
                ),
            )),
        }
    }
}

impl Body {
    /// Reads the fields of `T`.
    ///
    /// # Errors
    /// 400 with the path of the field that is missing or has the wrong type.
    pub fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&self.0).map_err(|error| {
            let path = error.path().to_string();
            let message = error.inner().to_string();
            let missing = message
                .strip_prefix("missing field `")
                .and_then(|rest| rest.split('`').next());
            let param = match (path.as_str(), missing) {
                (".", Some(field)) => field.to_owned(),
                (parent, Some(field)) => format!("{parent}.{field}"),
                (path, None) => path.to_owned(),
            };
            ApiError::bad_request(&param, format!("`{param}`: {message}"))
        })
    }

    /// Logs the fields that neither `A` nor `B` reads.
    pub fn log_unknown_fields<A, B>(&self)
    where
        A: for<'de> Deserialize<'de>,
        B: for<'de> Deserialize<'de>,
    {
        if tracing::enabled!(tracing::Level::DEBUG)
            && let Value::Object(fields) = &self.0
        {
            let known = [field_names::<A>(), field_names::<B>()].concat();
            let unknown: Vec<&String> = fields
                .keys()
                .filter(|name| !known.contains(&name.as_str()))
                .collect();
            if !unknown.is_empty() {
                tracing::debug!(?unknown, "ignored request fields");
            }
        }
    }

    /// Whether the field is there and not null.
    pub fn has(&self, field: &str) -> bool {
        self.0.get(field).is_some_and(|value| !value.is_null())
    }
}

/// What a JSON value is called in messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chat::ChatFields;
    use crate::protocol::common::SamplingFields;
    use serde_json::json;

    #[test]
    fn fields_are_known_by_name() {
        let names = field_names::<SamplingFields>();
        assert!(
            names.contains(&"temperature") && names.contains(&"stop_token_ids"),
            "{names:?}"
        );
        assert!(field_names::<ChatFields>().contains(&"messages"));
    }

    #[test]
    fn errors_name_the_path() {
        for (body, param) in [
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "stop_token_ids": [1, -2] }), "stop_token_ids[1]"),
            (
                json!({ "stream_options": { "include_usage": 3 } }),
                "stream_options.include_usage",
            ),
            (json!({ "n": 1.5 }), "n"),
            (json!({ "stop": [1] }), "stop"),
        ] {
            let error = Body(body).read::<SamplingFields>().unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
            assert!(error.message.contains(param));
        }
        let error = Body(json!({})).read::<ChatFields>().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages"));
    }
}
