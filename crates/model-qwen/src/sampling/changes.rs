//! What the parameters change of a row of logits before a token is drawn from it, as a device applies it.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Sampler;
use super::ahead::Ahead;

/// What biases, banned tokens, bad words and penalties change of a row of logits: one entry for each token in question, in any
/// order, so that a device changes each of them by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitChanges {
    /// The tokens, each one once.
    ids: Vec<u32>,
    /// How often each token is in the output; 0 if only in the prompt, -1 if its logit has no penalty.
    counts: Vec<i32>,
    /// What is added to each logit first, negative infinity for tokens that may not come. Empty if that is 0 everywhere.
    biases: Vec<f32>,
    /// Pairs of tokens of which the second one may not come if the token of [`Ahead::Drawn`] is the first one.
    pairs: Vec<[u32; 2]>,
    /// Whether the token of [`Ahead::Drawn`] counts as output, too.
    counts_input: bool,
    /// Penalties: repetition, presence, frequency.
    penalties: [f32; 3],
}

/// A token's logit has no penalty.
const NOT_SEEN: i32 = -1;

impl LogitChanges {
    /// Integers before the lists: how many tokens and pairs there are, whether there are biases, whether the input counts,
    /// and the penalties.
    pub const HEADER: usize = 7;

    /// Integers that describe them.
    pub fn num_words(&self) -> usize {
        Self::HEADER + 2 * (self.ids.len() + self.pairs.len()) + self.biases.len()
    }

    /// The changes of rows as a device reads them: where the changes of each of `room` rows begin, or 0, then those, one after
    /// the other.
    ///
    /// # Panics
    /// If there are more rows.
    pub fn words<'a>(
        rows: impl IntoIterator<Item = Option<&'a LogitChanges>>,
        room: usize,
    ) -> Vec<i32> {
        let mut words = vec![0; room];
        for (row, changes) in rows.into_iter().enumerate() {
            let Some(changes) = changes else { continue };
            words[row] = words.len() as i32;
            words.extend([
                changes.ids.len() as i32,
                changes.pairs.len() as i32,
                i32::from(!changes.biases.is_empty()),
                i32::from(changes.counts_input),
            ]);
            let floats = changes.penalties.iter();
            words.extend(floats.map(|value| value.to_bits() as i32));
            words.extend(changes.ids.iter().map(|id| *id as i32));
            words.extend(&changes.counts);
            words.extend(changes.biases.iter().map(|bias| bias.to_bits() as i32));
            let pairs = changes.pairs.iter().flatten();
            words.extend(pairs.map(|id| *id as i32));
        }
        words
    }
}

impl Sampler {
    /// What changes of the logits of the token that comes after those `ahead`; `None` if nothing does.
    pub(super) fn changes(&self, ahead: Ahead<'_>, banned: &[u32]) -> Option<LogitChanges> {
        let params = &self.params;
        let guessed = ahead.tokens().unwrap_or(&[]);
        let has_penalties = params.has_penalties();
        let is_drawn = matches!(ahead, Ahead::Drawn);
        let (mut ids, mut counts): (Vec<u32>, Vec<i32>) = (self.seen.iter())
            .map(|(id, seen)| (*id, seen.num_output as i32))
            .unzip();
        for &guessed in guessed.iter().filter(|_| has_penalties) {
            match ids.iter().position(|&id| id == guessed) {
                Some(at) => counts[at] += 1,
                None => {
                    ids.push(guessed);
                    counts.push(1);
                }
            }
        }
        let mut added: HashMap<u32, f32> = HashMap::new();
        let mut add = |id, bias| *added.entry(id).or_insert(0.0) += bias;
        (params.logit_bias.iter()).for_each(|&(id, bias)| add(id, bias));
        (banned.iter()).for_each(|&id| add(id, f32::NEG_INFINITY));
        let output = match guessed {
            [] => Cow::Borrowed(&self.output),
            guessed => Cow::Owned([&self.output[..], guessed].concat()),
        };
        let mut pairs = Vec::new();
        for (last, before) in params.bad_words.iter().filter_map(|word| word.split_last()) {
            if let Some((after, earlier)) = before.split_last().filter(|_| is_drawn) {
                if output.ends_with(earlier) {
                    pairs.push([*after, *last]);
                    add(*last, 0.0);
                }
            } else if output.ends_with(before) {
                add(*last, f32::NEG_INFINITY);
            }
        }
        let mut biases = Vec::new();
        if !added.is_empty() {
            biases.extend(ids.iter().map(|id| added.remove(id).unwrap_or(0.0)));
            for (id, bias) in added {
                ids.push(id);
                counts.push(NOT_SEEN);
                biases.push(bias);
            }
        }
        let counts_input = has_penalties && is_drawn;
        (counts_input || !ids.is_empty()).then(|| LogitChanges {
            ids,
            counts,
            biases,
            pairs,
            counts_input,
            penalties: [
                params.repetition_penalty,
                params.presence_penalty,
                params.frequency_penalty,
            ],
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sampling::SamplingParams;

    /// The tokens in the order of their ids, with their counts and biases.
    fn listed(changes: &LogitChanges) -> Vec<(u32, i32, f32)> {
        let places = 0..changes.ids.len();
        let token = |at: usize| (changes.ids[at], changes.counts[at], changes.biases[at]);
        let mut tokens: Vec<(u32, i32, f32)> = places.map(token).collect();
        tokens.sort_by_key(|(id, ..)| *id);
        tokens
    }

    #[test]
    fn a_list_has_each_token_once() {
        let params = SamplingParams {
            repetition_penalty: 1.1,
            logit_bias: vec![(3, 2.0)],
            bad_words: vec![vec![4, 5], vec![6], vec![4, 8, 5]],
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(&params, &[1, 3], 10);
        sampler.observe(4);
        let never = f32::NEG_INFINITY;
        let after_guess = sampler.changes(Ahead::Tokens(&[4]), &[9]).unwrap();
        assert_eq!(
            listed(&after_guess),
            [
                (1, 0, 0.0),
                (3, 0, 2.0),
                (4, 2, 0.0),
                (5, NOT_SEEN, never),
                (6, NOT_SEEN, never),
                (9, NOT_SEEN, never)
            ]
        );
        assert!(after_guess.pairs.is_empty() && !after_guess.counts_input);
        let after_drawn = sampler.changes(Ahead::Drawn, &[]).unwrap();
        assert_eq!(
            listed(&after_drawn),
            [
                (1, 0, 0.0),
                (3, 0, 2.0),
                (4, 1, 0.0),
                (5, NOT_SEEN, 0.0),
                (6, NOT_SEEN, never)
            ]
        );
        assert_eq!(after_drawn.pairs, [[4, 5], [8, 5]]);
        assert!(after_drawn.counts_input);

        let rows = [None, Some(&after_guess), Some(&after_drawn)];
        let words = LogitChanges::words(rows, 4);
        let second = 4 + after_guess.num_words();
        assert_eq!(words[..4], [0, 4, second as i32, 0]);
        assert_eq!(words.len(), second + after_drawn.num_words());
        assert_eq!(words[second..][..4], [5, 2, 1, 1]);
    }

    #[test]
    fn nothing_changes_without_a_reason() {
        let sampler = Sampler::new(&SamplingParams::default(), &[1, 3], 10);
        assert_eq!(sampler.changes(Ahead::Drawn, &[]), None);
        assert_eq!(sampler.changes(Ahead::Tokens(&[4]), &[]), None);
    }
}
