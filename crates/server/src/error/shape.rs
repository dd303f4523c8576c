//! Errors in the shape of the API that the path belongs to.

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::ApiError;
use crate::request_id::RequestId;

/// Anthropic's name of the header `X-Request-Id`.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
/// Anthropic's status of a server that has too much to do.
const OVERLOADED: u16 = 529;

/// Whose errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorShape {
    /// `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`, some with `details`.
    Anthropic,
    /// `{"error": message}`.
    Ollama,
}

impl ErrorShape {
    /// The shape of errors on a path.
    pub(crate) fn of(path: &str) -> Self {
        let is_below = |root: &str| {
            let rest = path.strip_prefix(root);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if is_below("/v1/messages") {
            Self::Anthropic
        } else if is_below("/api") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// The HTTP status.
    fn status(self, error: &ApiError) -> StatusCode {
        match (self, error.status) {
            (Self::Anthropic, StatusCode::SERVICE_UNAVAILABLE) => {
                StatusCode::from_u16(OVERLOADED).unwrap_or(error.status)
            }
            (_, status) => status,
        }
    }

    /// The body, which is also an event in the middle of a stream.
    pub(crate) fn body(self, error: &ApiError) -> Value {
        match self {
            Self::OpenAi => error.body(),
            Self::Anthropic => {
                let of_type = anthropic_type(error.status);
                let mut inner = json!({ "type": of_type, "message": anthropic_message(error) });
                if let Some(details) = &error.details {
                    inner["details"] = Value::clone(details);
                }
                json!({ "type": "error", "error": inner })
            }
            Self::Ollama => json!({ "error": error.message }),
        }
    }
}

fn anthropic_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::REQUEST_TIMEOUT => "timeout_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    }
}

/// Claude Code makes a conversation shorter if the message begins with these words.
fn anthropic_message(error: &ApiError) -> String {
    match error.code {
        Some("context_length_exceeded") => format!("prompt is too long: {}", error.message),
        _ => error.message.clone(),
    }
}

/// Brings the errors of all that is inside into the shape of the path.
pub(crate) async fn apply(request: Request, next: Next) -> Response {
    let shape = ErrorShape::of(request.uri().path());
    if shape == ErrorShape::OpenAi {
        return next.run(request).await;
    }
    let id = RequestId::of(&request).or(None);
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let mut body = shape.body(&error);
        if shape == ErrorShape::Anthropic {
            body["request_id"] = Value::from(id.as_str());
        }
        let (parts, _) = response.into_parts();
        let mut shaped = (shape.status(&error), Json(body)).into_response();
        let of_body = [header::CONTENT_TYPE, header::CONTENT_LENGTH];
        let kept = parts.headers.iter();
        for (name, value) in kept.filter(|(name, _)| !of_body.contains(name)) {
            shaped.headers_mut().insert(name, value.clone());
        }
        response = shaped;
    }
    if let (ErrorShape::Anthropic, Ok(id)) = (shape, HeaderValue::from_str(&id)) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_decides() {
        for (path, shape) in [
            ("/v1/messages", ErrorShape::Anthropic),
            ("/v1/messages/", ErrorShape::Anthropic),
            ("/v1/messages/count_tokens", ErrorShape::Anthropic),
            ("/v1/messages/batches", ErrorShape::Anthropic),
            ("/v1/messagesx", ErrorShape::OpenAi),
            ("/v1/chat/completions", ErrorShape::OpenAi),
            ("/api/chat", ErrorShape::Ollama),
            ("/api", ErrorShape::Ollama),
            ("/apis", ErrorShape::OpenAi),
            ("/", ErrorShape::OpenAi),
        ] {
            assert_eq!(ErrorShape::of(path), shape, "{path}");
        }
    }

    #[test]
    fn types_are_anthropics() {
        for (status, kind) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (405, "invalid_request_error"),
            (413, "request_too_large"),
            (500, "api_error"),
            (503, "overloaded_error"),
        ] {
            let error = ApiError::new(StatusCode::from_u16(status).unwrap(), "m");
            let body = ErrorShape::Anthropic.body(&error);
            assert_eq!(body["type"], "error");
            assert_eq!(body["error"], json!({ "type": kind, "message": "m" }));
        }
        let full = ApiError::unavailable("m");
        assert_eq!(ErrorShape::Anthropic.status(&full).as_u16(), 529);
        assert_eq!(ErrorShape::Ollama.status(&full).as_u16(), 503);
    }
}
