//! The small JSON files of a model folder: `config.json` and its neighbours, read the same way by whoever needs a field.
//!
//! Null says what an absent field says, a whole number may be written as a float, and a byte order mark says nothing.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::links::dangling;

/// Why a JSON file of a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JsonFileError {
    /// The file cannot be read, or holds something else.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field has a value that this crate cannot honour.
    #[error("{}: field `{field}`: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// What would be accepted.
        expected: String,
        /// What the file says.
        found: String,
    },
}

/// The fields of one JSON file.
#[derive(Clone, Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    object: Map<String, Value>,
}

impl JsonFile {
    /// Reads the object in `path`; an object without fields when there is no such file.
    pub(crate) fn read_optional(path: PathBuf) -> Result<Self, JsonFileError> {
        if let Some(link) = dangling(&path) {
            let reason = format!("this is {link}");
            return Err(JsonFileError::File { path, reason });
        }
        if !path.exists() {
            let object = Map::new();
            return Ok(Self { path, object });
        }
        Self::read(path)
    }

    /// Reads the object in `path`.
    pub(crate) fn read(path: PathBuf) -> Result<Self, JsonFileError> {
        match read_text(&path) {
            Ok(text) => Self::parse(&text, path),
            Err(reason) => Err(JsonFileError::File { path, reason }),
        }
    }

    /// Parses the text of `path`.
    pub(crate) fn parse(text: &str, path: PathBuf) -> Result<Self, JsonFileError> {
        let text = text.trim_start_matches('\u{feff}');
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Self { path, object }),
            Ok(other) => {
                let reason = format!("expected a JSON object, found {}", json_type(&other));
                Err(JsonFileError::File { path, reason })
            }
            Err(error) => {
                let reason = format!("expected a JSON object: {error}");
                Err(JsonFileError::File { path, reason })
            }
        }
    }

    /// The object in a field of this file; errors about its fields name both.
    pub(crate) fn object_in(&self, field: &str) -> Result<Option<Nested<'_>>, JsonFileError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Nested {
                path: &self.path,
                prefix: format!("{field}."),
                object,
            })),
            Some(other) => Err(self.top().error(field, "an object", other)),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all fields.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.object.keys().map(String::as_str)
    }

    /// All fields.
    pub(crate) fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// The field, if it says something.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    /// Readers of the typed fields.
    pub(crate) fn top(&self) -> Nested<'_> {
        Nested {
            path: &self.path,
            prefix: String::new(),
            object: &self.object,
        }
    }
}

