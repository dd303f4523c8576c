//! What goes between a program and the process that renders for it, as bytes with their length before them.
//!
//! JSON text would change floats: serde_json reads the last digit another way than it writes it.

use std::io::{self, Read, Write};

use serde_json::{Map, Number, Value};

use super::TemplateError;

/// A template, and what it is rendered with; nothing to see only whether it is valid.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    pub(super) source: String,
    pub(super) fuel: u64,
    pub(super) variables: Option<Map<String, Value>>,
}

impl Work {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_text(&mut bytes, &self.source);
        bytes.extend(self.fuel.to_le_bytes());
        let variables = self.variables.clone();
        put(&mut bytes, &variables.map_or(Value::Null, Value::Object));
        bytes
    }

    pub(super) fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        Some(Self {
            source: take_text(bytes)?,
            fuel: u64::from_le_bytes(take(bytes)?),
            variables: match take_value(bytes)? {
                Value::Object(variables) => Some(variables),
                _ => None,
            },
        })
    }
}

/// The text, or why there is none.
pub(super) fn answer_to_bytes(answer: Result<String, TemplateError>) -> Vec<u8> {
    let (tag, text) = match answer {
        Ok(text) => (0, text),
        Err(TemplateError::Raised(reason)) => (1, reason),
        Err(TemplateError::TooMuchWork { fuel }) => (2, fuel.to_string()),
        Err(TemplateError::Syntax { reason, .. }) => (3, reason),
        Err(TemplateError::Render(reason)) => (4, reason),
        Err(other) => (4, other.to_string()),
    };
    let mut bytes = vec![tag];
    bytes.extend(text.into_bytes());
    bytes
}

/// [`answer_to_bytes`] the other way round; `None` if the bytes are no answer.
pub(super) fn answer_from_bytes(mut bytes: Vec<u8>) -> Option<Result<String, TemplateError>> {
    let tag = *bytes.first()?;
    bytes.remove(0);
    let text = String::from_utf8(bytes).ok()?;
    Some(match tag {
        0 => Ok(text),
        1 => Err(TemplateError::Raised(text)),
        2 => Err(TemplateError::TooMuchWork {
            fuel: text.parse().ok()?,
        }),
        3 => Err(TemplateError::Syntax {
            origin: "the given text".to_owned(),
            reason: text,
        }),
        4 => Err(TemplateError::Render(text)),
        _ => return None,
    })
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

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => bytes.push(0),
        Value::Bool(value) => bytes.push(1 + u8::from(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => {
                bytes.push(3);
                bytes.extend(number.to_le_bytes());
            }
            (None, Some(number)) => {
                bytes.push(4);
                bytes.extend(number.to_le_bytes());
            }
            (None, None) => {
                bytes.push(5);
                bytes.extend(number.as_f64().unwrap_or(f64::NAN).to_le_bytes());
            }
        },
        Value::String(text) => {
            bytes.push(6);
            put_text(bytes, text);
        }
        Value::Array(items) => {
            bytes.push(7);
            bytes.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| put(bytes, item));
        }
        Value::Object(fields) => {
            bytes.push(8);
            bytes.extend((fields.len() as u64).to_le_bytes());
            for (name, field) in fields {
                put_text(bytes, name);
                put(bytes, field);
            }
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn take_len(bytes: &mut &[u8]) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(take(bytes)?)).ok()
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let len = take_len(bytes)?;
    let (text, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn take_value(bytes: &mut &[u8]) -> Option<Value> {
    let [tag] = take(bytes)?;
    Some(match tag {
        0 => Value::Null,
        1 | 2 => Value::Bool(tag == 2),
        3 => Value::from(i64::from_le_bytes(take(bytes)?)),
        4 => Value::from(u64::from_le_bytes(take(bytes)?)),
        5 => Value::Number(Number::from_f64(f64::from_le_bytes(take(bytes)?))?),
        6 => Value::String(take_text(bytes)?),
        7 => {
            let len = take_len(bytes)?;
            Value::Array((0..len).map(|_| take_value(bytes)).collect::<Option<_>>()?)
        }
        8 => {
            let len = take_len(bytes)?;
            let fields = (0..len).map(|_| Some((take_text(bytes)?, take_value(bytes)?)));
            Value::Object(fields.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn work_comes_back_as_it_was() {
        let variables = json!({
            "z": null, "a": [true, false, -1, u64::MAX, 0.1, 1.5e300, 2.2250738585072014e-308],
            "text": "é\n\0", "nested": {"b": {}, "a": []},
        });
        for variables in [None, variables.as_object().cloned()] {
            let work = Work {
                source: "{{ é }}".to_owned(),
                fuel: 7,
                variables,
            };
            let bytes = work.to_bytes();
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
            let back = answer_from_bytes(answer_to_bytes(answer));
            assert_eq!(format!("{:?}", back.unwrap()), shown);
        }
        assert!(answer_from_bytes(Vec::new()).is_none());
        assert!(answer_from_bytes(vec![9]).is_none());
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
