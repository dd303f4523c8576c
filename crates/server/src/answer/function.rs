//! Calls as Qwen3-Coder writes them: `<function=NAME><parameter=P>VALUE</parameter></function>` in `<tool_call>`.

use serde_json::Value;

use super::parameters::Parameters;
use super::tag::{Begins, MAX_NAME, Search, begins, name_room, search, search_from, trimmed};
use super::tool::is_json;
use super::{AnswerParser, CLOSE_CALL, OPEN_CALL, OPEN_FUNCTION, Place, State};

const CLOSE_FUNCTION: &str = "</function>";
const OPEN_PARAMETER: &str = "<parameter=";
const CLOSE_PARAMETER: &str = "</parameter>";
/// What may follow a parameter.
const FOLLOWERS: [&str; 3] = [OPEN_PARAMETER, CLOSE_FUNCTION, CLOSE_CALL];

impl AnswerParser {
    pub(super) fn function_name(&mut self, lead: String, ends: bool) -> bool {
        let end = name_room(&self.buffer).find(['>', '\n', '<']);
        match end {
            Some(at) if self.buffer[at..].starts_with('>') && at > 0 => {
                let name = self.buffer[..at]
                    .trim()
                    .trim_matches(['"', '\''])
                    .to_owned();
                if !self.allows(&name) {
                    self.emit_content(lead);
                    return self.go(State::Content(Place::Line));
                }
                self.take(at + 1);
                let tools = self.options.calls.as_ref().map(|calls| &calls.tools);
                let tool = tools.and_then(|tools| tools.iter().position(|tool| tool.name == name));
                self.emit_call(name);
                self.emit_arguments("{");
                self.go(State::Parameters(Parameters {
                    tool,
                    num: 0,
                    stray: String::new(),
                }))
            }
            None if !ends && self.buffer.len() <= MAX_NAME => self.wait(State::Name { lead }),
            _ => {
                self.emit_content(lead);
                self.go(State::Content(Place::Line))
            }
        }
    }

    pub(super) fn parameters(&mut self, mut parameters: Parameters, ends: bool) -> bool {
        let words = [
            OPEN_PARAMETER,
            CLOSE_FUNCTION,
            CLOSE_CALL,
            OPEN_CALL,
            OPEN_FUNCTION,
        ];
        let found = search(&self.buffer, &words, ends);
        let (Search::Found { at: len, .. } | Search::None { open: len }) = found;
        let stray = self.take(len);
        parameters.stray.push_str(&stray);
        let Search::Found { tag, .. } = found else {
            if ends {
                // Cut off, perhaps within a tag.
                if let Search::None { open } = search(&parameters.stray, &words, false) {
                    parameters.stray.truncate(open);
                }
                self.emit_end();
                self.emit_content(parameters.stray.trim());
                return self.wait(State::Content(Place::Line));
            }
            return self.wait(State::Parameters(parameters));
        };
        match tag {
            OPEN_PARAMETER => match name_room(&self.buffer).find('>') {
                Some(at) => {
                    let open = self.take(at + 1);
                    let name = open[OPEN_PARAMETER.len()..at].trim();
                    let name = name.trim_matches(['"', '\'']).to_owned();
                    self.go(State::Value {
                        parameters,
                        name,
                        from: 0,
                    })
                }
                None if ends => {
                    self.buffer.clear();
                    self.go(State::Parameters(parameters))
                }
                None if self.buffer.len() > MAX_NAME => {
                    let tag = self.take(OPEN_PARAMETER.len());
                    parameters.stray.push_str(&tag);
                    self.go(State::Parameters(parameters))
                }
                None => self.wait(State::Parameters(parameters)),
            },
            CLOSE_FUNCTION => {
                self.take(CLOSE_FUNCTION.len());
                self.end_function(parameters);
                self.go(State::FunctionTail)
            }
            // The model forgot the end of the function.
            _ => {
                self.end_function(parameters);
                self.go(State::FunctionTail)
            }
        }
    }

