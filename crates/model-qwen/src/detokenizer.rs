//! Turns a stream of token ids into a stream of text.
//!
//! A byte-level BPE token is a run of bytes, not of characters: an emoji is often three tokens.
//! The detokenizer keeps the bytes of an unfinished character until the rest arrives, so every
//! piece it returns is whole characters, at a cost that does not grow with the text so far.
//! The pieces joined together equal [`Tokenizer::decode`] of all ids.

use crate::tokenizer::Tokenizer;

/// Incremental decoder of one sequence.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// Bytes of a character that is not complete yet; at most 3.
    tail: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer at the start of a text. With `skip_special_tokens`, special tokens give no
    /// text.
    pub fn new(tokenizer: Tokenizer, skip_special_tokens: bool) -> Self {
        Self {
            tokenizer,
            skip_special_tokens,
            tail: Vec::new(),
        }
    }

    /// The text that `id` completes: whole characters only, `""` while a character is incomplete.
    /// Bytes that can never become UTF-8 give U+FFFD at once.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.tail.extend(self.tokenizer.token_bytes(id));

        let mut text = String::with_capacity(self.tail.len());
        let mut rest = self.tail.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(invalid) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[invalid..];
                        }
                        None => {
                            rest = after;
                            break;
                        }
                    }
                }
            }
        }
        let consumed = self.tail.len() - rest.len();
        self.tail.drain(..consumed);
        text
    }

    /// Ends the text: an incomplete character becomes one U+FFFD. Afterwards the detokenizer is at
    /// the start of a new text.
    pub fn finish(&mut self) -> String {
        let tail = std::mem::take(&mut self.tail);
        String::from_utf8_lossy(&tail).into_owned()
    }
}
