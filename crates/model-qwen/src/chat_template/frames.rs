//! What goes between a program and the process that renders for it: JSON with its length before it.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::TemplateError;

/// A template, and what it is rendered with; nothing to see only whether it is valid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Work {
    pub(super) source: String,
    pub(super) fuel: u64,
    pub(super) variables: Option<Map<String, Value>>,
}

/// [`Work`] whose variables are still text, to be read without a limit of depth.
#[derive(Deserialize)]
struct Unread<'a> {
    source: String,
    fuel: u64,
    #[serde(borrow)]
    variables: Option<&'a RawValue>,
}

impl Work {
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }

    /// `None` if the bytes are no work.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let unread: Unread<'_> = serde_json::from_slice(bytes).ok()?;
        let variables = unread.variables.map(|text| deep(text.get()));
        Some(Self {
            source: unread.source,
            fuel: unread.fuel,
            variables: variables.transpose().ok()?,
        })
    }
}

/// Reads JSON of a program that has read its parts within limits of depth: the arguments of a call, which are a text in a request,
/// are nested within messages here.
fn deep(json: &str) -> serde_json::Result<Map<String, Value>> {
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.disable_recursion_limit();
    Map::deserialize(&mut reader)
}

/// The text, or why there is none.
#[derive(Serialize, Deserialize)]
enum Answer {
    Text(String),
    Raised(String),
    TooMuchWork(u64),
    Syntax(String),
    Render(String),
}

pub(super) fn answer_to_bytes(answer: Result<String, TemplateError>) -> io::Result<Vec<u8>> {
    let answer = match answer {
        Ok(text) => Answer::Text(text),
        Err(TemplateError::Raised(reason)) => Answer::Raised(reason),
        Err(TemplateError::TooMuchWork { fuel }) => Answer::TooMuchWork(fuel),
        Err(TemplateError::Syntax { reason, .. }) => Answer::Syntax(reason),
        Err(TemplateError::Render(reason)) => Answer::Render(reason),
        Err(other) => Answer::Render(other.to_string()),
    };
    Ok(serde_json::to_vec(&answer)?)
}

/// [`answer_to_bytes`] the other way round; `None` if the bytes are no answer.
pub(super) fn answer_from_bytes(bytes: &[u8]) -> Option<Result<String, TemplateError>> {
    Some(Err(match serde_json::from_slice(bytes).ok()? {
        Answer::Text(text) => return Some(Ok(text)),
        Answer::Raised(reason) => TemplateError::Raised(reason),
        Answer::TooMuchWork(fuel) => TemplateError::TooMuchWork { fuel },
        Answer::Syntax(reason) => TemplateError::Syntax {
            origin: "the given text".to_owned(),
            reason,
        },
        Answer::Render(reason) => TemplateError::Render(reason),
    }))
}

pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

pub(super) fn read(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    from.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    let mut bytes = Vec::new();
    from.take(len).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == len {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn work_comes_back_as_it_was() {
        let variables = json!({
            "z": null, "a": [true, false, -1, u64::MAX, 1.0, 0.1, 1.5e300, 2.2250738585072014e-308, 31.245270191439438],
            "text": "é\n\0", "nested": {"b": {}, "a": []},
        });
        for variables in [None, variables.as_object().cloned()] {
            let work = Work {
                source: "{{ é }}".to_owned(),
                fuel: 7,
                variables,
            };
            let bytes = work.to_bytes().unwrap();
            assert_eq!(Work::from_bytes(&bytes), Some(work));
            for len in 0..bytes.len() {
                assert_eq!(Work::from_bytes(&bytes[..len]), None);
            }
        }
    }

    #[test]
    fn answers_come_back_as_they_were() {
        let syntax = TemplateError::Syntax {
            origin: "the given text".to_owned(),
            reason: "x".to_owned(),
        };
        for answer in [
            Ok("é".to_owned()),
            Err(TemplateError::Raised("no".to_owned())),
            Err(TemplateError::TooMuchWork { fuel: 9 }),
            Err(syntax),
            Err(TemplateError::Render("x".to_owned())),
        ] {
            let shown = format!("{answer:?}");
            let back = answer_from_bytes(&answer_to_bytes(answer).unwrap());
            assert_eq!(format!("{:?}", back.unwrap()), shown);
        }
        assert!(answer_from_bytes(b"").is_none());
        assert!(answer_from_bytes(br#"{"Other":"x"}"#).is_none());
    }

    /// serde_json reads values that are nested 127 deep: a request, and the arguments of a call within it.
    #[test]
    fn variables_are_nested_as_deep_as_a_request_and_its_calls() {
        let nested = |inner: &str| format!("{}{inner}{}", "[".repeat(126), "]".repeat(126));
        let mut value: Value = serde_json::from_str(&nested("1")).unwrap();
        for _ in 0..126 {
            value = json!([value]);
        }
        let mut variables = Map::new();
        variables.insert("messages".to_owned(), value);
        let work = Work {
            source: String::new(),
            fuel: 1,
            variables: Some(variables),
        };
        assert_eq!(Work::from_bytes(&work.to_bytes().unwrap()), Some(work));
    }

    #[test]
    fn a_frame_that_is_cut_is_an_error() {
        let mut bytes = Vec::new();
        write(&mut bytes, b"abc").unwrap();
        assert_eq!(read(&mut bytes.as_slice()).unwrap(), b"abc");
        for len in 0..bytes.len() {
            assert!(read(&mut &bytes[..len]).is_err());
        }
    }
}
