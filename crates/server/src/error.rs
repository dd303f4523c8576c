//! Every failure an HTTP client sees, as OpenAI's error object with vLLM's types.

pub(crate) mod shape;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::{AdapterError, SequenceError, StartProgress, SubmitError};

/// An HTTP status with `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// What went wrong, for people.
    pub message: String,
    /// The request field that is at fault, such as `messages[0].role`.
    pub param: Option<String>,
    /// A word for programs, such as `model_not_found`; otherwise the object has the status, as vLLM's.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
    /// How far the model is that is being loaded: what is done, and of how many; 0 of 0 where nothing is counted.
    pub progress: Option<(usize, usize)>,
    /// More for programs, which Anthropic's clients read.
    pub details: Option<Box<Value>>,
}

impl ApiError {
    /// An error with only a status and a message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            progress: None,
            details: None,
        }
    }

    /// 400 that names the field.
    pub fn bad_request(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::BAD_REQUEST, message)
        }
    }

    /// 400 that names the field, what it takes, and what it has.
    pub fn expected(param: impl Into<String>, expected: &str, found: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}`: expected {expected}, found {found}.");
        Self::bad_request(param, message)
    }

    /// The same with other names of fields, of which the first that fits counts.
    #[must_use]
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        let Some(param) = &self.param else {
            return self;
        };
        let name = names.iter().find(|(name, _)| param.contains(name));
        if let Some((name, other)) = name {
            let renamed = param.replace(name, other);
            self.message = self.message.replace(param.as_str(), &renamed);
            self.param = Some(renamed);
        }
        self
    }

    /// 404 for a name that neither the base model nor an adapter has.
    pub fn model_not_found(model: &str) -> Self {
        Self {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                format!("The model `{model}` does not exist."),
            )
        }
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503 that asks the client to come back.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            retry_after: Some(1),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
        }
    }

    /// 503 until there is a model. The object has `"progress": {"done", "of"}`, too.
    pub fn loading(progress: &StartProgress) -> Self {
        let part = progress.part();
        Self {
            progress: Some(part.map_or((0, 0), |part| (part.done, part.of))),
            ..Self::unavailable(progress.to_string())
        }
    }

    /// The error object, as in a body or in the middle of a stream.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::BAD_REQUEST => "BadRequestError",
            StatusCode::UNAUTHORIZED => "AuthenticationError",
            StatusCode::FORBIDDEN => "PermissionDeniedError",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::INTERNAL_SERVER_ERROR => "InternalServerError",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            status => status.canonical_reason().unwrap_or("Error"),
        };
        let code = self.code.map(Value::from);
        let code = code.unwrap_or_else(|| Value::from(self.status.as_u16()));
        let mut error =
            json!({ "message": self.message, "type": kind, "param": self.param, "code": code });
        if let Some((done, of)) = self.progress {
            error["progress"] = json!({ "done": done, "of": of });
        }
        json!({ "error": error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For the shape of another API.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            // An engine that has stopped is as /health says: another server may take the request.
            SubmitError::QueueFull { .. } | SubmitError::ShuttingDown | SubmitError::Stopped => {
                Self::unavailable(message)
            }
            SubmitError::PromptTooLong { .. } => Self {
                code: Some("context_length_exceeded"),
                ..Self::bad_request("prompt", message)
            },
            SubmitError::NoText { .. } | SubmitError::NoPooling => {
                Self::bad_request("model", message)
            }
            SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. } => {
                Self::bad_request("prompt", message)
            }
            SubmitError::UnknownAdapter { name } => Self::model_not_found(&name),
        }
    }
}

impl ApiError {
    /// The error of a sequence that keeps to the grammar of the field `grammar_param`.
    pub(crate) fn of_sequence(error: SequenceError, grammar_param: Option<&str>) -> Self {
        match (error, grammar_param) {
            (SequenceError::Grammar(reason), Some(param)) => {
                let message = format!("`{param}` cannot be followed any further: {reason}");
                Self::bad_request(param, message)
            }
            (error, _) => error.into(),
        }
    }
}

impl From<SequenceError> for ApiError {
    fn from(error: SequenceError) -> Self {
        let message = error.to_string();
        match error {
            SequenceError::Aborted | SequenceError::DeviceFailed(_) | SequenceError::Adapter(_) => {
                Self::unavailable(message)
            }
            SequenceError::Grammar(_) => Self::new(StatusCode::BAD_REQUEST, message),
            SequenceError::Failed(_) | SequenceError::Stopped => Self::internal(message),
        }
    }
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> Self {
        let message = error.to_string();
        match error {
            AdapterError::Disabled => Self::new(StatusCode::BAD_REQUEST, message),
            AdapterError::NotFound { .. } => Self {
                param: Some("lora_path".to_owned()),
                ..Self::new(StatusCode::NOT_FOUND, message)
            },
            AdapterError::Unknown { .. } => Self {
                param: Some("lora_name".to_owned()),
                ..Self::new(StatusCode::NOT_FOUND, message)
            },
            AdapterError::AlreadyLoaded { .. } => Self::bad_request("lora_name", message),
            AdapterError::NoRoom { .. } | AdapterError::Stopped => Self::unavailable(message),
            AdapterError::Invalid { .. } => Self::bad_request("lora_path", message),
        }
    }
}
