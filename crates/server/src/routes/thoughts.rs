//! What a model thinks before it answers: whether it does, and the space behind it.

use crate::answer::{CLOSE_THINK, OPEN_THINK, Part};
use crate::config::ReasoningParser;
use crate::state::AppState;

/// Whether the answers of the model have thoughts that are found.
pub(super) fn thinks(state: &AppState) -> bool {
    let template = state.model().chat_template.as_ref();
    match state.api().reasoning_parser {
        ReasoningParser::None => false,
        ReasoningParser::Auto => template.is_some_and(|template| {
            let source = template.source();
            source.contains(OPEN_THINK) || source.contains(CLOSE_THINK)
        }),
        ReasoningParser::DeepseekR1 | ReasoningParser::Qwen3 => true,
    }
}

/// Whether the server can end the thoughts of the model.
pub(super) fn can_end_thoughts(state: &AppState) -> bool {
    let tokenizer = &state.model().tokenizer;
    let is_token = |tag: &str| tokenizer.token_to_id(tag).is_some();
    thinks(state) && is_token(OPEN_THINK) && is_token(CLOSE_THINK)
}

/// Leaves out the space between thoughts and text, which belongs to neither. Text without thoughts before it stays as it is.
#[derive(Debug, Default)]
pub(super) struct WithoutSpace {
    last: Last,
}

/// What came last.
#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Nothing,
    Thought,
    Other,
}

impl WithoutSpace {
    /// A part without it, if anything is left.
    pub(super) fn take(&mut self, part: Part) -> Option<Part> {
        let (part, last) = match part {
            Part::Reasoning(text) => {
                let text = match self.last {
                    Last::Thought => text,
                    _ => trim_start(text),
                };
                (Part::Reasoning(text), Last::Thought)
            }
            Part::Content(text) => {
                let text = match self.last {
                    Last::Thought => trim_start(text),
                    _ => text,
                };
                (Part::Content(text), Last::Other)
            }
            other => (other, Last::Other),
        };
        if matches!(&part, Part::Reasoning(text) | Part::Content(text) if text.is_empty()) {
            return None;
        }
        self.last = last;
        Some(part)
    }
}

fn trim_start(text: String) -> String {
    match text.starts_with(char::is_whitespace) {
        true => text.trim_start().to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_space_behind_thoughts_is_left_out() {
        let thought = |text: &str| Part::Reasoning(text.to_owned());
        let said = |text: &str| Part::Content(text.to_owned());
        let taken = |parts: Vec<Part>| {
            let mut space = WithoutSpace::default();
            let parts = parts.into_iter();
            parts
                .filter_map(|part| space.take(part))
                .collect::<Vec<_>>()
        };
        let parts = vec![
            thought("\n"),
            thought(" so"),
            thought(" it is"),
            said("\n"),
            said("\nYes."),
            said(" \n"),
        ];
        let left = [thought("so"), thought(" it is"), said("Yes."), said(" \n")];
        assert_eq!(taken(parts), left);
        assert_eq!(taken(vec![said("\n"), said("x")]), [said("\n"), said("x")]);
    }
}
