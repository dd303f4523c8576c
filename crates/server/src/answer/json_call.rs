//! Calls in JSON between tags, as Hermes and Qwen2.5 write them: `<tool_call>{"name": "…", "arguments": {…}}</tool_call>`.

use serde_json::Value;

use super::brackets::{Brackets, Stop};
use super::tag::{Begins, Search, begins, name_room, search_from, trimmed};
use super::{AnswerParser, CLOSE_CALL, OPEN_CALL, OPEN_FUNCTION, Place, State};

/// Names of the field with a call's arguments.
const ARGUMENTS: [&str; 2] = ["\"arguments\"", "\"parameters\""];

impl AnswerParser {
    pub(super) fn opened(&mut self, lead: String, ends: bool) -> bool {
        let body = trimmed(&self.buffer);
        let space = self.buffer.len() - body.len();
        match begins(body, &["{", "[", "`", OPEN_FUNCTION], ends) {
            Begins::With(OPEN_FUNCTION) => {
                let lead = lead + &self.take(space + OPEN_FUNCTION.len());
                self.go(State::Name { lead })
            }
            Begins::With("{") => match head(body) {
                Head::Arguments { name, .. } if !self.allows(&name) => {
                    self.emit_content(lead);
                    self.go(State::Content(Place::Line))
                }
                Head::Arguments { name, at } => {
                    self.take(space + at);
                    self.emit_call(name);
                    self.go(State::Json(Brackets::default()))
                }
                Head::Open if !ends => self.wait(State::Opened { lead }),
                Head::Open | Head::Other => self.go(State::Whole { lead, from: 0 }),
            },
            Begins::With(_) => self.go(State::Whole { lead, from: 0 }),
            Begins::Otherwise => {
                self.emit_content(lead);
                self.go(State::Content(Place::Line))
            }
            Begins::Open => self.wait(State::Opened { lead }),
        }
    }

    pub(super) fn whole(&mut self, lead: String, from: usize, ends: bool) -> bool {
        let tags = [CLOSE_CALL, OPEN_CALL];
        // The end of a text may have cut its closing tag.
        let (len, tag) = match search_from(&self.buffer, from, &tags, false) {
            Search::Found { at, tag } => (at, tag),
            Search::None { open } if !ends => return self.wait(State::Whole { lead, from: open }),
            Search::None { open } => (open, ""),
        };
        let body = self.take(len);
        let close = match tag {
            CLOSE_CALL => self.take(CLOSE_CALL.len()),
            "" => self.take(self.buffer.len()),
            _ => String::new(),
        };
        let calls = calls_of(&body);
        let calls = calls.filter(|calls| calls.iter().all(|(name, _)| self.allows(name)));
        let Some(calls) = calls else {
            self.emit_content(lead + &body + &close);
            return self.go(State::Content(Place::Line));
        };
        for (name, arguments) in calls {
            self.emit_call(name);
            self.emit_arguments(arguments);
            self.emit_end();
        }
        self.go(State::Content(Place::Call { fence: None }))
    }

    pub(super) fn json(&mut self, mut brackets: Brackets, ends: bool) -> bool {
        let (len, read, stop) = brackets.take(&self.buffer);
        self.take(len);
        self.emit_arguments(read);
        match stop {
            Stop::Complete => {
                self.emit_end();
                self.go(State::JsonTail)
            }
            Stop::Text => self.wait(State::Json(brackets)),
            Stop::Angle => match begins(&self.buffer, &[CLOSE_CALL], ends) {
                Begins::With(_) => {
                    // The model forgot some brackets.
                    self.emit_arguments(brackets.closing());
                    self.emit_end();
                    self.go(State::JsonTail)
                }
                Begins::Open => self.wait(State::Json(brackets)),
                Begins::Otherwise if ends && self.is_cut_close() => {
                    self.buffer.clear();
                    self.go(State::Json(brackets))
                }
                Begins::Otherwise => {
                    let angle = self.take(1);
                    self.emit_arguments(angle);
                    self.go(State::Json(brackets))
                }
            },
        }
    }

    pub(super) fn json_tail(&mut self, ends: bool) -> bool {
        let rest = self
            .buffer
            .trim_start_matches(|c: char| c.is_whitespace() || c == '}');
        let len = self.buffer.len() - rest.len();
        self.take(len);
        match begins(&self.buffer, &[CLOSE_CALL], ends) {
            Begins::With(tag) => {
                self.take(tag.len());
                self.go(State::Content(Place::Call { fence: None }))
            }
            Begins::Open => self.wait(State::JsonTail),
            Begins::Otherwise if ends && self.is_cut_close() => {
                self.buffer.clear();
                self.wait(State::JsonTail)
            }
            Begins::Otherwise => self.go(State::Content(Place::Call { fence: None })),
        }
    }

