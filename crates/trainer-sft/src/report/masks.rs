//! The first examples as a text in which the learnt tokens are marked.

use std::fmt::Write as _;

use model_qwen::Tokenizer;

use super::escape::escape;
use crate::config::Method;
use crate::data::{DataError, Examples};
use crate::preview::{Span, spans};

/// Examples (pairs, where they are pairs) that are shown.
const SHOWN: usize = 3;

/// An example as the report shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    /// File and line, and whether the answer is one that is not wanted.
    title: String,
    spans: Vec<Span>,
}

/// The pictures of the first examples.
///
/// # Errors
/// When the tokens cannot be read back from the disk.
pub(crate) fn pictures(
    examples: &Examples,
    tokenizer: &Tokenizer,
) -> Result<Vec<Picture>, DataError> {
    let shown = examples.iter().take(SHOWN * examples.per_pair());
    let pictures = shown.map(|example| {
        let example = example?;
        let wanted = if example.is_wanted {
            ""
        } else {
            " (not wanted)"
        };
        let (source, num_tokens) = (&example.source, example.tokens.len());
        let title = match example.num_targets() {
            // A prompt, to which answers are drawn.
            0 => format!("{source}: {num_tokens} tokens"),
            learnt => format!("{source}{wanted}: {num_tokens} tokens, {learnt} learnt"),
        };
        let spans = spans(&example, tokenizer);
        Ok(Picture { title, spans })
    });
    pictures.collect()
}

/// The pictures with a heading; empty without any.
pub(super) fn section(pictures: &[Picture], method: Method) -> String {
    let mut section = String::new();
    for Picture { title, spans } in pictures {
        let text: String = spans
            .iter()
            .map(|span| match (span.is_learnt, escape(&span.text)) {
                (true, text) => format!("<mark>{text}</mark>"),
                (false, text) => text,
            })
            .collect();
        // Writing to a String cannot fail.
        let _ = write!(
            section,
            "<h3>{}</h3>\n<pre class=\"example\">{text}</pre>\n",
            escape(title)
        );
    }
    let (title, told) = match method {
        Method::Grpo => (
            "First prompts",
            "What is learnt is how to answer them: the model draws the answers while it trains.",
        ),
        _ => ("First examples", "What is learnt is <mark>marked</mark>."),
    };
    match section.is_empty() {
        true => section,
        false => format!("<h2>{title}</h2>\n<p>{told}</p>\n{section}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learnt_tokens_are_marked_and_text_stays_text() {
        let span = |text: &str, is_learnt| Span {
            text: text.to_owned(),
            is_learnt,
            num_tokens: 1,
        };
        let picture = Picture {
            title: "<a>.jsonl:1".to_owned(),
            spans: vec![span("<|im_start|>", false), span("a & b", true)],
        };
        let page = section(std::slice::from_ref(&picture), Method::Sft);
        assert!(page.contains("First examples"), "{page}");
        let of_prompts = section(&[picture], Method::Grpo);
        assert!(of_prompts.contains("First prompts"), "{of_prompts}");
        assert!(page.contains("<h3>&lt;a&gt;.jsonl:1</h3>"), "{page}");
        let text = "\">&lt;|im_start|&gt;<mark>a &amp; b</mark></pre>";
        assert!(page.contains(text), "{page}");
        assert_eq!(section(&[], Method::Sft), "");
    }
}
