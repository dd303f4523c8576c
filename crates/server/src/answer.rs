//! What an answer is made of: reasoning, content, and calls of tools, found in its text while the text grows.
//!
//! The parts don't depend on how the text is cut into pieces: a decision is made once no further text can change it. Text that
//! only looks like a tag or a call is content. Once a call has its name and the first bracket of its arguments it is a call,
//! and what follows are its arguments, complete or not.

mod bare;
mod bare_json;
mod brackets;
mod calls;
mod fence;
mod function;
mod json_call;
mod parameters;
mod reasoning;
mod tag;
mod think;
mod tool;

use std::sync::Arc;

use serde_json::{Map, Value};

use brackets::Brackets;
pub use think::{CLOSE_THINK, OPEN_THINK, ReasoningStart};
pub use tool::Tool;
pub(crate) use tool::is_null;

use crate::request_id::RequestId;

/// Begins a call.
pub const OPEN_CALL: &str = "<tool_call>";
/// Ends a call.
pub const CLOSE_CALL: &str = "</tool_call>";
/// Begins a call in the form of Qwen3-Coder.
pub const OPEN_FUNCTION: &str = "<function=";
/// The key of arguments that are no object, as in Anthropic's API.
const INVALID_JSON: &str = "INVALID_JSON";

/// A piece of an answer. Pieces of one kind that follow each other are one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model thinks before it answers.
    Reasoning(String),
    /// What the model says.
    Content(String),
    /// The model begins to call a tool.
    Call {
        /// 0-based.
        index: usize,
        /// `call_…`, new for each call.
        id: String,
        /// Name of the tool.
        name: String,
    },
    /// More of a call's arguments; together they are a JSON object, if the model writes one.
    Arguments {
        /// Which call.
        index: usize,
        /// JSON.
        text: String,
    },
    /// No more arguments follow.
    CallEnd {
        /// Which call.
        index: usize,
    },
}

/// What to look for in the text of an answer.
#[derive(Clone, Debug, Default)]
pub struct AnswerOptions {
    /// Whether there is reasoning, and where it begins.
    pub reasoning: ReasoningStart,
    /// Ids of `<think>` and `</think>`, where they are one token each; reasoning tokens are counted with them.
    pub think_ids: [Option<u32>; 2],
    /// The tools that may be called; `None` leaves calls in the text.
    pub calls: Option<CallOptions>,
}

/// What calls look like.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// The tools of the request.
    pub tools: Arc<[Tool]>,
    /// Whether `<function=…>` is a call without `<tool_call>` before it.
    pub bare_functions: bool,
    /// Whether calls after the first one are left out.
    pub only_one: bool,
    /// Whether a call of another tool is text.
    pub only_these: bool,
}

impl CallOptions {
    /// Whether a tool of this name may be called.
    fn allows(&self, name: &str) -> bool {
        !self.only_these || self.tools.iter().any(|tool| tool.name == name)
    }
}

/// Finds the parts of one answer.
#[derive(Debug)]
pub struct AnswerParser {
    options: AnswerOptions,
    state: State,
    /// Text that no decision was made on.
    buffer: String,
    parts: Vec<Part>,
    num_calls: usize,
    /// Whether the last call has no end yet.
    is_calling: bool,
    num_reasoning_tokens: usize,
}

/// What the buffer begins with.
#[derive(Debug)]
enum State {
    /// The answer; `<think>` is still possible.
    Start,
    /// Reasoning; a repeated `<think>` is possible while it is fresh.
    Reasoning { is_fresh: bool },
    /// Content.
    Content(Place),
    /// What follows `<tool_call>`. Without a call `lead` is content.
    Opened { lead: String },
    /// A body that is read once it is complete; it has no tag before `from`.
    Whole { lead: String, from: usize },
    /// Arguments in JSON.
    Json(Brackets),
    /// What follows the arguments, up to `</tool_call>`.
    JsonTail,
    /// JSON without tags.
    Bare(bare_json::BareJson),
    /// The name of a function, behind `<function=`.
    Name { lead: String },
    /// Between the parameters of a function.
    Parameters(parameters::Parameters),
    /// The value of a parameter, by its name. Its end is not before `from`.
    Value {
        parameters: parameters::Parameters,
        name: String,
        from: usize,
    },
    /// What follows `</function>`, up to `</tool_call>`.
    FunctionTail,
}

/// Where in the content the buffer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At the beginning, or behind a line's end.
    LineStart,
    /// Behind other text of a line.
    Line,
    /// Behind a call, and within what was around it.
    Call { fence: fence::Fence },
}

impl AnswerParser {
    /// A parser before the first piece of text.
    pub fn new(options: AnswerOptions) -> Self {
        let state = match options.reasoning {
            ReasoningStart::None => State::Content(Place::LineStart),
            ReasoningStart::Tag => State::Start,
            ReasoningStart::Prompt => State::Reasoning { is_fresh: true },
        };
        Self {
            options,
            state,
            buffer: String::new(),
            parts: Vec::new(),
            num_calls: 0,
            is_calling: false,
            num_reasoning_tokens: 0,
        }
    }

