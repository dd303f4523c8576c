//! Sets of tokens.

use std::hash::BuildHasher;

use rustc_hash::FxBuildHasher;

/// A set of tokens: one bit for each id of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    num_allowed: usize,
    /// Of the words, computed once: a table on a GPU looks up the mask of each row at each token.
    hash: u64,
}

impl TokenMask {
    /// The set of the first `num_tokens` bits of `words`.
    pub(crate) fn new(words: Vec<u32>, num_tokens: usize) -> Self {
        Self::without(words, num_tokens, &[])
    }

    /// The same without `ids`, unless it has no other token.
    pub(super) fn without(mut words: Vec<u32>, num_tokens: usize, ids: &[u32]) -> Self {
        words.resize(num_tokens.div_ceil(32), 0);
        if let (Some(last), used @ 1..) = (words.last_mut(), num_tokens % 32) {
            *last &= (1 << used) - 1;
        }
        let mut left_out = Vec::with_capacity(ids.len());
        for id in ids {
            let bit = 1 << (id % 32);
            if let Some(word) = words
                .get_mut(*id as usize / 32)
                .filter(|word| **word & bit != 0)
            {
                *word &= !bit;
                left_out.push((*id as usize / 32, bit));
            }
        }
        if words.iter().all(|word| *word == 0) {
            left_out.into_iter().for_each(|(at, bit)| words[at] |= bit);
        }
        Self::of_words(words)
    }

    fn of_words(words: Vec<u32>) -> Self {
        Self {
            num_allowed: words.iter().map(|word| word.count_ones() as usize).sum(),
            hash: FxBuildHasher.hash_one(&words),
            words,
        }
    }

    /// The set of one token.
    pub(crate) fn of(id: u32) -> Self {
        let mut words = vec![0; id as usize / 32 + 1];
        words[id as usize / 32] = 1 << (id % 32);
        Self::of_words(words)
    }

    /// All of `num_tokens` tokens.
    pub fn all(num_tokens: usize) -> Self {
        Self::new(vec![u32::MAX; num_tokens.div_ceil(32)], num_tokens)
    }

    /// Whether a token is in the set.
    pub fn allows(&self, id: u32) -> bool {
        let word = self.words.get(id as usize / 32);
        word.is_some_and(|word| word & (1 << (id % 32)) != 0)
    }

    /// Number of tokens in the set.
    pub fn num_allowed(&self) -> usize {
        self.num_allowed
    }

    /// The tokens of the set, in the order of their ids.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let words = (0..).zip(&self.words).filter(|(_, word)| **word != 0);
        words.flat_map(|(i, &word)| {
            let bits = (0..32).filter(move |bit| word & (1 << bit) != 0);
            bits.map(move |bit| 32 * i + bit)
        })
    }

    /// The only token of the set, if it has one.
    pub fn only(&self) -> Option<u32> {
        match self.num_allowed {
            1 => self.ids().next(),
            _ => None,
        }
    }

    /// One bit per token, the lowest first.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Makes the logits of all other tokens negative infinity.
    pub fn apply(&self, logits: &mut [f32]) {
        let mut chunks = logits.chunks_mut(32);
        let words = self.words.iter().copied().chain(std::iter::repeat(0));
        for (chunk, word) in chunks.by_ref().zip(words) {
            match word {
                u32::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if word & (1 << bit) == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl std::hash::Hash for TokenMask {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_its_tokens_and_no_others() {
        let words = vec![0b101, u32::MAX, u32::MAX];
        let mask = TokenMask::new(words.clone(), 70);
        let ids: Vec<u32> = [0, 2].into_iter().chain(32..70).collect();
        assert_eq!(mask.ids().collect::<Vec<u32>>(), ids);
        assert_eq!((mask.num_allowed(), mask.only()), (ids.len(), None));
        assert!(mask.allows(69) && !mask.allows(70) && !mask.allows(1) && !mask.allows(1 << 30));
        let mut logits = vec![1.0; 75];
        mask.apply(&mut logits);
        let kept = (0..75).filter(|id| logits[*id as usize] == 1.0);
        assert_eq!(kept.collect::<Vec<u32>>(), ids);

        let mask = TokenMask::without(words, 70, &[0, 0, 1, 500]);
        assert!(!mask.allows(0) && mask.num_allowed() == ids.len() - 1);
        let only = TokenMask::without(vec![0b100], 75, &[2, 2, 3]);
        assert_eq!((only.only(), only.num_allowed()), (Some(2), 1));
    }
}
