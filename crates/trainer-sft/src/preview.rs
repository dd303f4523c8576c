//! Shows examples as the model sees them: every token, and which ones are learnt.

use std::fmt::Write;

use model_qwen::Tokenizer;

use crate::data::{DataError, Example, Examples};

const LEARNT: &str = "\x1b[1;32m";
const CONTEXT: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// The first `count` examples (pairs, where they are pairs), token by token.
///
/// Tokens are separated by `|`. Learnt ones are green with `colour`, otherwise in `[brackets]`. Line breaks are shown as
/// `⏎` before they are made, tabs as `⇥`, and bytes of unfinished UTF-8 characters as `\xE2`.
///
/// # Errors
/// When the tokens cannot be read back from the disk.
pub fn preview(
    examples: &Examples,
    tokenizer: &Tokenizer,
    count: usize,
    colour: bool,
) -> Result<String, DataError> {
    let mut text = String::new();
    let count = count * examples.per_pair();
    for example in examples.iter().take(count) {
        let example = example?;
        let num_tokens = example.tokens.len();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "── {}{}: {num_tokens} tokens, {} learnt",
            example.source,
            if example.is_wanted {
                ""
            } else {
                " (not wanted)"
            },
            example.num_targets()
        );
        for (position, (&token, &learnt)) in example.tokens.iter().zip(&example.mask).enumerate() {
            let piece = piece(tokenizer, token);
            if position > 0 && !text.ends_with('\n') {
                text.push('|');
            }
            let visible = piece.trim_end_matches('\n');
            let breaks = &piece[visible.len()..];
            let _ = match (colour, learnt) {
                (true, true) => write!(text, "{LEARNT}{visible}{RESET}{breaks}"),
                (true, false) => write!(text, "{CONTEXT}{visible}{RESET}{breaks}"),
                (false, true) => write!(text, "[{visible}]{breaks}"),
                (false, false) => write!(text, "{visible}{breaks}"),
            };
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    let shown = examples.len().min(count);
    let (num_tokens, num_targets) = (examples.num_tokens(), examples.num_targets());
    let longest = examples.longest();
    let style = if colour { "green" } else { "in [brackets]" };
    let _ = writeln!(
        text,
        "── {shown} of {} examples; in all {num_tokens} tokens, {num_targets} learnt ({style}), longest example {longest}",
        examples.len()
    );
    Ok(text)
}

/// Tokens of an example that follow each other and are all learnt, or all context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Their text; bytes of unfinished UTF-8 characters are replaced.
    pub text: String,
    /// Whether they are learnt.
    pub is_learnt: bool,
    /// How many.
    pub num_tokens: usize,
}

/// An example as a text in which it is seen what is learnt.
#[must_use]
pub fn spans(example: &Example, tokenizer: &Tokenizer) -> Vec<Span> {
    let tokens: Vec<(u32, bool)> = (example.tokens.iter().copied())
        .zip(example.mask.iter().copied())
        .collect();
    let runs = tokens.chunk_by(|(_, before), (_, after)| before == after);
    let spans = runs.map(|run| {
        let bytes: Vec<u8> = run
            .iter()
            .flat_map(|(token, _)| tokenizer.token_bytes(*token))
            .collect();
        Span {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            is_learnt: run.first().is_some_and(|(_, is_learnt)| *is_learnt),
            num_tokens: run.len(),
        }
    });
    spans.collect()
}

/// A token's bytes as visible text.
fn piece(tokenizer: &Tokenizer, token: u32) -> String {
    let mut piece = String::new();
    for chunk in tokenizer.token_bytes(token).utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => piece.push_str("⏎\n"),
                '\t' => piece.push('⇥'),
                control if control.is_control() => piece.extend(control.escape_default()),
                other => piece.push(other),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(piece, "\\x{byte:02X}");
        }
    }
    if piece.is_empty() {
        format!("<token {token}>")
    } else {
        piece
    }
}
