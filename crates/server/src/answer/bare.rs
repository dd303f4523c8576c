//! Calls without tags of their own, as small models write them: JSON on a line of its own, in a block of code, or in `<tools>`, where
//! a template lists the tools.
//!
//! Only JSON that begins with `{"name": "…"` (or with a list of such objects), where the name is that of a tool, is held back.

use super::bare_json::BareJson;
use super::brackets::Stop;
use super::fence::{FENCE, Fence, TOOLS};
use super::json_call::{Read, calls_of, name};
use super::tag::{Begins, begins, trimmed};
use super::{AnswerParser, CLOSE_CALL, Place, State, Tool};

/// What a line begins with.
pub(super) enum Probe {
    /// Behind so many bytes, the JSON of a call.
    Call { len: usize, fence: Fence },
    /// Something else.
    Other,
    /// More text decides.
    Open,
}

/// Looks at a text from the start of a line.
pub(super) fn probe(line: &str, tools: &[Tool], ends: bool) -> Probe {
    let mut rest = trimmed(line);
    let fence = match begins(rest, &[FENCE, TOOLS[0]], ends) {
        Begins::With(FENCE) => {
            rest = &rest[FENCE.len()..];
            match rest.split_once('\n') {
                // The language.
                Some((language, code)) if is_language(language) => rest = trimmed(code),
                None if is_language(rest) && !ends => return Probe::Open,
                _ => return Probe::Other,
            }
            Some(FENCE)
        }
        Begins::With(_) => {
            rest = trimmed(&rest[TOOLS[0].len()..]);
            Some(TOOLS[1])
        }
        Begins::Otherwise => None,
        Begins::Open => return Probe::Open,
    };
    let json = rest.strip_prefix('[').map_or(rest, trimmed);
    match name(json) {
        Read::Found((name, _)) if tools.iter().any(|tool| tool.name == name) => Probe::Call {
            len: line.len() - rest.len(),
            fence,
        },
        Read::Open if !ends => Probe::Open,
        Read::Found(_) | Read::Other | Read::Open => Probe::Other,
    }
}

fn is_language(text: &str) -> bool {
    let text = text.trim_end_matches('\r');
    text.len() <= 16 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl AnswerParser {
    pub(super) fn bare(&mut self, mut bare: BareJson, ends: bool) -> bool {
        // Nothing outside of strings ends JSON before its last bracket.
        let stop = loop {
            let (more, _, stop) = bare.brackets.take(&self.buffer[bare.len..]);
            bare.len += more;
            if stop != Stop::Angle {
                break stop;
            }
            bare.len += 1;
        };
        if stop == Stop::Text && !ends {
            return self.wait(State::Bare(bare));
        }
        let json = self.take(bare.len);
        let BareJson { lead, fence, .. } = bare;
        let calls = match (&self.options.calls, stop) {
            (Some(options), Stop::Complete) => calls_of(&json, |call| {
                let mut tools = options.tools.iter();
                tools.any(|tool| call.calls_without_tags(tool))
            }),
            _ => None,
        };
        match calls {
            Some(calls) => {
                for call in calls {
                    self.emit_whole(call);
                }
                // The tag before it may have been the prompt's.
                let fence = fence.or(Some(CLOSE_CALL));
                self.go(State::Content(Place::Call { fence }))
            }
            None => {
                self.emit_content(lead + &json);
                self.go(State::Content(Place::Line))
            }
        }
    }
}
