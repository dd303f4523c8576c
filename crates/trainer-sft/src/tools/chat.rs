//! `trainer-sft chat`: talk to a model with an adapter in the terminal, and see what it says without.

mod arguments;
mod columns;
mod input;

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use model_qwen::{
    ChatError, ChatModel, LoadOptions, QwenModel, ReplyOptions, SamplingError, SamplingParams,
};
use serde_json::{Value, json};

use super::ToolError;
use super::base::model_and_adapter;
use crate::lora;

use input::Input;

pub use arguments::ChatArgs;

/// What is typed instead of a question.
const COMMANDS: &str = "/reset begins anew, /system TEXT sets the system prompt, /quit ends; a line that begins with // is sent with one of them";

/// Takes away what stands in the terminal's line.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Whether a model is answering: then a signal ends the answer.
static IS_ANSWERING: AtomicBool = AtomicBool::new(false);

/// Whether a chat is in the middle of an answer, which `stop` ends.
pub fn is_answering() -> bool {
    IS_ANSWERING.load(Ordering::SeqCst)
}

/// Talks until the input ends. `stop` ends an answer.
pub(super) fn chat(args: &ChatArgs, stop: &AtomicBool) -> Result<(), ToolError> {
    let (folder, adapter) = model_and_adapter(args.model.as_deref(), args.adapter.as_deref())?;
    args.check(adapter.is_some())?;
    let options = LoadOptions {
        quantization: args.quantization,
        ..LoadOptions::default()
    };
    let device = model_qwen::parse_device(&args.device)?;
    let mut chat = ChatModel::load(&folder.to_string_lossy(), &options, &device)?;
    let has_adapter = adapter.is_some();
    if let Some(adapter) = adapter {
        if args.compare {
            // The base would answer with embedding and head of the adapter.
            QwenModel::check_shared(&adapter)?;
        }
        lora::put_adapter(&mut chat.model, lora::SLOT, adapter)?;
    }
    let sampling = args.sampling(chat.generation_config.sampling_defaults());
    let (mut input, mut out) = (Input::open(), io::stdout().lock());
    let mut talk = Talk {
        voices: voices(args.compare, has_adapter),
        system: args.system.clone(),
        sampling,
        max_tokens: args.max_tokens,
        is_terminal: input.is_typed(),
        wide: columns::wide_terminal,
        chat: &chat,
        out: &mut out,
        stop,
    };
    talk.start_anew();
    match talk.run(&mut input) {
        // A reader that goes away ends the chat.
        Err(ToolError::Io { error, .. }) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => ended,
    }
}

/// Who answers.
struct Voice {
    name: &'static str,
    slot: Option<usize>,
    messages: Vec<Value>,
}

impl Voice {
    /// What was said last.
    fn last(&self) -> &str {
        let content = self.messages.last().map(|message| &message["content"]);
        content.and_then(Value::as_str).unwrap_or_default()
    }
}

fn voices(compare: bool, has_adapter: bool) -> Vec<Voice> {
    let base = ("base", None);
    let adapted = ("adapter", Some(lora::SLOT));
    let all = match (compare, has_adapter) {
        (true, _) => vec![base, adapted],
        (false, true) => vec![adapted],
        (false, false) => vec![base],
    };
    let all = all.into_iter();
    let voice = |(name, slot)| Voice {
        name,
        slot,
        messages: Vec::new(),
    };
    all.map(voice).collect()
}

