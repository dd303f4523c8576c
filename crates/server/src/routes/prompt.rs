//! From text to tokens, within bounds: of length, of memory, of how many requests do it at once.

use model_qwen::TokenizerError;
use model_qwen::sys::return_freed_memory;

use super::constraint::Constrained;
use crate::blocking::blocking;
use crate::error::ApiError;
use crate::protocol::body::{Body, SMALL_BODY_BYTES};
use crate::protocol::common::{SamplingFields, TruncationSide};
use crate::special_tokens::SpecialTokens;
use crate::state::AppState;

/// Bytes of text that are tokenized at once, which takes a hundred times their memory.
const PIECE_BYTES: usize = 256 << 10;
/// Tokens of a text that is cut before it is tokenized, besides those that are kept: a token at the cut may be another.
const SPARE_TOKENS: usize = 64;
/// Bytes of a composed character, at least, for one that was written in parts.
const MAX_DECOMPOSED: usize = 4;

/// Prepares a request where it does not delay others, with at most a few texts at a time. What a large one has taken goes back to
/// the system.
pub(super) async fn prepare_request<T: Send + 'static>(
    state: &AppState,
    mut body: Body,
    prepare: impl FnOnce(&AppState, Body) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    // What is made of a large body takes its place in memory.
    let memory = body.take_memory();
    let (prepared, memory) = prepare_holding(state, body, memory, prepare).await?;
    drop(memory);
    Ok(prepared)
}

/// [`prepare_request`] for a request that may have a grammar, which is compiled in a second step: while it waits for other
/// grammars, it keeps no text from being tokenized, and no thread from its work.
pub(super) async fn prepare_and_compile<T: Constrained + Send + 'static>(
    state: &AppState,
    mut body: Body,
    prepare: impl FnOnce(&AppState, Body) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let memory = body.take_memory();
    let (mut prepared, _memory) = prepare_holding(state, body, memory, prepare).await?;
    if let Some(grammar) = prepared.take_grammar() {
        let constraint = grammar.compile(state).await?;
        prepared.constrain(&constraint);
    }
    Ok(prepared)
}

/// [`prepare_request`] with what is held meanwhile, and given back with the result.
async fn prepare_holding<T: Send + 'static, M: Send + 'static>(
    state: &AppState,
    body: Body,
    memory: M,
    prepare: impl FnOnce(&AppState, Body) -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, M), ApiError> {
    let num_bytes = body.num_bytes();
    let turn = state.tokenizer_memory(num_bytes).await;
    let state = state.clone();
    blocking(move || {
        let prepared = prepare(&state, body);
        if num_bytes > SMALL_BODY_BYTES {
            return_freed_memory();
        }
        drop(turn);
        prepared.map(|prepared| (prepared, memory))
    })
    .await
}

/// How many tokens a prompt may have.
#[derive(Debug)]
pub(super) struct Length<'a> {
    /// The field that the prompt came in.
    param: &'a str,
    /// A longer prompt is refused; `None` lets any length pass.
    limit: Option<usize>,
    /// A longer prompt is cut.
    keep: Option<(usize, TruncationSide)>,
}

impl<'a> Length<'a> {
    /// What a request says of the prompt in the field `param`, with `max_tokens` of output.
    ///
    /// # Errors
    /// 400 if more is to be kept than there is room for.
    pub(super) fn of(
        state: &AppState,
        sampling: &SamplingFields,
        param: &'a str,
        max_tokens: Option<usize>,
    ) -> Result<Self, ApiError> {
        let max_model_len = state.model().max_model_len;
        let Some(keep) = sampling.truncate_prompt_tokens else {
            return Ok(Self {
                param,
                limit: Some(max_model_len),
                keep: None,
            });
        };
        let longest = max_model_len.saturating_sub(max_tokens.unwrap_or(1).max(1));
        let keep = usize::try_from(keep).unwrap_or(longest).max(1);
        if keep > max_model_len {
            return Err(ApiError::bad_request(
                "truncate_prompt_tokens",
                format!(
                    "`truncate_prompt_tokens` must be at most {max_model_len} (--max-model-len), found {keep}."
                ),
            ));
        }
        Ok(Self {
            param,
            limit: None,
            keep: Some((keep, sampling.truncation_side.unwrap_or_default())),
        })
    }

