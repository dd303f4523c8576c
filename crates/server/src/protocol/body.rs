//! Reading a request body within bounds, with errors that name the field.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt as _;
use model_qwen::json_type;
use model_qwen::sys::return_freed_memory;
use model_qwen::wide_integers::{WIDE_EXPECTED, written_wide_integer};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::field_names::field_names;
use super::fields::{self, Endpoint};
use crate::blocking::blocking;
use crate::error::ApiError;
use crate::error::shape::ErrorShape;
use crate::request_id::RequestId;
use crate::state::AppState;

/// Largest accepted body in bytes.
pub const MAX_BODY_BYTES: usize = 32 << 20;
/// Bodies up to here don't wait for one another.
pub(crate) const SMALL_BODY_BYTES: usize = 1 << 20;
/// Most values (numbers, texts, lists, …) of a large body: each takes more memory than its text.
const MAX_VALUES: usize = 2_000_000;
/// Longest wait for the next bytes of a body, and for the first of them at [`MIN_BYTES_PER_SECOND`].
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A body that comes more slowly than this is given up: it keeps its part of the memory as long as it comes.
const MIN_BYTES_PER_SECOND: u32 = 16 << 10;
const BOM: &[u8] = b"\xef\xbb\xbf";
/// Fields of a body that a chat template reads.
const READ: [&str; 5] = [
    "messages",
    "tools",
    "functions",
    "chat_template_kwargs",
    "documents",
];
/// Fields, of the body or in those, of which a template writes numbers: `input` is that of a call in Anthropic's messages.
const WRITTEN: [&str; 6] = [
    "arguments",
    "chat_template_kwargs",
    "documents",
    "functions",
    "input",
    "tools",
];

/// A JSON object that arrived as a body.
#[derive(Debug)]
pub struct Body {
    value: Value,
    request_id: RequestId,
    num_bytes: usize,
    /// Its part of [`AppState::body_memory`], if it is large.
    memory: Option<OwnedSemaphorePermit>,
}

impl FromRequest<AppState> for Body {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        // Ollama's own examples send no type. What a web page sends has an origin.
        let is_ollama = ErrorShape::of(request.uri().path()) == ErrorShape::Ollama;
        if !is_ollama || request.headers().contains_key(header::ORIGIN) {
            require_json(request.headers())?;
        }
        refuse_packed(request.headers())?;
        let request_id = RequestId::of(&request);
        let (bytes, memory) = read_bytes(request, state).await?;
        let num_bytes = bytes.len();
        let value = if num_bytes > SMALL_BODY_BYTES {
            let value = blocking(move || parse(&bytes)).await;
            // The bytes are of no use any more.
            return_freed_memory();
            value
        } else {
            parse(&bytes)
        };
        Ok(Self {
            value: value?,
            request_id,
            num_bytes,
            memory,
        })
    }
}

/// Any web page can send other types of content to this server without asking the browser's leave first.
fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::CONTENT_TYPE);
    let given = given.map(|value| value.to_str().unwrap_or("something else"));
    let kind = given
        .and_then(|given| given.split(';').next())
        .map(str::trim);
    let is_json = |kind: &str| {
        let kind = kind.to_ascii_lowercase();
        kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
    };
    if kind.is_some_and(is_json) {
        return Ok(());
    }
    let found = given.unwrap_or("none");
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        format!("The `Content-Type` must be application/json, found {found}."),
    ))
}

/// A packed body is named as one, not as broken JSON.
fn refuse_packed(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    let encoding = encoding.map(|value| value.to_str().unwrap_or("something else").trim());
    match encoding {
        None | Some("" | "identity") => Ok(()),
        Some(found) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "The `Content-Encoding` must be identity, found {found}: send the body unpacked."
            ),
        )),
    }
}