/// An object in a file, with readers that check types.
#[derive(Clone, Debug)]
pub(crate) struct Nested<'a> {
    path: &'a Path,
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Nested<'a> {
    pub(crate) fn object(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// The field, if it says something.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }

    pub(crate) fn error(
        &self,
        field: &str,
        expected: impl ToString,
        found: impl ToString,
    ) -> JsonFileError {
        JsonFileError::Field {
            path: self.path.to_owned(),
            field: format!("{}{field}", self.prefix),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The field as `convert` reads it.
    pub(crate) fn read<T>(
        &self,
        field: &str,
        expected: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, JsonFileError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(self.error(field, expected, value)),
            },
        }
    }

    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>, JsonFileError> {
        self.read(field, "a number", Value::as_f64)
    }

    pub(crate) fn boolean(&self, field: &str) -> Result<Option<bool>, JsonFileError> {
        self.read(field, "true or false", Value::as_bool)
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<String>, JsonFileError> {
        self.read(field, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A whole number of at least 1.
    pub(crate) fn positive(&self, field: &str) -> Result<Option<usize>, JsonFileError> {
        self.read(field, "a positive number", |value| {
            whole(value)
                .filter(|&n| n > 0)
                .and_then(|n| usize::try_from(n).ok())
        })
    }

    /// A whole number of at least 1 that must be there.
    pub(crate) fn required(&self, field: &str) -> Result<usize, JsonFileError> {
        let found = self.positive(field)?;
        found.ok_or_else(|| self.error(field, "a positive number", "nothing"))
    }

    /// One id or a list of ids. Negative ones stand for none, as in transformers.
    pub(crate) fn token_ids(&self, field: &str) -> Result<Vec<u32>, JsonFileError> {
        let one = |value: &Value| -> Option<Option<u32>> {
            let id = whole(value)?;
            match id < 0 {
                true => Some(None),
                false => u32::try_from(id).ok().map(Some),
            }
        };
        let expected = "a token id or a list of token ids";
        let ids: Option<Vec<Option<u32>>> = self.read(field, expected, |value| match value {
            Value::Array(list) => list.iter().filter(|id| !id.is_null()).map(one).collect(),
            _ => one(value).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default().into_iter().flatten().collect())
    }
}

/// A whole number, also one that is written as a float.
pub(crate) fn whole(value: &Value) -> Option<i64> {
    let float = || {
        let float = value.as_f64()?;
        (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
    };
    value.as_i64().or_else(float)
}

/// The text of a file without its byte order mark. `Err` holds the reason.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    refuse_stand_in(&bytes)?;
    let text = String::from_utf8(bytes).map_err(|error| format!("expected UTF-8: {error}"))?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}

/// Refuses what stands in the place of a file that was not fetched: Git's pointer to a large file, or the page of a web server
/// that wanted something else. `Err` holds the reason.
pub(crate) fn refuse_stand_in(bytes: &[u8]) -> Result<(), String> {
    let start: Vec<u8> = bytes.iter().take(64).map(u8::to_ascii_lowercase).collect();
    if start.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Err(
            "this is a Git LFS pointer, the file itself was not fetched: run `git lfs pull` in the folder, or download \
             the model again"
                .to_owned(),
        );
    }
    let is_page =
        |start: &[u8]| start.starts_with(b"<!doctype html") || start.starts_with(b"<html");
    match is_page(start.trim_ascii_start()) {
        true => Err(
            "this is a web page, not the file: download the model again, with the token that it needs".to_owned(),
        ),
        false => Ok(()),
    }
}

/// What a JSON value is called in messages: "a number", "an object".
pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether a value asks for nothing: null, false, zero, or empty.
pub(crate) fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(0.0),
        Value::String(value) => value.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> JsonFile {
        JsonFile::parse(text, PathBuf::from("x.json")).unwrap()
    }

    #[test]
    fn null_floats_and_marks_say_what_their_absence_says() {
        let file =
            file("\u{feff}{\"a\": null, \"b\": 8.0, \"ids\": [2, -1, null, 3.0], \"id\": -1}");
        let top = file.top();
        assert_eq!(top.positive("a").unwrap(), None);
        assert_eq!(top.positive("b").unwrap(), Some(8));
        assert_eq!(top.token_ids("ids").unwrap(), [2, 3]);
        assert_eq!(top.token_ids("id").unwrap(), [0u32; 0]);
    }

    #[test]
    fn errors_name_file_field_expected_and_found() {
        let file = file(r#"{"b": 8.5, "ids": ["x"], "in": {"c": "y"}}"#);
        let message = |error: JsonFileError| error.to_string();
        assert_eq!(
            message(file.top().positive("b").unwrap_err()),
            "x.json: field `b`: expected a positive number, found 8.5"
        );
        assert_eq!(
            message(file.top().token_ids("ids").unwrap_err()),
            "x.json: field `ids`: expected a token id or a list of token ids, found [\"x\"]"
        );
        let nested = file.object_in("in").unwrap().unwrap();
        assert_eq!(
            message(nested.number("c").unwrap_err()),
            "x.json: field `in.c`: expected a number, found \"y\""
        );
        let error = JsonFile::parse("[1]", PathBuf::from("x.json")).unwrap_err();
        assert_eq!(
            message(error),
            "x.json: expected a JSON object, found a list"
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_no_absent_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("generation_config.json");
        assert!(JsonFile::read_optional(path.clone()).is_ok());
        std::os::unix::fs::symlink("../../blobs/abc", &path).unwrap();
        let error = JsonFile::read_optional(path).unwrap_err().to_string();
        let expected =
            "generation_config.json: this is a link to ../../blobs/abc, which is not there";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_git_lfs_pointer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(
            &path,
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        )
        .unwrap();
        let error = JsonFile::read(path).unwrap_err().to_string();
        assert!(
            error.contains("config.json: this is a Git LFS pointer"),
            "{error}"
        );
        assert!(error.contains("git lfs pull"), "{error}");
    }
}
