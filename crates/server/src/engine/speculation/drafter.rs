//! The guesses for one sequence, and how often they are right.

use kv_paging::{Guess, LookupConfig, PromptLookup};

/// Guesses the next tokens of a sequence.
///
/// Guesses are compared with what comes whether or not they were computed as a draft. So a sequence whose guesses are wrong gets
/// no drafts, and gets drafts again as soon as its guesses are right again, without a draft to try.
#[derive(Debug)]
pub(in crate::engine) struct Drafter {
    lookup: PromptLookup,
    min_ngram: usize,
    /// How often a guessed token was right of late, after as many equal tokens as the shortest n-gram has, one more, and so on.
    rates: Vec<f32>,
    /// The last guess, and how many of its tokens have come.
    guess: Option<Guess>,
    num_seen: usize,
}

/// Rates before anything was compared: after the longest n-gram, and after others. Low ones, since a guess that is right raises them
/// also without a draft.
const FIRST_RATES: [f32; 2] = [0.4, 0.1];
/// How much the last guess counts.
const WEIGHT: f32 = 0.125;

impl Drafter {
    pub(super) fn new(config: LookupConfig, prompt: &[u32]) -> Self {
        let mut rates = vec![FIRST_RATES[1]; config.max_ngram - config.min_ngram];
        rates.push(FIRST_RATES[0]);
        Self {
            lookup: PromptLookup::new(config, prompt),
            min_ngram: config.min_ngram,
            rates,
            guess: None,
            num_seen: 0,
        }
    }

    /// Guesses anew. How likely each token is to be kept: it is right, and so are all before it.
    pub(super) fn guess(&mut self) -> Vec<f32> {
        self.guess = self.lookup.guess();
        self.num_seen = 0;
        let Some(guess) = &self.guess else {
            return Vec::new();
        };
        let rates = (guess.ngram..).map(|equal| self.rates[self.place(equal)]);
        let chances = rates.scan(1.0, |chance, rate| {
            *chance *= rate;
            Some(*chance)
        });
        chances.take(guess.tokens.len()).collect()
    }

    /// The guessed tokens.
    pub(super) fn draft(&self) -> &[u32] {
        self.guess.as_ref().map_or(&[], |guess| &guess.tokens)
    }

    /// Takes note of the token that came.
    pub(in crate::engine) fn observe(&mut self, token: u32) {
        self.lookup.push(token);
        let Some(guess) = &self.guess else { return };
        let Some(&guessed) = guess.tokens.get(self.num_seen) else {
            return;
        };
        let place = self.place(guess.ngram + self.num_seen);
        let is_right = guessed == token;
        self.rates[place] += WEIGHT * (f32::from(u8::from(is_right)) - self.rates[place]);
        match is_right {
            true => self.num_seen += 1,
            false => self.guess = None,
        }
    }

    /// Which rate a token has after so many equal ones.
    fn place(&self, num_equal: usize) -> usize {
        (num_equal - self.min_ngram).min(self.rates.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: LookupConfig = LookupConfig {
        min_ngram: 2,
        max_ngram: 4,
        max_tokens: 3,
    };

    #[test]
    fn right_guesses_become_likely_and_wrong_ones_unlikely() {
        let text: Vec<u32> = (0..40).collect();
        let mut drafter = Drafter::new(CONFIG, &text);
        assert_eq!(drafter.guess(), Vec::<f32>::new());
        for &token in &text[..4] {
            drafter.observe(token);
        }
        let first = FIRST_RATES[0];
        assert_eq!(
            drafter.guess(),
            [first, first * first, first * first * first]
        );
        for &token in &text[4..30] {
            drafter.observe(token);
            let chances = drafter.guess();
            assert!(chances.is_sorted_by(|a, b| a >= b), "{chances:?}");
        }
        assert!(drafter.guess()[2] > 0.85);
        assert_eq!(drafter.draft(), [30, 31, 32]);
        // From here on the text is another one each time.
        for other in 100..130 {
            for token in [7, 8, 9, 10, other] {
                drafter.guess();
                drafter.observe(token);
            }
        }
        for token in [7, 8, 9, 10] {
            drafter.observe(token);
        }
        assert!(drafter.guess()[0] < 0.8, "{:?}", drafter.rates);
    }

    #[test]
    fn a_guess_is_compared_token_by_token_up_to_the_first_wrong_one() {
        let mut drafter = Drafter::new(CONFIG, &[1, 2, 3, 4, 5, 6, 1, 2]);
        assert_eq!(drafter.guess().len(), 3);
        assert_eq!(drafter.draft(), [3, 4, 5]);
        let before = drafter.rates.clone();
        drafter.observe(3);
        drafter.observe(9);
        assert!(drafter.rates[0] > before[0] && drafter.rates[1] < before[1]);
        assert_eq!((drafter.rates[2], drafter.draft()), (before[2], &[][..]));
        drafter.observe(5);
        assert_eq!(drafter.lookup.tokens(), [1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 5]);
    }
}
