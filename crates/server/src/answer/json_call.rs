//! Calls in JSON between tags, as Hermes and Qwen2.5 write them: `<tool_call>{"name": "…", "arguments": {…}}</tool_call>`.

use serde_json::Value;

use super::brackets::{Brackets, Stop};
use super::tag::{Begins, Search, begins, name_room, search_from, trimmed};
use super::{AnswerParser, CLOSE_CALL, OPEN_CALL, OPEN_FUNCTION, Place, State, Tool};

/// Names of the field with a call's arguments. Calls of strict tools have the first one: their grammar knows no other.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];
/// The same as JSON.
const QUOTED_ARGUMENTS: [&str; 2] = ["\"arguments\"", "\"parameters\""];
/// What else a call without tags may have.
const BESIDES: [&str; 3] = ["name", "id", "type"];

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
                Head::Arguments {
                    name,
                    is_first: false,
                    ..
                } if self.strict_tool(&name).is_some() => self.go(State::Whole { lead, from: 0 }),
                Head::Arguments { name, at, .. } => {
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
        let calls = calls_of(&body, |call| {
            let tool = self.strict_tool(&call.name);
            self.allows(&call.name) && tool.is_none_or(|tool| call.keeps_to_grammar(tool))
        });
        let Some(calls) = calls else {
            self.emit_content(lead + &body + &close);
            return self.go(State::Content(Place::Line));
        };
        for call in calls {
            self.emit_whole(call);
        }
        self.go(State::Content(Place::Call { fence: None }))
    }

    pub(super) fn emit_whole(&mut self, call: Call) {
        self.emit_call(call.name);
        self.emit_arguments(call.arguments);
        self.emit_end();
    }

    fn strict_tool(&self, name: &str) -> Option<&Tool> {
        let mut tools = self.options.calls.iter().flat_map(|calls| &*calls.tools);
        tools.find(|tool| tool.strict && tool.name == name)
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
    Arguments {
        name: String,
        at: usize,
        /// Whether they have the first of [`ARGUMENTS`].
        is_first: bool,
    },
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
    let found = QUOTED_ARGUMENTS.map(|field| behind(rest, &[field, ":"]));
    let is_first = matches!(found[0], Read::Found(_));
    match found {
        [Read::Found(arguments), _] | [_, Read::Found(arguments)] => {
            match arguments.starts_with('{') {
                true => Head::Arguments {
                    name,
                    at: text.len() - arguments.len(),
                    is_first,
                },
                false => Head::Other,
            }
        }
        [Read::Other, Read::Other] => Head::Other,
        _ => Head::Open,
    }
}

/// A call in a complete text.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    /// JSON.
    pub(super) arguments: String,
    /// The field that has them, if there is one.
    field: Option<&'static str>,
    /// Whether that one is right behind the name.
    is_next: bool,
    /// Other fields.
    besides: Vec<String>,
}

impl Call {
    fn of(mut value: Value) -> Option<Self> {
        // OpenAI's own form.
        if let Some(function @ Value::Object(_)) = value.get_mut("function") {
            value = function.take();
        }
        let name = value.get("name")?.as_str()?.to_owned();
        let field = (ARGUMENTS.into_iter()).find(|field| value.get(field).is_some());
        let arguments = match field.and_then(|field| value.get(field)) {
            None | Some(Value::Null) => "{}".to_owned(),
            Some(arguments @ Value::Object(_)) => arguments.to_string(),
            Some(Value::String(text)) => {
                let value: Value = serde_json::from_str(text).ok()?;
                value.is_object().then(|| text.clone())?
            }
            Some(_) => return None,
        };
        let keys = value.as_object()?.keys().map(String::as_str);
        let others = keys.clone().filter(|key| Some(*key) != field);
        let behind_name = keys.clone().skip_while(|key| *key != "name").nth(1);
        Some(Self {
            name,
            arguments,
            field,
            is_next: field.is_some() && behind_name == field,
            besides: others.map(str::to_owned).collect(),
        })
    }

    /// Whether JSON that has no tags calls this tool. Other JSON may have the tool's name, too: a list of the tools, a file that is asked
    /// for.
    pub(super) fn calls_without_tags(&self, tool: &Tool) -> bool {
        let is_plain = (self.besides.iter()).all(|key| BESIDES.contains(&key.as_str()));
        let has_arguments = match self.field {
            None => !tool.has_parameters(),
            Some(field) if field == ARGUMENTS[0] => true,
            Some(_) => !is_schema(&self.arguments, tool),
        };
        let is_valid = !tool.strict || self.keeps_to_grammar(tool);
        self.name == tool.name && is_plain && has_arguments && is_valid
    }

    /// Whether the grammar of a strict tool has seen the arguments: it begins with the name, and `arguments` right behind it.
    fn keeps_to_grammar(&self, tool: &Tool) -> bool {
        match self.field {
            None => !tool.has_parameters(),
            Some(field) => field == ARGUMENTS[0] && self.is_next,
        }
    }
}

/// Whether this is a schema of arguments, and they have no such names themselves.
fn is_schema(arguments: &str, tool: &Tool) -> bool {
    let arguments: Option<Value> = serde_json::from_str(arguments).ok();
    let keys = ["type", "properties"].into_iter();
    let mut foreign = keys.filter(|key| !tool.has_parameter(key));
    foreign.any(|key| (arguments.as_ref()).is_some_and(|arguments| arguments.get(key).is_some()))
}

/// The calls in a complete text, which has nothing else but a block of code around them; `None` if one is none.
pub(super) fn calls_of(text: &str, is_call: impl Fn(&Call) -> bool) -> Option<Vec<Call>> {
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
    let calls = values.map(|value| Call::of(value).filter(&is_call));
    let calls: Vec<Call> = calls.collect::<Option<_>>()?;
    (!calls.is_empty()).then_some(calls)
}

fn values(text: &str) -> Option<Vec<Value>> {
    let values = serde_json::Deserializer::from_str(text).into_iter();
    values.collect::<Result<_, _>>().ok()
}
