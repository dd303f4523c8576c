//! One line of the input: `{"custom_id", "method", "url", "body"}`.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::source::{Ids, Line};
use crate::batch_paths;
use crate::error::ApiError;
use crate::protocol::switches::boolean;

/// A request of the batch.
#[derive(Debug)]
pub(super) struct BatchRequest {
    /// What the answer's line is found by.
    pub(super) custom_id: String,
    /// Path of the API.
    pub(super) url: String,
    /// Body as the line has it.
    pub(super) body: String,
}

/// A line that is no request.
#[derive(Debug)]
pub(super) struct BadLine {
    /// Its id, if it can be read.
    pub(super) custom_id: Option<String>,
    /// Why it is none.
    pub(super) error: ApiError,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Fields<'a> {
    custom_id: Value,
    method: Value,
    url: Value,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// What is found of a line that has no [`Fields`].
#[derive(Default, Deserialize)]
struct Id {
    custom_id: Option<Value>,
}

/// Fields of a body that have no meaning in a batch.
#[derive(Default, Deserialize)]
struct Unanswerable {
    #[serde(default)]
    stream: Value,
    #[serde(default)]
    background: Value,
}

/// Reads a line.
///
/// # Errors
/// [`BadLine`] with the line's number in its message.
pub(super) fn read(line: &Line, ids: &mut Ids) -> Result<BatchRequest, Box<BadLine>> {
    let number = line.number;
    let bad = |custom_id: Option<String>, error: ApiError| {
        Box::new(BadLine {
            custom_id,
            error: ApiError {
                message: format!("line {number}: {}", error.message),
                ..error
            },
        })
    };
    let Some(bytes) = &line.bytes else {
        let message = format!("{} bytes are more than a request may have.", line.num_bytes);
        return Err(bad(None, ApiError::bad_request("body", message)));
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.trim(),
        Err(error) => return Err(bad(None, malformed(&error.to_string()))),
    };
    // A list of as many values would be read as the fields in their order.
    if !text.starts_with('{') {
        return Err(bad(None, malformed("The line is not an object")));
    }
    let fields: Fields<'_> = match serde_json::from_str(text) {
        Ok(fields) => fields,
        Err(error) => {
            let Id { custom_id } = serde_json::from_str(text).unwrap_or_default();
            let custom_id = custom_id.and_then(|id| id.as_str().map(str::to_owned));
            // The text is a line of its own to the parser.
            let message = error
                .to_string()
                .replace(" at line 1 column ", " at column ");
            return Err(bad(custom_id, malformed(&message)));
        }
    };
    let Value::String(custom_id) = fields.custom_id else {
        let found = fields.custom_id.to_string();
        let error = ApiError::expected("custom_id", "a string", &found);
        return Err(bad(None, error));
    };
    if let Err(other) = ids.insert(&custom_id, number) {
        let message = format!(
            "`custom_id`: line {other} has `{custom_id}` already; each line needs its own."
        );
        let error = ApiError {
            code: Some("duplicate_custom_id"),
            ..ApiError::bad_request("custom_id", message)
        };
        return Err(bad(Some(custom_id), error));
    }
    match check(&fields.method, &fields.url, fields.body.get()) {
        Ok(url) => Ok(BatchRequest {
            custom_id,
            url,
            body: fields.body.get().to_owned(),
        }),
        Err(error) => Err(bad(Some(custom_id), error)),
    }
}

/// The path, if the other fields fit.
fn check(method: &Value, url: &Value, body: &str) -> Result<String, ApiError> {
    if !method
        .as_str()
        .is_some_and(|name| name.eq_ignore_ascii_case("POST"))
    {
        return Err(ApiError::expected(
            "method",
            "\"POST\"",
            &method.to_string(),
        ));
    }
    let is_known = |url: &&str| batch_paths().any(|path| path == *url);
    let Some(url) = url.as_str().filter(is_known) else {
        let known: Vec<&str> = batch_paths().collect();
        let expected = format!("one of {}", known.join(", "));
        return Err(ApiError::expected("url", &expected, &url.to_string()));
    };
    // What is no object is refused by the API.
    let fields: Unanswerable = match body.starts_with('{') {
        true => serde_json::from_str(body).unwrap_or_default(),
        false => Unanswerable::default(),
    };
    for (name, value) in [("stream", fields.stream), ("background", fields.background)] {
        if boolean(&value) == Some(true) {
            let message = format!(
                "`body.{name}`: expected false, found {value}: a batch has whole answers only."
            );
            return Err(ApiError::bad_request(format!("body.{name}"), message));
        }
    }
    Ok(url.to_owned())
}