    /// Whether all that is left is the beginning of a closing tag, which is no content where the text ends with it.
    pub(super) fn is_cut_close(&self) -> bool {
        CLOSE_CALL.starts_with(&self.buffer)
    }
}

/// What a text begins with.
pub(super) enum Read<T> {
    /// What was looked for.
    Found(T),
    /// Something else.
    Other,
    /// More text decides.
    Open,
}

/// How a JSON object begins.
enum Head {
    /// With a name and arguments, which begin here.
    Arguments { name: String, at: usize },
    /// In another way.
    Other,
    /// More text decides.
    Open,
}

/// What is behind some tokens of JSON, and the space around them.
fn behind<'a>(text: &'a str, tokens: &[&str]) -> Read<&'a str> {
    let mut rest = text;
    for token in tokens {
        rest = trimmed(rest);
        match rest.strip_prefix(token) {
            Some(behind) => rest = behind,
            None if token.starts_with(rest) => return Read::Open,
            None => return Read::Other,
        }
    }
    match trimmed(rest) {
        "" => Read::Open,
        rest => Read::Found(rest),
    }
}

/// The string that a text begins with, and what is behind it.
fn string(text: &str) -> Read<(String, &str)> {
    let Some(body) = text.strip_prefix('"') else {
        return Read::Other;
    };
    let mut is_escaped = false;
    let room = name_room(body);
    let end = room.find(|c| match c {
        _ if is_escaped => {
            is_escaped = false;
            false
        }
        '\\' => {
            is_escaped = true;
            false
        }
        c => c == '"',
    });
    let end = match end {
        Some(end) => end,
        // It is too long.
        None if room.len() < body.len() => return Read::Other,
        None => return Read::Open,
    };
    match serde_json::from_str(&text[..end + 2]) {
        Ok(string) => Read::Found((string, &text[end + 2..])),
        Err(_) => Read::Other,
    }
}

/// The name of a call that a text begins with, and what is behind it.
pub(super) fn name(text: &str) -> Read<(String, &str)> {
    match behind(text, &["{", "\"name\"", ":"]) {
        Read::Found(rest) => string(rest),
        Read::Other => Read::Other,
        Read::Open => Read::Open,
    }
}

fn head(text: &str) -> Head {
    let (name, rest) = match name(text) {
        Read::Found(found) => found,
        Read::Other => return Head::Other,
        Read::Open => return Head::Open,
    };
    let rest = match behind(rest, &[","]) {
        Read::Found(rest) => rest,
        Read::Other => return Head::Other,
        Read::Open => return Head::Open,
    };
    let found = ARGUMENTS.map(|field| behind(rest, &[field, ":"]));
    match found {
        [Read::Found(arguments), _] | [_, Read::Found(arguments)] => {
            match arguments.starts_with('{') {
                true => Head::Arguments {
                    name,
                    at: text.len() - arguments.len(),
                },
                false => Head::Other,
            }
        }
        [Read::Other, Read::Other] => Head::Other,
        _ => Head::Open,
    }
}

/// Names and arguments of the calls in a complete text, which has nothing else but a block of code around them.
pub(super) fn calls_of(text: &str) -> Option<Vec<(String, String)>> {
    let text = text.trim();
    let text = match text
        .strip_prefix("```")
        .and_then(|code| code.split_once('\n'))
    {
        Some((_, code)) => code.trim_end().strip_suffix("```").unwrap_or(code),
        None => text,
    };
    // As a model writes it, or as it would have been right.
    let values = values(text).or_else(|| {
        let (len, read, _) = Brackets::default().take(text);
        values(&read).filter(|_| len == text.len())
    })?;
    let values = values.into_iter().flat_map(|value| match value {
        Value::Array(values) => values,
        value => vec![value],
    });
    let calls: Vec<_> = values.map(call_of).collect::<Option<_>>()?;
    (!calls.is_empty()).then_some(calls)
}

fn values(text: &str) -> Option<Vec<Value>> {
    let values = serde_json::Deserializer::from_str(text).into_iter();
    values.collect::<Result<_, _>>().ok()
}

fn call_of(mut value: Value) -> Option<(String, String)> {
    // OpenAI's own form.
    if let Some(function @ Value::Object(_)) = value.get_mut("function") {
        value = function.take();
    }
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"));
    let arguments = match arguments {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        Some(Value::String(text)) => {
            let value: Value = serde_json::from_str(text).ok()?;
            value.is_object().then(|| text.clone())?
        }
        Some(_) => return None,
    };
    Some((name, arguments))
}
