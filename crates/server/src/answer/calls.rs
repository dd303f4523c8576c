//! Content, and where a call begins in it.

use super::bare::{self, Probe};
use super::bare_json::BareJson;
use super::fence::Fence;
use super::tag::{Begins, MAX_SPACE, Search, begins, search};
use super::{AnswerParser, OPEN_CALL, OPEN_FUNCTION, Place, State};

/// What a call may begin with.
enum Start {
    Tag(&'static str),
    Bare { len: usize, fence: Fence },
}

impl AnswerParser {
    pub(super) fn content(&mut self, place: Place, ends: bool) -> bool {
        if self.options.calls.is_none() {
            let len = self.buffer.len();
            let text = self.take(len);
            self.emit_content(text);
            return self.wait(State::Content(place));
        }
        let mut place = place;
        if let Place::Call { fence } = &mut place
            && !self.skip_behind_call(fence, ends)
        {
            return self.wait(State::Content(place));
        }
        let (at, start) = self.find_start(place, ends);
        // Space before a call is not part of the content.
        let cut = match start.is_none() && ends {
            true => at,
            false => self.before_space(at),
        };
        let text = self.take(cut);
        let is_moved = !text.is_empty();
        self.emit_content(text);
        let Some(start) = start else {
            let place = if is_moved { Place::Line } else { place };
            // `find_start` has looked at all of the buffer.
            return self.wait(State::Content(place));
        };
        match start {
            Start::Tag(tag) => {
                let lead = self.take(at - cut + tag.len());
                self.go(match tag {
                    OPEN_FUNCTION => State::Name { lead },
                    _ => State::Opened { lead },
                })
            }
            Start::Bare { len, fence } => {
                // One block of code may have several calls.
                let fence = match place {
                    Place::Call { fence: before } if cut == 0 => fence.or(before),
                    _ => fence,
                };
                let lead = self.take(at - cut + len);
                self.go(State::Bare(BareJson::new(lead, fence)))
            }
        }
    }

    /// Where the white space before `at` begins, of which [`MAX_SPACE`] bytes count.
    fn before_space(&self, at: usize) -> usize {
        let from = self
            .buffer
            .floor_char_boundary(at.saturating_sub(MAX_SPACE));
        from + self.buffer[from..at].trim_end().len()
    }

    /// Takes away the space behind a call, and the end of what is around it, once. `false` if more of it may follow.
    fn skip_behind_call(&mut self, fence: &mut Fence, ends: bool) -> bool {
        let len = self.buffer.len() - self.buffer.trim_start().len();
        self.take(len);
        if self.buffer.is_empty() {
            return ends;
        }
        if let Some(end) = *fence {
            match begins(&self.buffer, &[end], ends) {
                Begins::With(_) => {
                    self.take(end.len());
                    *fence = None;
                    return self.skip_behind_call(fence, ends);
                }
                Begins::Otherwise => {}
                Begins::Open => return false,
            }
        }
        true
    }

    /// Where a call begins or may begin: with a tag, or with JSON at the start of a line.
    fn find_start(&self, place: Place, ends: bool) -> (usize, Option<Start>) {
        let Some(calls) = &self.options.calls else {
            return (self.buffer.len(), None);
        };
        let tags: &[&'static str] = match calls.bare_functions {
            true => &[OPEN_CALL, OPEN_FUNCTION],
            false => &[OPEN_CALL],
        };
        let (at, tag) = match search(&self.buffer, tags, ends) {
            Search::Found { at, tag } => (at, Some(tag)),
            Search::None { open } => (open, None),
        };
        let first = (place != Place::Line).then_some(0);
        let lines = self.buffer[..at].match_indices('\n').map(|(i, _)| i + 1);
        for line in first.into_iter().chain(lines) {
            // Of empty lines only the last one counts.
            let next = self.buffer[line..].split_once('\n');
            if next.is_some_and(|(text, _)| text.trim().is_empty()) {
                continue;
            }
            match bare::probe(&self.buffer[line..], &calls.tools, ends) {
                Probe::Call { len, fence } => {
                    return (line, Some(Start::Bare { len, fence }));
                }
                Probe::Open => return (line, None),
                Probe::Other => {}
            }
        }
        (at, tag.map(Start::Tag))
    }
}