    /// A text that is pooled: by default its beginning is kept, as sentence-transformers does.
    ///
    /// # Errors
    /// 400 if more is to be kept than there is room for, or nothing.
    pub(super) fn of_input(
        state: &AppState,
        param: &'a str,
        keep: Option<i64>,
        side: Option<TruncationSide>,
    ) -> Result<Self, ApiError> {
        let max_model_len = state.model().max_model_len;
        let Some(given) = keep else {
            return Ok(Self {
                param,
                limit: Some(max_model_len),
                keep: None,
            });
        };
        let keep = match given {
            -1 => Some(max_model_len),
            _ => usize::try_from(given).ok(),
        };
        let keep = keep.filter(|keep| (1..=max_model_len).contains(keep));
        let keep = keep.ok_or_else(|| {
            let message = format!(
                "`truncate_prompt_tokens` must be -1 (the longest text) or between 1 and {max_model_len}, found {given}."
            );
            ApiError::bad_request("truncate_prompt_tokens", message)
        })?;
        Ok(Self {
            param,
            limit: None,
            keep: Some((keep, side.unwrap_or(TruncationSide::Right))),
        })
    }

    /// The same with room for so many tokens less.
    pub(super) fn less(&self, num: usize) -> Self {
        Self {
            param: self.param,
            limit: self.limit.map(|limit| limit.saturating_sub(num)),
            keep: self
                .keep
                .map(|(keep, side)| (keep.saturating_sub(num).max(1), side)),
        }
    }

    /// A prompt of any length.
    pub(super) fn any(param: &'a str) -> Self {
        Self {
            param,
            limit: None,
            keep: None,
        }
    }

    /// The same of a prompt that is in another field.
    pub(super) fn named<'b>(&self, param: &'b str) -> Length<'b> {
        Length {
            param,
            limit: self.limit,
            keep: self.keep,
        }
    }

    /// The prompt's field.
    pub(super) fn param(&self) -> &'a str {
        self.param
    }

    /// Whether a long prompt is cut.
    pub(super) fn cuts(&self) -> bool {
        self.keep.is_some()
    }

    /// The tokens that are kept.
    pub(super) fn cut(&self, mut ids: Vec<u32>) -> Vec<u32> {
        match self.keep {
            Some((keep, side)) if ids.len() > keep => match side {
                TruncationSide::Left => ids.split_off(ids.len() - keep),
                TruncationSide::Right => {
                    ids.truncate(keep);
                    ids
                }
            },
            _ => ids,
        }
    }

    /// The part of a text that the kept tokens can come from.
    fn relevant<'t>(&self, text: &'t str, longest_token: usize) -> &'t str {
        let Some((keep, side)) = self.keep else {
            return text;
        };
        let most = (keep + SPARE_TOKENS).saturating_mul(longest_token * MAX_DECOMPOSED);
        if text.len() <= most {
            return text;
        }
        match side {
            TruncationSide::Left => &text[text.ceil_char_boundary(text.len() - most)..],
            TruncationSide::Right => &text[..text.floor_char_boundary(most)],
        }
    }
}

/// Token ids of a text. One that is certainly too long is refused before it is tokenized, another as soon as that is seen.
///
/// # Errors
/// 400 with the prompt's field.
pub(super) fn encode(
    state: &AppState,
    text: &str,
    add_special_tokens: bool,
    length: &Length<'_>,
) -> Result<Vec<u32>, ApiError> {
    let (tokenizer, longest_token) = (&state.model().tokenizer, state.longest_token());
    let text = length.relevant(text, longest_token);
    if let Some(limit) = length.limit {
        let least = least_tokens(text, longest_token);
        if least > limit {
            return Err(too_long(state, length, least));
        }
    }
    let failed = |error: TokenizerError| {
        let param = length.param;
        ApiError::bad_request(param, format!("`{param}` cannot be tokenized: {error}"))
    };
    let none = SpecialTokens::default();
    let around = match add_special_tokens {
        true => state.special_tokens(),
        false => Some(&none),
    };
    let Some(SpecialTokens { before, after }) = around else {
        return Ok(length.cut(tokenizer.encode(text, true).map_err(failed)?));
    };
    let mut ids = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let piece;
        (piece, rest) = split(rest);
        ids.extend(tokenizer.encode(piece, false).map_err(failed)?);
        if !rest.is_empty() && length.limit.is_some_and(|limit| ids.len() > limit) {
            let least = ids.len() + least_tokens(rest, longest_token);
            return Err(too_long(state, length, least));
        }
    }
    let mut ids = match length.keep {
        Some((keep, side)) => {
            let keep = keep.saturating_sub(before.len() + after.len());
            let rest = Length {
                keep: Some((keep, side)),
                ..*length
            };
            rest.cut(ids)
        }
        None => ids,
    };
    ids.splice(0..0, before.iter().copied());
    ids.extend(after);
    Ok(ids)
}

