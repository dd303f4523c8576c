//! The tokenizer of a checkpoint folder: byte-level BPE as every Qwen model has it.
//!
//! A thin layer over the `tokenizers` crate that adds what a server needs: cheap clones, errors
//! that name the file, and the exact bytes a token stands for, from which [`crate::Detokenizer`]
//! builds text incrementally.

mod error;
mod extra;

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;

use serde::de::IgnoredAny;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{DecoderWrapper, ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::json_file::read_text;
pub use error::TokenizerError;

/// The split pattern of Qwen2, Qwen2.5 and Qwen3 (`Qwen2Tokenizer` in transformers).
pub(crate) const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Turns text into token ids and back. Cloning copies a pointer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    /// What each character of the GPT-2 byte alphabet (all below U+0144) stands for.
    byte_of_char: [Option<u8>; 0x144],
    /// One bit per token id: is it special?
    special: Vec<bool>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a checkpoint folder, or builds the tokenizer from `vocab.json`,
    /// `merges.txt` and the `added_tokens_decoder` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// When the files are missing or unreadable, or the tokenizer is not a byte-level BPE.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let json = dir.join("tokenizer.json");
        let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        if json.is_file() {
            let mut tokenizer = read_tokenizer(&json)?;
            let added = extra::check(dir, &tokenizer)?;
            extra::set_flags(&mut tokenizer, &added)?;
            extra::add_missing(&mut tokenizer, added)?;
            Self::new(tokenizer).map_err(|reason| TokenizerError::Invalid { path: json, reason })
        } else if vocab.is_file() && merges.is_file() {
            Self::from_vocab_and_merges(dir, &vocab, &merges)
        } else {
            Err(TokenizerError::Missing {
                dir: dir.to_path_buf(),
                found: crate::hub::describe::folder(dir),
            })
        }
    }

    /// Loads one `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read, or is not a byte-level BPE.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        Self::new(read_tokenizer(path)?).map_err(|reason| TokenizerError::Invalid {
            path: path.to_path_buf(),
            reason,
        })
    }

    /// `Err` holds the reason.
    fn new(tokenizer: tokenizers::Tokenizer) -> Result<Self, String> {
        if !matches!(tokenizer.get_model(), ModelWrapper::BPE(_)) {
            let model = serde_json::to_value(tokenizer.get_model()).unwrap_or_default();
            return Err(format!(
                "expected a byte-level BPE tokenizer, found a model of type {}",
                model["type"]
            ));
        }
        if !tokenizer.get_decoder().is_some_and(is_byte_level) {
            return Err(format!(
                "expected a byte-level BPE tokenizer (decoder ByteLevel, as Qwen models have), found decoder {}",
                match tokenizer.get_decoder() {
                    Some(decoder) => format!("{decoder:?}"),
                    None => "null".to_owned(),
                }
            ));
        }
        let added = tokenizer.get_added_tokens_decoder();
        let mut special = Vec::new();
        for (&id, token) in added.iter().filter(|(_, token)| token.special) {
            // An id this large is a broken file, not a vocabulary.
            if id >= 1 << 24 {
                return Err(format!(
                    "added token {:?} has id {id}, expected less than 2^24",
                    token.content
                ));
            }
            let index = id as usize;
            if special.len() <= index {
                special.resize(index + 1, false);
            }
            special[index] = true;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                tokenizer,
                byte_of_char: byte_alphabet(),
                special,
            }),
        })
    }

    fn from_vocab_and_merges(
        dir: &Path,
        vocab: &Path,
        merges: &Path,
    ) -> Result<Self, TokenizerError> {
        let invalid = |path: &Path, reason: String| TokenizerError::Invalid {
            path: path.to_path_buf(),
            reason,
        };
        for path in [vocab, merges] {
            read_text(path).map_err(|reason| invalid(path, reason))?;
        }
        let build = || BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy()).build();
        // The library panics where a merge makes a token that is longer than all of the vocabulary.
        let bpe = catch_unwind(build)
            .map_err(|_| "its parts do not go together".to_owned())
            .and_then(|built| built.map_err(|e| e.to_string()))
            .map_err(|reason| invalid(vocab, format!("with {}: {reason}", merges.display())))?;
        let split = Split::new(
            SplitPattern::Regex(QWEN2_PATTERN.to_owned()),
            SplitDelimiterBehavior::Isolated,
            false,
        )
        .map_err(|e| invalid(vocab, e.to_string()))?;
        let byte_level = ByteLevel::new(false, false, false);

        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        tokenizer
            .with_normalizer(Some(NFC))
            .map_err(|e| invalid(vocab, e.to_string()))?;
        tokenizer
            .with_pre_tokenizer(Some(Sequence::new(vec![
                PreTokenizerWrapper::Split(split),
                PreTokenizerWrapper::ByteLevel(byte_level),
            ])))
            .with_decoder(Some(byte_level))
            .with_post_processor(Some(byte_level));

        let added = extra::check(dir, &tokenizer)?;
        extra::add_missing(&mut tokenizer, added)?;
        extra::add_ends(&mut tokenizer, dir)?;
        Self::new(tokenizer).map_err(|reason| invalid(vocab, reason))
    }

    /// Token ids of `text`. Added tokens written out in the text (such as `<|im_end|>`) become
    /// single ids. `add_special_tokens` adds what the post-processor of the file adds (a BOS
    /// token for DeepSeek-R1-Distill, nothing for Qwen).
    ///
    /// # Errors
    /// When the `tokenizers` crate cannot process the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .tokenizer
            .encode_fast(text, add_special_tokens)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| TokenizerError::Process(e.to_string()))
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids outside of the vocabulary
    /// give nothing.
    ///
    /// # Errors
    /// When the `tokenizers` crate cannot decode.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        self.inner
            .tokenizer
            .decode(ids, skip_special_tokens)
            .map_err(|e| TokenizerError::Process(e.to_string()))
    }

    /// The id of a token written as in the vocabulary (`"Ġthe"`, `"<|im_end|>"`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(token)
    }

    /// The token as the vocabulary writes it, in the GPT-2 byte alphabet.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(id)
    }

    /// The bytes `id` stands for; may be part of a UTF-8 character. Empty for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let added = self.inner.tokenizer.get_added_vocabulary();
        let Some(token) = added
            .simple_id_to_token(id)
            .or_else(|| self.inner.tokenizer.id_to_token(id))
        else {
            return Vec::new();
        };
        // As the ByteLevel decoder does: a token with a character outside of the byte alphabet
        // (an added token such as <｜User｜>) stands for its own UTF-8 bytes.
        let bytes: Option<Vec<u8>> = token
            .chars()
            .map(|c| *self.inner.byte_of_char.get(c as usize)?)
            .collect();
        bytes.unwrap_or_else(|| token.into_bytes())
    }

    /// Is `id` a special token, one that [`Tokenizer::decode`] can skip?
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .special
            .get(id as usize)
            .copied()
            .unwrap_or(false)
    }

    /// The content of its `tokenizer.json`.
    pub(crate) fn to_json(&self) -> Result<serde_json::Value, TokenizerError> {
        serde_json::to_value(&self.inner.tokenizer)
            .map_err(|error| TokenizerError::Process(error.to_string()))
    }

    /// The token with the lowest id that is at least `from`.
    pub fn first_id_from(&self, from: usize) -> Option<(String, u32)> {
        let tokens = self.inner.tokenizer.get_vocab(true).into_iter();
        tokens
            .filter(|(_, id)| *id as usize >= from)
            .min_by_key(|(_, id)| *id)
    }

    /// Is `id` an added token, special or not: one that the vocabulary of byte pairs doesn't need to have?
    pub(crate) fn is_added(&self, id: u32) -> bool {
        let added = self.inner.tokenizer.get_added_vocabulary();
        added.simple_id_to_token(id).is_some()
    }

    /// Number of tokens, added ones included. The model's `vocab_size` is often larger (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => {
            matches!(sequence.get_decoders(), [only] if is_byte_level(only))
        }
        _ => false,
    }
}

/// GPT-2's table (<https://github.com/openai/gpt-2/blob/master/src/encoder.py>): printable Latin-1
/// bytes are written as themselves, the other 68 as U+0100, U+0101, ...
fn byte_alphabet() -> [Option<u8>; 0x144] {
    let mut table = [None; 0x144];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        if printable {
            table[byte as usize] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}

/// Reads a `tokenizer.json`.
fn read_tokenizer(path: &Path) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let invalid = |reason: String| TokenizerError::Invalid {
        path: path.to_path_buf(),
        reason,
    };
    let text = read_text(path).map_err(invalid)?;
    let wrong = |reason: String| invalid(format!("not a valid tokenizer file: {reason}"));
    // The library panics on some files that are cut or are no JSON.
    serde_json::from_str::<IgnoredAny>(&text).map_err(|e| wrong(e.to_string()))?;
    let mut tokenizer = catch_unwind(|| tokenizers::Tokenizer::from_bytes(text.as_bytes()))
        .map_err(|_| wrong("its parts do not go together".to_owned()))?
        .map_err(|e| wrong(e.to_string()))?;
    // Padding and truncation stored in the file would silently change prompts.
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|e| invalid(e.to_string()))?;
    Ok(tokenizer)
}