    pub(super) fn value(
        &mut self,
        mut parameters: Parameters,
        name: String,
        from: usize,
        ends: bool,
    ) -> bool {
        let tools = self.options.calls.as_ref().map(|calls| &calls.tools);
        let tool = tools.zip(parameters.tool).map(|(tools, i)| &tools[i]);
        let nests = tool.is_some_and(|tool| tool.strict && tool.nests(&name));
        let found = value_end(&self.buffer, from, ends, |text| !nests || is_json(text));
        let ValueEnd::Found { end, len } = found else {
            if let (ValueEnd::None { from }, false) = (found, ends) {
                return self.wait(State::Value {
                    parameters,
                    name,
                    from,
                });
            }
            // Cut off: as much of the value as there is, and no end, not even the beginning of one.
            let mut text = self.take(self.buffer.len());
            if let Search::None { open } = search(&text, &[CLOSE_PARAMETER], false) {
                text.truncate(open);
            }
            let value = Value::from(text.strip_prefix('\n').unwrap_or(&text)).to_string();
            let key = Value::from(name);
            let comma = if parameters.num > 0 { ", " } else { "" };
            self.emit_arguments(format!("{comma}{key}: {}", &value[..value.len() - 1]));
            self.emit_end();
            self.emit_content(parameters.stray.trim());
            return self.wait(State::Content(Place::Line));
        };
        let text = self.take(len);
        let text = &text[..end];
        let text = text.strip_prefix('\n').unwrap_or(text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let tools = self.options.calls.as_ref().map(|calls| &calls.tools);
        let tool = tools.zip(parameters.tool).map(|(tools, i)| &tools[i]);
        let value = tool.map_or_else(
            || Value::from(text).to_string(),
            |tool| tool.value(&name, text),
        );
        let comma = if parameters.num > 0 { ", " } else { "" };
        let key = Value::from(name);
        parameters.num += 1;
        self.emit_arguments(format!("{comma}{key}: {value}"));
        self.go(State::Parameters(parameters))
    }

    fn end_function(&mut self, parameters: Parameters) {
        self.emit_arguments("}");
        self.emit_end();
        self.emit_content(parameters.stray.trim());
    }

    pub(super) fn function_tail(&mut self, ends: bool) -> bool {
        let len = self.buffer.len() - self.buffer.trim_start().len();
        self.take(len);
        match begins(&self.buffer, &[CLOSE_CALL], ends) {
            Begins::With(tag) => {
                self.take(tag.len());
                self.go(State::Content(Place::Call { fence: None }))
            }
            Begins::Open => self.wait(State::FunctionTail),
            Begins::Otherwise if ends && self.is_cut_close() => {
                self.buffer.clear();
                self.wait(State::FunctionTail)
            }
            Begins::Otherwise => self.go(State::Content(Place::Call { fence: None })),
        }
    }
}

/// Where a value ends.
enum ValueEnd {
    /// Here, with a closing tag up to `len`.
    Found { end: usize, len: usize },
    /// Not before `from`.
    None { from: usize },
}

/// Looks for the end of a value from `from` on. A closing tag ends it only where a function can go on and the value is whole, so
/// that a value may have such tags itself.
fn value_end(text: &str, mut from: usize, ends: bool, is_whole: impl Fn(&str) -> bool) -> ValueEnd {
    loop {
        let found = search_from(text, from, &[CLOSE_PARAMETER, CLOSE_FUNCTION], ends);
        let (at, tag) = match found {
            Search::Found { at, tag } => (at, tag),
            Search::None { open } => return ValueEnd::None { from: open },
        };
        let behind = at + tag.len();
        let (words, len): (&[&'static str], usize) = match tag {
            CLOSE_PARAMETER => (&FOLLOWERS, behind),
            // The model forgot the end of the parameter.
            _ => (&[CLOSE_CALL], at),
        };
        let rest = trimmed(&text[behind..]);
        match begins(rest, words, ends) {
            Begins::With(_) if !is_whole(&text[..at]) => from = behind,
            Begins::With(_) => return ValueEnd::Found { end: at, len },
            // The end of the text may have cut what follows.
            Begins::Otherwise if ends && words.iter().any(|word| word.starts_with(rest)) => {
                return ValueEnd::Found { end: at, len };
            }
            Begins::Otherwise => from = behind,
            Begins::Open => return ValueEnd::None { from: at },
        }
    }
}