fn too_long(state: &AppState, length: &Length<'_>, least: usize) -> ApiError {
    let max_model_len = state.model().max_model_len;
    ApiError {
        code: Some("context_length_exceeded"),
        ..ApiError::bad_request(
            length.param,
            format!(
                "This model's maximum context length is {max_model_len} tokens. However, the prompt has at least {least} tokens. \
                 Please shorten it."
            ),
        )
    }
}

/// A number of tokens that a text certainly has.
fn least_tokens(text: &str, longest_token: usize) -> usize {
    // Tokenizers compose characters first.
    let shrinks = if text.is_ascii() { 1 } else { MAX_DECOMPOSED };
    text.len() / (longest_token * shrinks).max(1)
}

/// A piece of a text, of about [`PIECE_BYTES`] if it is longer, and the rest. The tokens of both together are those of the text.
fn split(text: &str) -> (&str, &str) {
    if text.len() <= PIECE_BYTES {
        return (text, "");
    }
    let at = text.floor_char_boundary(PIECE_BYTES);
    let before = text[..at].char_indices().rev();
    let before = before.map(|(i, c)| i + c.len_utf8());
    let after = text[at..].char_indices().map(|(i, _)| at + i);
    let mut places = before.take_while(|i| 2 * i > at).chain(after);
    let place = places.find(|&i| is_between_words(&text[..i], &text[i..]));
    text.split_at(place.unwrap_or(text.len()))
}

/// Whether every tokenizer of Qwen models begins a new token between two texts: a word ends with the first.
fn is_between_words(before: &str, after: &str) -> bool {
    let ends_word = |c: char| {
        c.is_ascii_alphabetic()
            || matches!(c, '\u{3041}'..='\u{3096}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}')
    };
    let begins_other = |c: char| matches!(c, ' ' | '\n' | ',' | '.' | '。' | '，');
    before.chars().next_back().is_some_and(ends_word)
        && after.chars().next().is_some_and(begins_other)
}

#[cfg(test)]
mod tests {
    use model_qwen::Tokenizer;

    use super::*;

    #[test]
    fn pieces_have_the_tokens_of_the_whole() {
        let dir = model_qwen::bundled_model_dir().unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let readme = include_str!("../../README.md");
        let mixed =
            "你好，世界。한국어 텍스트, naïve café's don't\n\n  3.14 kana かな。\r\n<|im_end|> x";
        let text = format!("{readme}{mixed}").repeat(2 * PIECE_BYTES / readme.len());
        let (mut ids, mut rest, mut num_pieces) = (Vec::new(), text.as_str(), 0);
        while !rest.is_empty() {
            let piece;
            (piece, rest) = split(rest);
            assert!(piece.len() <= PIECE_BYTES + 100);
            ids.extend(tokenizer.encode(piece, false).unwrap());
            num_pieces += 1;
        }
        assert!(num_pieces > 1);
        assert_eq!(ids, tokenizer.encode(&text, false).unwrap());
        let longest = (0..tokenizer.vocab_size() as u32).map(|id| tokenizer.token_bytes(id).len());
        assert!(least_tokens(&text, longest.max().unwrap()) <= ids.len());
        // Without a place between words it stays whole.
        let unbroken = "a".repeat(PIECE_BYTES + 5);
        assert_eq!(split(&unbroken), (unbroken.as_str(), ""));
    }

    #[test]
    fn the_end_or_the_beginning_is_kept() {
        let length = |keep, side| Length {
            param: "prompt",
            limit: None,
            keep: Some((keep, side)),
        };
        assert_eq!(length(2, TruncationSide::Left).cut(vec![1, 2, 3]), [2, 3]);
        assert_eq!(length(2, TruncationSide::Right).cut(vec![1, 2, 3]), [1, 2]);
        assert_eq!(
            length(3, TruncationSide::Left).cut(vec![1, 2, 3]),
            [1, 2, 3]
        );
        assert_eq!(Length::any("prompt").cut(vec![1, 2, 3]), [1, 2, 3]);
        let text = format!("é{}", "ab".repeat(300));
        let most = 65 * MAX_DECOMPOSED;
        let kept = length(1, TruncationSide::Left).relevant(&text, 1);
        assert_eq!(kept, &text[text.len() - most..]);
        let kept = length(1, TruncationSide::Right).relevant(&text, 1);
        assert_eq!(kept, &text[..most]);
    }
}
