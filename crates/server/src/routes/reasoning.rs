//! The reasoning of a model before it answers: whether there is any, where it begins, how long it may be, and the space behind it.

use model_qwen::ThinkingBudget;

use crate::answer::{AnswerOptions, CLOSE_THINK, OPEN_THINK, Part, ReasoningStart};
use crate::config::ReasoningParser;
use crate::error::ApiError;
use crate::protocol::chat::{Rendered, has_think_tags};
use crate::state::AppState;

/// Whether reasoning is looked for in answers to prompts of a template.
fn has_reasoning(parser: ReasoningParser, has_think_tags: bool) -> bool {
    match parser {
        ReasoningParser::None => false,
        ReasoningParser::Auto => has_think_tags,
        ReasoningParser::DeepseekR1 | ReasoningParser::Qwen3 => true,
    }
}

/// The same for the model's own template.
pub(super) fn model_has_reasoning(state: &AppState) -> bool {
    let template = state.model().chat_template.as_ref();
    has_reasoning(
        state.api().reasoning_parser,
        template.is_some_and(has_think_tags),
    )
}

/// Whether the server can end the reasoning of the model.
pub(super) fn can_end_reasoning(state: &AppState) -> bool {
    let tokenizer = &state.model().tokenizer;
    let is_token = |tag: &str| tokenizer.token_to_id(tag).is_some();
    model_has_reasoning(state) && is_token(OPEN_THINK) && is_token(CLOSE_THINK)
}

/// Where the reasoning of an answer to this prompt begins.
pub(super) fn reasoning_start(parser: ReasoningParser, rendered: &Rendered) -> ReasoningStart {
    if !has_reasoning(parser, rendered.has_think_tags) || rendered.role != "assistant" {
        return ReasoningStart::None;
    }
    match (is_reasoning_open(rendered), parser) {
        (Some(true), _) => ReasoningStart::Prompt,
        (Some(false), _) => ReasoningStart::None,
        (None, ReasoningParser::DeepseekR1) => ReasoningStart::Prompt,
        (None, _) if rendered.enable_thinking == Some(false) => ReasoningStart::None,
        (None, _) => ReasoningStart::Tag,
    }
}

/// Whether the prompt ends inside of reasoning, whether or not reasoning is looked for in the answer; `None` if it ends before any.
pub(super) fn is_reasoning_open(rendered: &Rendered) -> Option<bool> {
    let prompt = rendered.prompt.trim_end();
    if prompt.ends_with(OPEN_THINK) || prompt.ends_with(CLOSE_THINK) {
        return Some(prompt.ends_with(OPEN_THINK));
    }
    let begun = rendered.last.as_deref().filter(|_| rendered.is_continued)?;
    match (begun.rfind(OPEN_THINK), begun.rfind(CLOSE_THINK)) {
        (None, None) if begun.trim().is_empty() => None,
        // No tag is before any.
        (open, close) => Some(open > close),
    }
}

/// The budget of reasoning, if it has one.
pub(super) fn thinking_budget(
    budget: Option<i64>,
    parser: ReasoningParser,
    rendered: &Rendered,
    parts: &AnswerOptions,
) -> Result<Option<ThinkingBudget>, ApiError> {
    const PARAM: &str = "thinking_token_budget";
    let wrong = |message: String| Err(ApiError::bad_request(PARAM, message));
    let num_tokens = match budget {
        None | Some(-1) => return Ok(None),
        Some(budget) => match usize::try_from(budget) {
            Ok(num_tokens) => num_tokens,
            Err(_) => {
                return wrong(format!(
                    "`{PARAM}` must be -1 (any number) or more, found {budget}."
                ));
            }
        },
    };
    if !has_reasoning(parser, rendered.has_think_tags) {
        let message =
            "the server looks for no reasoning in the answers of this model (--reasoning-parser).";
        return wrong(format!("`{PARAM}`: {message}"));
    }
    let (begin, end) = match (parts.reasoning, parts.think_ids) {
        // The template has switched it off.
        (ReasoningStart::None, _) => return Ok(None),
        (ReasoningStart::Prompt, [_, Some(end)]) => (None, end),
        (ReasoningStart::Tag, [Some(begin), Some(end)]) => (Some(begin), end),
        _ => {
            let message = "the model has no tokens `<think>` and `</think>`.";
            return wrong(format!("`{PARAM}`: {message}"));
        }
    };
    Ok(Some(ThinkingBudget {
        num_tokens,
        begin,
        end,
    }))
}

/// Leaves out the space between reasoning and text, which belongs to neither. Text without reasoning before it stays as it is.
#[derive(Debug, Default)]
pub(super) struct WithoutSpace {
    last: Last,
}

/// What came last.
#[derive(Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Nothing,
    Reasoning,
    Other,
}

impl WithoutSpace {
    /// A part without it, if anything is left.
    pub(super) fn take(&mut self, part: Part) -> Option<Part> {
        let (part, last) = match part {
            Part::Reasoning(text) => {
                let text = match self.last {
                    Last::Reasoning => text,
                    _ => trim_start(text),
                };
                (Part::Reasoning(text), Last::Reasoning)
            }
            Part::Content(text) => {
                let text = match self.last {
                    Last::Reasoning => trim_start(text),
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
    fn the_prompt_decides_where_reasoning_begins() {
        use ReasoningParser::{Auto, DeepseekR1, Qwen3};
        use ReasoningStart::{None, Prompt, Tag};
        for (prompt, [auto, r1, qwen3]) in [
            ("<｜Assistant｜><think>\n", [Prompt, Prompt, Prompt]),
            ("<|im_start|>assistant\n", [Tag, Prompt, Tag]),
            (
                "<|im_start|>assistant\n<think>\n\n</think>\n\n",
                [None, None, None],
            ),
            (
                "what is <think>?<|im_end|>\n<|im_start|>assistant\n",
                [Tag, Prompt, Tag],
            ),
        ] {
            let found = [Auto, DeepseekR1, Qwen3]
                .map(|parser| reasoning_start(parser, &Rendered::of_prompt(prompt)));
            assert_eq!(found, [auto, r1, qwen3], "{prompt}");
        }
        let off = Rendered {
            enable_thinking: Some(false),
            ..Rendered::of_prompt("assistant\n")
        };
        assert_eq!(reasoning_start(Auto, &off), None);
        let plain = Rendered {
            has_think_tags: false,
            ..Rendered::of_prompt("assistant\n")
        };
        assert_eq!(reasoning_start(Auto, &plain), None);
        assert_eq!(reasoning_start(DeepseekR1, &plain), Prompt);
        assert_eq!(
            reasoning_start(ReasoningParser::None, &Rendered::of_prompt("<think>")),
            None
        );
        for (last, start) in [
            ("<think>so", Prompt),
            ("<think>so</think>Yes", None),
            ("Yes", None),
            (" ", Tag),
        ] {
            let continued = Rendered {
                last: Some(last.to_owned()),
                is_continued: true,
                ..Rendered::of_prompt(&format!("assistant\n{last}."))
            };
            assert_eq!(reasoning_start(Qwen3, &continued), start, "{last}");
        }
    }

    #[test]
    fn only_the_space_behind_reasoning_is_left_out() {
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