/// A conversation, with one voice or with two that do not hear each other.
struct Talk<'a> {
    chat: &'a ChatModel,
    voices: Vec<Voice>,
    system: Option<String>,
    sampling: SamplingParams,
    max_tokens: usize,
    /// Whether someone types: then questions are asked for, and a mistake ends nothing.
    is_terminal: bool,
    /// The columns of the terminal, where two answers fit side by side.
    wide: fn() -> Option<usize>,
    out: &'a mut dyn Write,
    stop: &'a AtomicBool,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Empty,
    Say(&'a str),
    Reset,
    System(&'a str),
    Quit,
    Help,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn of(text: &'a str) -> Self {
        let text = text.trim();
        if text.is_empty() {
            return Self::Empty;
        }
        let Some(command) = text.strip_prefix('/') else {
            return Self::Say(text);
        };
        if command.starts_with('/') {
            return Self::Say(command);
        }
        let (name, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match (name, rest.trim()) {
            ("reset" | "clear", "") => Self::Reset,
            ("system", rest) => Self::System(rest),
            ("quit" | "exit" | "bye", "") => Self::Quit,
            ("help" | "?", "") => Self::Help,
            _ => Self::Unknown(text),
        }
    }
}

impl Talk<'_> {
    /// Forgets all but the system prompt.
    fn start_anew(&mut self) {
        let system = self.system.iter();
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let system: Vec<Value> = system.collect();
        for voice in &mut self.voices {
            voice.messages.clone_from(&system);
        }
    }

    fn run(&mut self, input: &mut Input<'_>) -> Result<(), ToolError> {
        if self.is_terminal {
            self.write(&format!("{COMMANDS}. Ctrl-C ends an answer.\n"))?;
        }
        loop {
            let line = match input.next(self.out)? {
                input::Line::Text(line) => line,
                input::Line::Wrong(found) => {
                    self.survive(ToolError::ChatLine { found })?;
                    continue;
                }
                input::Line::End => return Ok(()),
            };
            match Line::of(&line) {
                Line::Empty => {}
                Line::Quit => return Ok(()),
                Line::Help => self.note(COMMANDS)?,
                Line::Reset => {
                    self.start_anew();
                    self.note("the conversation begins anew")?;
                }
                Line::System(text) => {
                    self.system = Some(text.to_owned()).filter(|text| !text.is_empty());
                    self.start_anew();
                    self.note(match self.system {
                        Some(_) => "the conversation begins anew, with this system prompt",
                        None => "the conversation begins anew, without a system prompt",
                    })?;
                }
                Line::Unknown(found) => {
                    let error = ToolError::ChatCommand {
                        found: found.to_owned(),
                        commands: COMMANDS,
                    };
                    self.survive(error)?;
                }
                Line::Say(text) => {
                    if let Err(error) = self.say(text) {
                        self.survive(error)?;
                    }
                }
            }
        }
    }

    /// Lets every voice answer: one below the other as the answers come, or side by side once both are there.
    fn say(&mut self, text: &str) -> Result<(), ToolError> {
        let is_compared = self.voices.len() > 1;
        let wide = if is_compared { (self.wide)() } else { None };
        for index in 0..self.voices.len() {
            let name = self.voices[index].name;
            match wide {
                Some(_) => self.write(&format!("\r({name} answers)"))?,
                None if is_compared => self.write(&format!("── {name}\n"))?,
                None => {}
            }
            let question = json!({"role": "user", "content": text});
            self.voices[index].messages.push(question);
            let answer = self.answer(index, wide.is_none());
            let was_stopped = self.stop.swap(false, Ordering::SeqCst);
            if wide.is_some() {
                self.write(CLEAR_LINE)?;
            }
            let messages = &mut self.voices[index].messages;
            match answer {
                Ok(answer) => messages.push(json!({"role": "assistant", "content": answer})),
                Err(error) => {
                    // What has no answer was not asked.
                    messages.pop();
                    if wide.is_some() {
                        self.show_answered(index)?;
                    }
                    return Err(error);
                }
            }
            if wide.is_none() {
                self.write("\n")?;
            }
            // The other voice hears the question, too: both have the same conversation.
            if was_stopped {
                self.note("stopped")?;
            }
        }
        let Some(width) = wide else { return Ok(()) };
        let [left, right] = &self.voices[..] else {
            return Ok(());
        };
        let both = [(left.name, left.last()), (right.name, right.last())];
        let shown = columns::side_by_side(both, width);
        self.write(&shown)
    }

    /// The answers before that of voice `index`, which has failed.
    fn show_answered(&mut self, index: usize) -> Result<(), ToolError> {
        let answered = self.voices.iter().take(index);
        let answered = answered.map(|voice| format!("── {}\n{}\n", voice.name, voice.last()));
        let answered: String = answered.collect();
        self.write(&answered)
    }

    /// The answer of a voice; the part of it that there is when it is stopped. Where it is shown, it is printed as it comes.
    fn answer(&mut self, index: usize, is_shown: bool) -> Result<String, ToolError> {
        let voice = &self.voices[index];
        let options = ReplyOptions {
            sampling: Some(self.sampling.clone()),
            max_tokens: self.max_tokens,
            adapter: voice.slot,
            ..ReplyOptions::default()
        };
        let mut written = Ok(());
        IS_ANSWERING.store(true, Ordering::SeqCst);
        let reply = self.chat.reply(&voice.messages, &options, |text| {
            if is_shown {
                written = write_now(self.out, text);
            }
            match written.is_err() || self.stop.load(Ordering::SeqCst) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        IS_ANSWERING.store(false, Ordering::SeqCst);
        written.map_err(failed("standard output"))?;
        Ok(reply?)
    }

    /// Says on a terminal what went wrong, and goes on; elsewhere, and where the device has failed, ends with it.
    fn survive(&mut self, error: ToolError) -> Result<(), ToolError> {
        let is_final = matches!(
            error,
            ToolError::Io { .. } | ToolError::Chat(ChatError::Generate(_))
        );
        match self.is_terminal && !is_final {
            true => self.write(&format!("{error}\n")),
            false => Err(error),
        }
    }

    /// A remark for someone who types.
    fn note(&mut self, text: &str) -> Result<(), ToolError> {
        match self.is_terminal {
            true => self.write(&format!("({text})\n")),
            false => Ok(()),
        }
    }

    fn write(&mut self, text: &str) -> Result<(), ToolError> {
        write_now(self.out, text).map_err(failed("standard output"))
    }
}

fn write_now(out: &mut dyn Write, text: &str) -> io::Result<()> {
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}

fn failed(stream: &'static str) -> impl FnOnce(io::Error) -> ToolError {
    move |error| ToolError::Io {
        path: stream.into(),
        error,
    }
}

/// An error of sampling as that of the flag.
fn of_flag(error: SamplingError) -> ToolError {
    ToolError::Flag {
        flag: match error.param {
            "top_p" => "top-p",
            "top_k" => "top-k",
            "min_p" => "min-p",
            "repetition_penalty" => "repetition-penalty",
            other => other,
        },
        expected: error.expected.to_owned(),
        found: error.found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a talk of two voices prints, on a terminal of so many columns.
    fn compared(chat: &ChatModel, width: fn() -> Option<usize>) -> String {
        let mut out = Vec::new();
        // Without an adapter, both are the base.
        let mut voices = voices(true, false);
        voices.iter_mut().for_each(|voice| voice.slot = None);
        let mut talk = Talk {
            chat,
            voices,
            system: None,
            sampling: SamplingParams::greedy(),
            max_tokens: 12,
            is_terminal: true,
            wide: width,
            out: &mut out,
            stop: &AtomicBool::new(false),
        };
        talk.say("Tell me a story about a duck.").unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_wide_terminal_has_both_answers_side_by_side() {
        let folder = model_qwen::bundled_model_dir().unwrap();
        let device = model_qwen::parse_device("cpu").unwrap();
        let options = LoadOptions::default();
        let chat = ChatModel::load(&folder.to_string_lossy(), &options, &device).unwrap();
        let narrow = compared(&chat, || None);
        let answer = narrow.lines().nth(1).unwrap();
        assert_eq!(narrow, format!("── base\n{answer}\n── adapter\n{answer}\n"));
        let wide = compared(&chat, || Some(120));
        let shown = wide.rsplit(CLEAR_LINE).next().unwrap();
        let expected = columns::side_by_side([("base", answer), ("adapter", answer)], 120);
        assert_eq!(shown, expected);
        let first = shown.lines().next().unwrap();
        assert!(
            first.starts_with("── base ") && first.ends_with(" │ ── adapter"),
            "{first}"
        );
    }

    #[test]
    fn lines_are_said_unless_they_are_commands() {
        for (text, expected) in [
            ("Hello there\n", Line::Say("Hello there")),
            ("  \n", Line::Empty),
            ("/reset\n", Line::Reset),
            ("/system Be kind. \n", Line::System("Be kind.")),
            ("/system", Line::System("")),
            ("/quit", Line::Quit),
            ("//etc is a folder", Line::Say("/etc is a folder")),
            ("/etc", Line::Unknown("/etc")),
            ("/reset now", Line::Unknown("/reset now")),
        ] {
            assert_eq!(Line::of(text), expected, "{text}");
        }
    }
}
