//! Lines of the output, in the order of the input.

use std::collections::BTreeMap;
use std::io::{self, Write};

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::line::BadLine;
use crate::error::ApiError;
use crate::request_id::RequestId;

/// A line of the output, as OpenAI's: the answer of the API is in `response.body`, whether or not it is an error. `error`
/// repeats an error's object, as vLLM's output has it.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    id: String,
    custom_id: Option<String>,
    response: Response,
    error: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Response {
    status_code: u16,
    request_id: String,
    body: Box<RawValue>,
}

impl Answer {
    /// What the API has answered.
    pub(super) fn new(
        custom_id: String,
        status: StatusCode,
        request_id: Option<String>,
        body: String,
    ) -> Self {
        let error = (!status.is_success()).then(|| {
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            match body.get("error") {
                Some(error) => error.clone(),
                None => Value::from(body.to_string()),
            }
        });
        Self {
            id: new_id("batch_req_"),
            custom_id: Some(custom_id),
            response: Response {
                status_code: status.as_u16(),
                request_id: request_id.unwrap_or_else(|| new_id("")),
                body: on_one_line(body),
            },
            error,
        }
    }

    /// A request that the API has not seen.
    pub(super) fn of_error(custom_id: Option<String>, error: &ApiError) -> Self {
        let body = error.body();
        Self {
            id: new_id("batch_req_"),
            custom_id,
            response: Response {
                status_code: error.status.as_u16(),
                request_id: new_id(""),
                body: on_one_line(body.to_string()),
            },
            error: body.get("error").cloned(),
        }
    }

    /// A line that is no request.
    pub(super) fn of_bad_line(line: BadLine) -> Self {
        Self::of_error(line.custom_id, &line.error)
    }

    /// Whether there is no answer but an error.
    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
    }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", RequestId::default().or(None))
}

/// JSON that breaks no line; what isn't JSON becomes a string.
fn on_one_line(body: String) -> Box<RawValue> {
    let raw = match body.contains('\n') {
        false => RawValue::from_string(body.clone()),
        true => serde_json::from_str::<Value>(&body)
            .and_then(|value| RawValue::from_string(value.to_string())),
    };
    raw.or_else(|_| RawValue::from_string(Value::from(body).to_string()))
        .unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Writes each line as soon as all lines before it are written.
pub(super) struct OrderedOutput {
    output: Box<dyn Write + Send>,
    next: usize,
    waiting: BTreeMap<usize, String>,
    num_waiting_bytes: usize,
}

impl OrderedOutput {
    pub(super) fn new(output: Box<dyn Write + Send>) -> Self {
        Self {
            output,
            next: 0,
            waiting: BTreeMap::new(),
            num_waiting_bytes: 0,
        }
    }

    /// Bytes of lines that wait for an earlier one.
    pub(super) fn num_waiting_bytes(&self) -> usize {
        self.num_waiting_bytes
    }

    /// Adds the answer of line `index`, counted from 0.
    pub(super) fn add(&mut self, index: usize, answer: &Answer) -> io::Result<()> {
        let mut line = serde_json::to_string(answer)?;
        line.push('\n');
        self.num_waiting_bytes += line.len();
        self.waiting.insert(index, line);
        while let Some(line) = self.waiting.remove(&self.next) {
            self.write(&line)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Writes what still waits, because lines before it have no answer.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        for line in std::mem::take(&mut self.waiting).into_values() {
            self.write(&line)?;
        }
        Ok(())
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.num_waiting_bytes -= line.len();
        let written = self.output.write_all(line.as_bytes());
        let written = written.and_then(|()| self.output.flush());
        if written.is_err() {
            // Behind a part of a line another one would be lost.
            self.waiting.clear();
            self.num_waiting_bytes = 0;
        }
        written
    }
}

impl Drop for OrderedOutput {
    /// An error in the middle of a batch loses no answer.
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use tempfile::NamedTempFile;

    use super::*;

    /// A file, and a second handle of it to write with.
    fn file() -> (NamedTempFile, File) {
        let file = NamedTempFile::new().unwrap();
        let writer = file.reopen().unwrap();
        (file, writer)
    }

    fn ids(file: &NamedTempFile) -> Vec<String> {
        let text = fs::read_to_string(file.path()).unwrap();
        let id = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["custom_id"].as_str().unwrap().to_owned()
        };
        text.lines().map(id).collect()
    }

    fn answer(id: &str) -> Answer {
        Answer::new(
            id.to_owned(),
            StatusCode::OK,
            None,
            "{\"a\":\n1}".to_owned(),
        )
    }

    #[test]
    fn lines_have_the_order_of_the_input() {
        let (written, writer) = file();
        let mut output = OrderedOutput::new(Box::new(writer));
        output.add(1, &answer("b")).unwrap();
        output.add(3, &answer("d")).unwrap();
        assert!(ids(&written).is_empty());
        output.add(0, &answer("a")).unwrap();
        assert_eq!(ids(&written), ["a", "b"]);
        assert!(output.num_waiting_bytes() > 0);
        output.finish().unwrap();
        assert_eq!(ids(&written), ["a", "b", "d"]);
        assert_eq!(output.num_waiting_bytes(), 0);
    }

    /// A disk that is full for a while.
    struct Full {
        writer: File,
        num_left: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match std::mem::replace(&mut self.num_left, usize::MAX) {
                0 => Err(io::ErrorKind::StorageFull.into()),
                num => {
                    self.num_left = num.saturating_sub(bytes.len());
                    self.writer.write(&bytes[..num.min(bytes.len())])
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nothing_is_written_behind_a_part_of_a_line() {
        for finishes in [false, true] {
            let (written, writer) = file();
            let mut output = OrderedOutput::new(Box::new(Full {
                writer,
                num_left: 10,
            }));
            output.add(1, &answer("b")).unwrap();
            output.add(2, &answer("c")).unwrap();
            match finishes {
                true => assert!(output.finish().is_err()),
                false => assert!(output.add(0, &answer("a")).is_err()),
            }
            assert_eq!(output.num_waiting_bytes(), 0);
            drop(output);
            assert_eq!(fs::read(written.path()).unwrap().len(), 10);
        }
    }

    #[test]
    fn an_error_is_where_clients_of_openai_and_of_vllm_look() {
        let error = ApiError::model_not_found("x").body();
        let line = Answer::new(
            "a".to_owned(),
            StatusCode::NOT_FOUND,
            None,
            error.to_string(),
        );
        let line = serde_json::to_value(&line).unwrap();
        assert_eq!(line["response"]["status_code"], 404);
        assert_eq!(line["response"]["body"], error);
        assert_eq!(line["error"]["code"], "model_not_found");
        assert!(line["response"]["request_id"].is_string());
    }
}