/// The body's bytes. A large body waits for its part of the memory before most of it is read.
async fn read_bytes(
    request: Request,
    state: &AppState,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError> {
    let too_large = || {
        let message = format!("The request body is larger than {MAX_BODY_BYTES} bytes.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES) {
        return Err(too_large());
    }
    let mut chunks = request.into_body().into_data_stream();
    let (mut bytes, mut memory, mut is_large) = (Vec::new(), None, false);
    let mut waited = Duration::ZERO;
    loop {
        let patience = patience(bytes.len(), waited);
        let start = Instant::now();
        let chunk = tokio::time::timeout(patience, chunks.next()).await;
        waited += start.elapsed();
        let chunk = chunk.map_err(|_| {
            let message = match patience == READ_TIMEOUT {
                true => format!("No more of the request body came for {READ_TIMEOUT:?}."),
                false => format!(
                    "The request body came too slowly: {} bytes in {} seconds.",
                    bytes.len(),
                    waited.as_secs()
                ),
            };
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        })?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| {
            let message = format!("The request body cannot be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, message)
        })?;
        let len = bytes.len() + chunk.len();
        if len > MAX_BODY_BYTES {
            return Err(too_large());
        }
        if len > SMALL_BODY_BYTES && !is_large {
            is_large = true;
            let expected = announced.unwrap_or(MAX_BODY_BYTES).max(len);
            memory = state.body_memory(expected).await;
            bytes.reserve_exact(expected - bytes.len());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes.into(), memory))
}

/// How long to wait for more of a body of which so many bytes came in this time.
fn patience(num_bytes: usize, waited: Duration) -> Duration {
    let due = Duration::from_secs_f64(num_bytes as f64 / f64::from(MIN_BYTES_PER_SECOND));
    (READ_TIMEOUT + due)
        .saturating_sub(waited)
        .min(READ_TIMEOUT)
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let bytes = bytes.strip_prefix(BOM).unwrap_or(bytes);
    if bytes.len() > SMALL_BODY_BYTES && num_values(bytes) > MAX_VALUES {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("The request body has more than {MAX_VALUES} values."),
        ));
    }
    let value = serde_json::from_slice(bytes).map_err(|error| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            format!("The request body is not valid JSON: {error}"),
        )
    })?;
    match value {
        Value::Object(_) => refuse_wide_integers(bytes).map(|()| value),
        other => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            format!(
                "The request body must be a JSON object, found {}.",
                json_type(&other)
            ),
        )),
    }
}

/// Refuses a whole number that a template would write with other digits.
fn refuse_wide_integers(bytes: &[u8]) -> Result<(), ApiError> {
    // What is JSON is UTF-8.
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    match written_wide_integer(text, &|field| READ.contains(&field), &WRITTEN) {
        None => Ok(()),
        Some((field, number)) => Err(ApiError::expected(
            field,
            WIDE_EXPECTED,
            &format!("the number {number}"),
        )),
    }
}

/// About as many values as a text of JSON has: the commas and brackets outside of strings.
fn num_values(json: &[u8]) -> usize {
    let (mut num, mut in_string, mut escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b',' | b'[' | b'{' if !in_string => num += 1,
            _ => {}
        }
    }
    num
}

impl Body {
    /// Brings the fields of an endpoint into one form, and logs which of them are ignored.
    ///
    /// # Errors
    /// 400 with the field that is refused.
    pub fn check(&mut self, endpoint: Endpoint) -> Result<(), ApiError> {
        match &mut self.value {
            Value::Object(fields) => fields::check(endpoint, fields),
            // `parse` lets nothing else pass.
            _ => Ok(()),
        }
    }

    /// Brings the fields of an endpoint that has few, read as `T`, into one form, and logs which of them are ignored.
    pub fn normalize<T: for<'de> Deserialize<'de>>(&mut self) {
        self.normalize_known(&[field_names::<T>()]);
    }

    /// The same for an endpoint whose fields are read as `T` and as `U`.
    pub fn normalize_both<T, U>(&mut self)
    where
        T: for<'de> Deserialize<'de>,
        U: for<'de> Deserialize<'de>,
    {
        self.normalize_known(&[field_names::<T>(), field_names::<U>()]);
    }

    fn normalize_known(&mut self, known: &[&[&str]]) {
        if let Value::Object(fields) = &mut self.value {
            fields::normalize_all(fields, known);
        }
    }

    /// Reads the fields of `T`.
    ///
    /// # Errors
    /// 400 with the path of the field that is missing or has the wrong type.
    pub fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ApiError> {
        Self::read_value(&self.value)
    }

    /// The same of a part of a body.
    pub(super) fn read_value<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let message = in_plain_words(&error.inner().to_string());
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

    /// Whether it has a field that says something.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.value.get(field).is_some_and(|value| !value.is_null())
    }

    /// Takes a field out, so that it isn't in memory twice.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.value.as_object_mut()?.shift_remove(field)
    }

    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.value.get(field)
    }

    pub(super) fn put(&mut self, field: &str, value: Value) {
        if let Some(fields) = self.value.as_object_mut() {
            fields.insert(field.to_owned(), value);
        }
    }

    #[cfg(test)]
    pub(super) fn of(value: Value) -> Self {
        Self {
            value,
            request_id: RequestId::default(),
            num_bytes: 0,
            memory: None,
        }
    }

    /// The id that the request's answer carries.
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }

    /// Its part of [`AppState::body_memory`], for what outlives the body.
    pub(crate) fn take_memory(&mut self) -> Option<OwnedSemaphorePermit> {
        self.memory.take()
    }

    /// Its length, as it arrived.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

