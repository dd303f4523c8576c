//! Files → JSON values with their places: JSONL, or one JSON array.

use std::path::Path;
use std::str;
use std::sync::Arc;

use serde_json::Value;

use super::error::DataError;
use super::example::{Place, Source};

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Reads every record of a file. Blank lines, CRLF and a byte order mark are tolerated.
///
/// # Errors
/// Unreadable or empty files, bytes that are not UTF-8, text that is not JSON.
pub fn read_file(path: &Path) -> Result<Vec<(Source, Value)>, DataError> {
    let bytes = std::fs::read(path).map_err(|error| DataError::Io {
        path: path.into(),
        error,
    })?;
    if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") {
        return Err(DataError::Encoding {
            place: path.display().to_string(),
            found: "UTF-16 (convert the file: `iconv -f UTF-16 -t UTF-8`)".into(),
        });
    }
    let bytes = bytes.strip_prefix(BOM).unwrap_or(&bytes);
    let records = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'[') => read_array(path, bytes)?,
        _ => read_lines(path, bytes)?,
    };
    if records.is_empty() {
        return Err(DataError::Empty { path: path.into() });
    }
    Ok(records)
}

fn read_lines(path: &Path, bytes: &[u8]) -> Result<Vec<(Source, Value)>, DataError> {
    let file: Arc<Path> = path.into();
    let mut records = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let source = Source {
            file: file.clone(),
            place: Place::Line(index + 1),
        };
        let text = str::from_utf8(line).map_err(|error| DataError::Encoding {
            place: source.to_string(),
            found: invalid_byte(line, error.valid_up_to(), "of the line"),
        })?;
        if text.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(text) {
            Ok(value) => records.push((source, value)),
            Err(error) => {
                let hint = if error.is_eof() && records.is_empty() {
                    " (a record has to be on one line; a file with line breaks inside records has to be one JSON array)"
                } else {
                    ""
                };
                let reason = format!("{} at column {}{hint}", message(&error), error.column());
                return Err(DataError::Json {
                    place: source.to_string(),
                    reason,
                });
            }
        }
    }
    Ok(records)
}

fn read_array(path: &Path, bytes: &[u8]) -> Result<Vec<(Source, Value)>, DataError> {
    let file: Arc<Path> = path.into();
    let text = str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1;
        DataError::Encoding {
            place: format!("{}:{line}", path.display()),
            found: invalid_byte(bytes, error.valid_up_to(), "of the file"),
        }
    })?;
    let values: Vec<Value> = serde_json::from_str(text).map_err(|error| DataError::Json {
        place: format!("{}:{}", path.display(), error.line()),
        reason: format!("{} at column {}", message(&error), error.column()),
    })?;
    Ok(values
        .into_iter()
        .enumerate()
        .map(|(index, value)| {
            (
                Source {
                    file: file.clone(),
                    place: Place::Element(index),
                },
                value,
            )
        })
        .collect())
}

fn invalid_byte(bytes: &[u8], at: usize, of: &str) -> String {
    format!(
        "byte {:#04x} at position {} {of}",
        bytes.get(at).copied().unwrap_or_default(),
        at + 1
    )
}

/// The parser's message without its own line and column, which count from the start of what it was given.
fn message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
