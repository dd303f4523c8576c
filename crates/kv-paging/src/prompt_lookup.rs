//! Guesses how a sequence goes on: as it did the last time that its last tokens came up.
//!
//! Speculative decoding by prompt lookup: a text that is edited, quoted or continued repeats long parts of itself. The guess
//! costs no model; a step then computes the guessed tokens beside the last one, and keeps as many as are right.

use std::collections::HashMap;

/// What is looked up, and how much is guessed. Every number is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LookupConfig {
    /// Tokens of the shortest n-gram that is looked up.
    pub min_ngram: usize,
    /// Tokens of the longest n-gram that is looked up. Not less than `min_ngram`.
    pub max_ngram: usize,
    /// Tokens of a guess, at most.
    pub max_tokens: usize,
}

/// A guess.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The next tokens, a part of the sequence; at least one.
    pub tokens: Vec<u32>,
    /// Tokens of the n-gram that the guess follows.
    pub ngram: usize,
}

/// The tokens of a sequence, with an index of their n-grams.
///
/// To add a token takes time for the longest n-gram, whatever the length of the sequence, and so does a guess.
#[derive(Clone, Debug)]
pub struct PromptLookup {
    config: LookupConfig,
    tokens: Vec<u32>,
    /// Where each n-gram ended last, by its hash: of those ends that `max_tokens` tokens follow.
    ends: HashMap<u64, u32>,
    /// Ends up to this one are in the index.
    num_indexed: usize,
}

impl PromptLookup {
    /// The index of a sequence that begins with `tokens`.
    pub fn new(config: LookupConfig, tokens: &[u32]) -> Self {
        let mut lookup = Self {
            config,
            tokens: tokens.to_vec(),
            ends: HashMap::new(),
            num_indexed: 0,
        };
        lookup.index();
        lookup
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends a token.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.index();
    }

    /// Puts the n-grams into the index that `max_tokens` tokens follow by now.
    fn index(&mut self) {
        let ripe = self.tokens.len().saturating_sub(self.config.max_tokens);
        for end in self.num_indexed + 1..=ripe {
            let hashes = hashes(&self.tokens[..end], self.config.max_ngram);
            for hash in hashes.skip(self.config.min_ngram - 1) {
                self.ends.insert(hash, end as u32);
            }
        }
        self.num_indexed = self.num_indexed.max(ripe);
    }

    /// What followed the last time that the longest possible n-gram at the end of the sequence came up; of that n-gram the
    /// last time with `max_tokens` tokens after it, or else the time with the most tokens after it.
    pub fn guess(&self) -> Option<Guess> {
        let LookupConfig {
            min_ngram,
            max_ngram,
            max_tokens,
        } = self.config;
        let hashes: Vec<u64> = hashes(&self.tokens, max_ngram).collect();
        let mut ngrams = (min_ngram..=hashes.len()).rev();
        ngrams.find_map(|ngram| {
            let end = self.last_end(ngram, hashes[ngram - 1])?;
            let until = self.tokens.len().min(end + max_tokens);
            Some(Guess {
                tokens: self.tokens[end..until].to_vec(),
                ngram,
            })
        })
    }

    /// The end of the n-gram's last occurrence, the end of the sequence apart.
    fn last_end(&self, ngram: usize, hash: u64) -> Option<usize> {
        let (_, last) = self.tokens.split_at(self.tokens.len() - ngram);
        // Different n-grams may have one hash.
        let is_end = |end: &usize| self.tokens[..*end].ends_with(last);
        let indexed = self.ends.get(&hash).map(|&end| end as usize);
        let recent = self.num_indexed.max(ngram - 1) + 1..self.tokens.len();
        indexed
            .filter(is_end)
            .or_else(|| recent.into_iter().find(is_end))
    }
}

/// The hashes of the last token, of the last two, and so on up to `max_ngram`.
fn hashes(tokens: &[u32], max_ngram: usize) -> impl Iterator<Item = u64> {
    let last = tokens.iter().rev().take(max_ngram);
    last.scan(0u64, |hash, &token| {
        *hash = mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ u64::from(token));
        Some(*hash)
    })
}

/// Finalizer of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// [`PromptLookup::guess`] by reading the whole sequence.
    fn scan(tokens: &[u32], config: LookupConfig) -> Option<Guess> {
        (config.min_ngram..=config.max_ngram.min(tokens.len()))
            .rev()
            .find_map(|ngram| {
                let last = &tokens[tokens.len() - ngram..];
                let ends = (ngram..tokens.len()).filter(|&end| tokens[..end].ends_with(last));
                let ends: Vec<usize> = ends.collect();
                let has_all = |end: &&usize| tokens.len() - **end >= config.max_tokens;
                let end = *ends.iter().rev().find(has_all).or(ends.first())?;
                let until = tokens.len().min(end + config.max_tokens);
                Some(Guess {
                    tokens: tokens[end..until].to_vec(),
                    ngram,
                })
            })
    }

    fn config() -> impl Strategy<Value = LookupConfig> {
        (1..4usize, 0..4usize, 1..8usize).prop_map(|(min_ngram, more, max_tokens)| LookupConfig {
            min_ngram,
            max_ngram: min_ngram + more,
            max_tokens,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn guesses_are_those_of_a_scan(
            config in config(),
            tokens in prop::collection::vec(0..4u32, 0..80),
            prompt in 0..80usize,
        ) {
            let prompt = prompt.min(tokens.len());
            let mut lookup = PromptLookup::new(config, &tokens[..prompt]);
            for len in prompt..=tokens.len() {
                let known = &tokens[..len];
                prop_assert_eq!(lookup.tokens(), known);
                let guess = lookup.guess();
                prop_assert_eq!(&guess, &scan(known, config));
                if let Some(Guess { tokens: next, ngram }) = guess {
                    prop_assert!((1..=config.max_tokens).contains(&next.len()));
                    prop_assert!((config.min_ngram..=config.max_ngram).contains(&ngram));
                    // It is a part of the sequence, after a copy of the sequence's end.
                    let copied = [&known[len - ngram..], &next[..]].concat();
                    prop_assert!(known.windows(copied.len()).any(|window| window == copied));
                }
                if let Some(&token) = tokens.get(len) {
                    lookup.push(token);
                }
            }
        }
    }

    #[test]
    fn the_longest_ngram_decides_and_then_the_last_time() {
        let config = LookupConfig {
            min_ngram: 1,
            max_ngram: 3,
            max_tokens: 2,
        };
        let guess = |tokens: &[u32]| {
            let guess = PromptLookup::new(config, tokens).guess();
            guess.map(|guess| (guess.tokens, guess.ngram))
        };
        assert_eq!(guess(&[]), None);
        assert_eq!(guess(&[7]), None);
        assert_eq!(
            guess(&[1, 2, 3, 4, 9, 3, 5, 5, 1, 2, 3]),
            Some((vec![4, 9], 3))
        );
        assert_eq!(guess(&[3, 4, 9, 3, 5, 6, 3]), Some((vec![5, 6], 1)));
        // A run: the guess is as long as it may be, though the last time is right before the end.
        assert_eq!(guess(&[8, 5, 5, 5, 5, 5, 5]), Some((vec![5, 5], 3)));
        assert_eq!(guess(&[8, 5, 5]), Some((vec![5], 1)));
    }
}