fn malformed(message: &str) -> ApiError {
    ApiError {
        code: Some("invalid_json_line"),
        ..ApiError::bad_request(
            "line",
            format!(
                "{message}. Expected an object with `custom_id`, `method`, `url` and `body` on one line."
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, ids: &mut Ids) -> Result<BatchRequest, Box<BadLine>> {
        let line = Line {
            number: 7,
            num_bytes: text.len(),
            bytes: Some(text.as_bytes().to_vec()),
        };
        read(&line, ids)
    }

    #[test]
    fn a_request_keeps_its_body_as_it_is() {
        let text = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x",  "seed": 1.50}}"#;
        let request = read_text(text, &mut Ids::default()).unwrap();
        assert_eq!(request.custom_id, "a");
        assert_eq!(request.url, "/v1/completions");
        assert_eq!(request.body, r#"{"prompt": "x",  "seed": 1.50}"#);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let line = |custom_id: &str, method: &str, url: &str, body: &str| {
            format!(
                r#"{{"custom_id": {custom_id}, "method": {method}, "url": {url}, "body": {body}}}"#
            )
        };
        let (post, path) = ("\"POST\"", "\"/v1/completions\"");
        for (text, id, expected) in [
            (
                "{".to_owned(),
                None,
                "EOF while parsing an object at column 1",
            ),
            (
                "[1]".to_owned(),
                None,
                "The line is not an object. Expected an object with `custom_id`",
            ),
            (
                r#"["a", "POST", "/v1/completions", {"prompt": "x"}]"#.to_owned(),
                None,
                "The line is not an object",
            ),
            (
                r#"{"custom_id": "b"}"#.to_owned(),
                Some("b"),
                "missing field `method`",
            ),
            (
                r#"{"custom_id": "c", "method": "POST", "uri": "/x"}"#.to_owned(),
                Some("c"),
                "unknown field `uri`",
            ),
            (
                line("7", post, path, "{}"),
                None,
                "`custom_id`: expected a string, found 7",
            ),
            (
                line("\"d\"", "\"GET\"", path, "{}"),
                Some("d"),
                "`method`: expected \"POST\"",
            ),
            (
                line("\"e\"", post, "\"https://x/v1/completions\"", "{}"),
                Some("e"),
                "`url`: expected one of /v1/chat/completions,",
            ),
            (
                line("\"f\"", post, path, r#"{"stream": true}"#),
                Some("f"),
                "`body.stream`: expected false, found true",
            ),
            (
                line("\"f\"", post, path, r#"{"stream": "true"}"#),
                Some("f"),
                "`body.stream`: expected false, found \"true\"",
            ),
            (
                line("\"f\"", post, path, r#"{"background": 1}"#),
                Some("f"),
                "`body.background`: expected false, found 1",
            ),
        ] {
            let bad = read_text(&text, &mut Ids::default()).unwrap_err();
            let message = &bad.error.message;
            assert!(message.starts_with("line 7: "), "{message}");
            assert!(message.contains(expected), "{text}: {message}");
            assert_eq!(bad.custom_id.as_deref(), id, "{text}");
        }
        // A body that is no object is left to the API.
        read_text(&line("\"f\"", post, path, "[true]"), &mut Ids::default()).unwrap();
        let mut ids = Ids::default();
        let twice = line("\"g\"", post, path, "{}");
        read_text(&twice, &mut ids).unwrap();
        let bad = read_text(&twice, &mut ids).unwrap_err();
        assert!(bad.error.message.contains("line 7 has `g` already"));
        assert_eq!(bad.error.code, Some("duplicate_custom_id"));
    }
}