    /// Takes more text and the tokens that it came from; gives the parts that are certain now.
    pub fn push(&mut self, text: &str, token_ids: &[u32]) -> Vec<Part> {
        let was_reasoning = self.is_reasoning();
        self.buffer.push_str(text);
        while self.step(false) {}
        self.count_reasoning(was_reasoning, token_ids);
        std::mem::take(&mut self.parts)
    }

    /// Ends the text and gives the rest of the parts.
    pub fn finish(&mut self) -> Vec<Part> {
        while self.step(true) {}
        if self.is_calling {
            self.emit_end();
        }
        std::mem::take(&mut self.parts)
    }

    /// Calls so far, those that are left out not among them.
    pub fn num_calls(&self) -> usize {
        match &self.options.calls {
            Some(CallOptions { only_one: true, .. }) => self.num_calls.min(1),
            _ => self.num_calls,
        }
    }

    /// Tokens of reasoning so far, without its tags.
    pub fn num_reasoning_tokens(&self) -> usize {
        self.num_reasoning_tokens
    }

    /// Takes a piece of the buffer or goes to another state; `false` if only more text can do that.
    fn step(&mut self, ends: bool) -> bool {
        // Each step puts the next state here.
        let state = std::mem::replace(&mut self.state, State::Start);
        match state {
            State::Start => self.start(ends),
            State::Reasoning { is_fresh } => self.reasoning(is_fresh, ends),
            State::Content(place) => self.content(place, ends),
            State::Opened { lead } => self.opened(lead, ends),
            State::Whole { lead, from } => self.whole(lead, from, ends),
            State::Json(brackets) => self.json(brackets, ends),
            State::JsonTail => self.json_tail(ends),
            State::Bare(bare) => self.bare(bare, ends),
            State::Name { lead } => self.function_name(lead, ends),
            State::Parameters(parameters) => self.parameters(parameters, ends),
            State::Value {
                parameters,
                name,
                from,
            } => self.value(parameters, name, from, ends),
            State::FunctionTail => self.function_tail(ends),
        }
    }

    /// Stays in a state until there is more text.
    fn wait(&mut self, state: State) -> bool {
        self.state = state;
        false
    }

    /// Goes on in another state.
    fn go(&mut self, state: State) -> bool {
        self.state = state;
        true
    }

    /// Takes so many bytes off the buffer.
    fn take(&mut self, len: usize) -> String {
        if len == 0 {
            return String::new();
        }
        let rest = self.buffer.split_off(len);
        std::mem::replace(&mut self.buffer, rest)
    }

    fn emit(&mut self, part: Part) {
        let is_left_out = match &part {
            Part::Call { index, .. } | Part::Arguments { index, .. } | Part::CallEnd { index } => {
                *index >= self.num_calls()
            }
            Part::Reasoning(text) | Part::Content(text) => text.is_empty(),
        };
        if !is_left_out {
            push(&mut self.parts, part);
        }
    }

    fn emit_content(&mut self, text: impl Into<String>) {
        self.emit(Part::Content(text.into()));
    }

    /// Whether a call of this name is one.
    fn allows(&self, name: &str) -> bool {
        let calls = self.options.calls.as_ref();
        calls.is_none_or(|calls| calls.allows(name))
    }

    fn emit_call(&mut self, name: String) {
        self.num_calls += 1;
        self.is_calling = true;
        let id = RequestId::default().or(None);
        self.emit(Part::Call {
            index: self.num_calls - 1,
            id: format!("call_{}", &id[..24]),
            name,
        });
    }

    fn emit_arguments(&mut self, text: impl Into<String>) {
        let text: String = text.into();
        if !text.is_empty() {
            self.emit(Part::Arguments {
                index: self.num_calls - 1,
                text,
            });
        }
    }

    fn emit_end(&mut self) {
        self.is_calling = false;
        self.emit(Part::CallEnd {
            index: self.num_calls - 1,
        });
    }
}

/// Adds a part to others; text joins text of its kind.
pub fn push(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), part) {
        (Some(Part::Reasoning(all)), Part::Reasoning(text))
        | (Some(Part::Content(all)), Part::Content(text)) => all.push_str(&text),
        (
            Some(Part::Arguments { index, text: all }),
            Part::Arguments {
                index: same,
                ref text,
            },
        ) if *index == same => all.push_str(text),
        (_, part) => parts.push(part),
    }
}

/// Arguments as an object, whatever the model wrote.
pub fn arguments_object(arguments: &str) -> Map<String, Value> {
    match serde_json::from_str(arguments) {
        Ok(Value::Object(arguments)) => arguments,
        _ if arguments.trim().is_empty() => Map::new(),
        _ => Map::from_iter([(INVALID_JSON.to_owned(), Value::from(arguments))]),
    }
}

#[cfg(test)]
mod tests;
