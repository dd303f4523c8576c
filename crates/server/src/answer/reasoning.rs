//! Reasoning, between `<think>` and `</think>`.

use super::tag::{Begins, Search, begins, search, trimmed};
use super::think::{CLOSE_THINK, OPEN_THINK};
use super::{AnswerParser, OPEN_CALL, OPEN_FUNCTION, Part, Place, State};

impl AnswerParser {
    pub(super) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning { .. })
    }

    pub(super) fn start(&mut self, ends: bool) -> bool {
        let text = trimmed(&self.buffer);
        match begins(text, &[OPEN_THINK], ends) {
            Begins::With(tag) => {
                let len = self.buffer.len() - text.len() + tag.len();
                self.take(len);
                self.go(State::Reasoning { is_fresh: false })
            }
            Begins::Otherwise => self.go(State::Content(Place::LineStart)),
            Begins::Open => self.wait(State::Start),
        }
    }

    pub(super) fn reasoning(&mut self, is_fresh: bool, ends: bool) -> bool {
        if is_fresh {
            let text = trimmed(&self.buffer);
            match begins(text, &[OPEN_THINK], ends) {
                Begins::With(tag) => {
                    let len = self.buffer.len() - text.len() + tag.len();
                    self.take(len);
                }
                Begins::Otherwise => {}
                Begins::Open => return self.wait(State::Reasoning { is_fresh: true }),
            }
        }
        let stay = State::Reasoning { is_fresh: false };
        let tags: &[&'static str] = match self.options.calls {
            Some(_) => &[CLOSE_THINK, OPEN_CALL],
            None => &[CLOSE_THINK],
        };
        match search(&self.buffer, tags, ends) {
            Search::Found {
                at,
                tag: CLOSE_THINK,
            } => {
                self.emit_reasoning(at);
                self.take(CLOSE_THINK.len());
                self.go(State::Content(Place::LineStart))
            }
            // A model may go from its reasoning to a call directly, and it may write about calls.
            Search::Found { at, tag } => {
                let behind = trimmed(&self.buffer[at + tag.len()..]);
                match begins(behind, &["{", OPEN_FUNCTION], ends) {
                    Begins::With(_) => {
                        self.emit_reasoning(at);
                        self.go(State::Content(Place::LineStart))
                    }
                    Begins::Otherwise => {
                        self.emit_reasoning(at + tag.len());
                        self.go(stay)
                    }
                    Begins::Open => {
                        self.emit_reasoning(at);
                        self.wait(stay)
                    }
                }
            }
            Search::None { open } => {
                self.emit_reasoning(open);
                self.wait(stay)
            }
        }
    }

    fn emit_reasoning(&mut self, len: usize) {
        let text = self.take(len);
        self.emit(Part::Reasoning(text));
    }

    /// Counts the tokens of reasoning among those of a piece of text that was just taken.
    pub(super) fn count_reasoning(&mut self, was_reasoning: bool, token_ids: &[u32]) {
        let place = |id: Option<u32>| token_ids.iter().position(|token| Some(*token) == id);
        let [open, close] = self.options.think_ids.map(place);
        let has_reasoning = || {
            let mut parts = self.parts.iter();
            parts.any(|part| matches!(part, Part::Reasoning(_)))
        };
        let is_reasoning = self.is_reasoning();
        let begin = match was_reasoning {
            true => open.map_or(0, |open| open + 1),
            false if is_reasoning || has_reasoning() => {
                open.map_or(token_ids.len(), |open| open + 1)
            }
            false => return,
        };
        let end = match is_reasoning {
            // A stop may have cut the tag off, whose token is there.
            true => close.unwrap_or(token_ids.len()),
            false => close.unwrap_or(token_ids.len().saturating_sub(1)),
        };
        self.num_reasoning_tokens += end.saturating_sub(begin);
    }
}
