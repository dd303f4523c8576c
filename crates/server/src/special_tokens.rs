//! What a tokenizer puts around a text.

use model_qwen::Tokenizer;

/// The special tokens before a text and after it.
#[derive(Debug, Default)]
pub(crate) struct SpecialTokens {
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

impl SpecialTokens {
    /// `None` if the tokenizer changes the text's own tokens, too.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let encode = |special| tokenizer.encode("a", special).ok();
        let (plain, whole) = (encode(false)?, encode(true)?);
        let num = whole.len().saturating_sub(plain.len());
        let at = (0..=num).find(|&at| whole[at..].starts_with(&plain))?;
        Some(Self {
            before: whole[..at].to_vec(),
            after: whole[at + plain.len()..].to_vec(),
        })
    }
}
