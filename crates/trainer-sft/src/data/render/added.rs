//! What a tokenizer puts around every text.

use model_qwen::Tokenizer;

/// Tokens that the tokenizer's post-processor adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AddedTokens {
    /// Before a text, such as BOS.
    pub(super) prefix: Vec<u32>,
    /// After a text, such as EOS.
    suffix: Vec<u32>,
}

impl AddedTokens {
    /// What `tokenizer` adds to a text of one letter.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Self {
        let encode = |special| tokenizer.encode("a", special).unwrap_or_default();
        let (whole, own) = (encode(true), encode(false));
        let start = whole.windows(own.len().max(1)).position(|part| part == own);
        let Some(start) = start else {
            return Self::default();
        };
        Self {
            prefix: whole[..start].to_vec(),
            suffix: whole[start + own.len()..].to_vec(),
        }
    }

    /// The token that ends a text, if one is added.
    pub(super) fn end(&self) -> Option<u32> {
        self.suffix.first().copied()
    }

    /// Tokens of a text without what was added after it, and with what was added before it once, also where the text has it.
    pub(crate) fn before(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        if tokens.ends_with(&self.suffix) {
            tokens.truncate(tokens.len() - self.suffix.len());
        }
        let num = self.prefix.len();
        if num > 0 && tokens.starts_with(&self.prefix) && tokens[num..].starts_with(&self.prefix) {
            tokens.drain(..num);
        }
        tokens
    }
}