/// serde's message with what is expected in the words of JSON instead of Rust's types.
fn in_plain_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i32" => "a whole number from -2147483648 to 2147483647",
        "i64" | "isize" => "a whole number from -9223372036854775808 to 9223372036854775807",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    let found = found
        .replacen(": sequence", ": list", 1)
        .replacen(": map", ": object", 1)
        .replacen(": floating point", ": number", 1);
    format!("{found}, expected {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chat::ChatFields;
    use crate::protocol::common::SamplingFields;
    use serde_json::json;

    fn body(value: Value) -> Body {
        Body::of(value)
    }

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
        for (fields, param) in [
            (json!({ "temperature": "hot" }), "temperature"),
            (json!({ "stop_token_ids": [1, -2] }), "stop_token_ids[1]"),
            (
                json!({ "stream_options": { "include_usage": 3 } }),
                "stream_options.include_usage",
            ),
            (json!({ "stream_options": [true] }), "stream_options"),
            (json!({ "n": 1.5 }), "n"),
            (json!({ "stop": [1] }), "stop"),
        ] {
            let error = body(fields).read::<SamplingFields>().unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{error:?}");
            assert!(error.message.contains(param));
        }
        let error = body(json!({})).read::<ChatFields>().unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages"));
    }

    #[test]
    fn errors_say_what_json_may_have() {
        for (fields, expected) in [
            (
                json!({ "seed": 9_223_372_036_854_775_808_u64 }),
                "expected a whole number from -9223372036854775808 to 9223372036854775807",
            ),
            (
                json!({ "stop_token_ids": [4_294_967_296_u64] }),
                "expected a whole number from 0 to 4294967295",
            ),
            (json!({ "n": -1 }), "expected a whole number, 0 or more"),
            (json!({ "temperature": "hot" }), "expected a number"),
            (
                json!({ "stop_token_ids": {} }),
                "invalid type: object, expected a list",
            ),
        ] {
            let error = body(fields).read::<SamplingFields>().unwrap_err();
            assert!(error.message.ends_with(expected), "{error:?}");
        }
        assert_eq!(in_plain_words("a reason of its own"), "a reason of its own");
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        assert_eq!(num_values(br#"{"a": [1, 2], "b,[": "\",["}"#), 5);
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert_eq!(
            parse(many.as_bytes()).unwrap_err().status,
            StatusCode::PAYLOAD_TOO_LARGE
        );
        let bom = [BOM, b"{}"].concat();
        assert_eq!(parse(&bom).unwrap(), json!({}));
    }

    #[test]
    fn a_whole_number_that_a_template_would_change_is_refused() {
        for (body, expected) in [
            (
                r#"{"tools": [{"function": {"parameters": {"maximum": 18446744073709551616}}}]}"#,
                "tools[0].function.parameters.maximum",
            ),
            (
                r#"{"messages": [{"tool_calls": [{"function": {"arguments": {"x": -9223372036854775809}}}]}]}"#,
                "messages[0].tool_calls[0].function.arguments.x",
            ),
            (
                r#"{"messages": [{"content": [{"type": "tool_use", "input": {"x": 100000000000000000000}}]}]}"#,
                "messages[0].content[0].input.x",
            ),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(expected), "{body}");
            assert!(
                error.message.contains("at most 64 bits"),
                "{}",
                error.message
            );
        }
        for body in [
            r#"{"tools": [{"maximum": 18446744073709551615, "x": 6.02e23, "y": "18446744073709551616"}]}"#,
            r#"{"seed": 18446744073709551616}"#,
        ] {
            assert!(parse(body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn only_json_is_json() {
        let require = |kind: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
            }
            require_json(&headers).is_ok()
        };
        for kind in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/ld+json",
        ] {
            assert!(require(Some(kind)), "{kind}");
        }
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/jsonp",
            "",
        ] {
            assert!(!require(Some(kind)), "{kind}");
        }
        assert!(!require(None));
    }

    #[test]
    fn a_slow_body_is_given_up() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(0, Duration::ZERO), READ_TIMEOUT);
        assert_eq!(patience(0, seconds(29)), seconds(1));
        assert_eq!(patience(1 << 20, seconds(60)), READ_TIMEOUT);
        assert_eq!(patience(1 << 20, seconds(90)), seconds(4));
        assert_eq!(patience(1 << 20, seconds(200)), Duration::ZERO);
    }

    #[test]
    fn a_packed_body_is_named() {
        let refuse = |encoding: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, encoding.parse().unwrap());
            refuse_packed(&headers)
        };
        assert!(refuse("identity").is_ok() && refuse_packed(&HeaderMap::new()).is_ok());
        let error = refuse("gzip").unwrap_err();
        assert_eq!(error.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        assert!(error.message.contains("found gzip"), "{}", error.message);
    }
}
