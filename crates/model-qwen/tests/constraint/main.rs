//! Which tokens a grammar lets through, with the tokenizer of the bundled model.
#![allow(clippy::unwrap_used)]

mod grammars;
mod refusals;
mod schemas;
mod tags;

use std::sync::{Arc, LazyLock};

use model_qwen::{Constraint, ConstraintFactory, Grammar, TokenMask, Tokenizer, end_tokens};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::Value;

pub(crate) static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let dir = model_qwen::bundled_model_dir().unwrap();
    Tokenizer::from_dir(&dir).unwrap()
});

/// The tokens that end a text of the bundled model.
pub(crate) static ENDS: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let dir = model_qwen::bundled_model_dir().unwrap();
    end_tokens(&dir, &TOKENIZER, None).unwrap()
});

/// More logits than the tokenizer has tokens.
pub(crate) fn vocab_size() -> usize {
    TOKENIZER.vocab_size() + 50
}

pub(crate) static FACTORY: LazyLock<ConstraintFactory> =
    LazyLock::new(|| ConstraintFactory::new(&TOKENIZER, vocab_size(), &ENDS).unwrap());

pub(crate) fn compiled(grammar: &Grammar) -> Constraint {
    let compiled = FACTORY.compile(grammar, None);
    compiled.unwrap_or_else(|error| panic!("{grammar:?}: {error}"))
}

/// Whether nothing but a token that ends the text may come.
pub(crate) fn must_stop(constraint: &mut Constraint) -> bool {
    let only_ends = |mask: Arc<TokenMask>| mask.ids().all(|id| ENDS.contains(&id));
    constraint.mask().is_some_and(only_ends)
}

/// A text of tokens drawn evenly from those that may come, and whether it came to its end.
pub(crate) fn random_text(
    mut constraint: Constraint,
    seed: u64,
    max_tokens: usize,
) -> (String, bool) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut ids = Vec::new();
    while ids.len() < max_tokens && !constraint.is_finished() {
        let mask = constraint
            .mask()
            .unwrap_or_else(|| panic!("{:?}", constraint.error()));
        // Early ends, so that there are some.
        let end = ENDS.iter().copied().find(|id| mask.allows(*id));
        let id = match end {
            Some(end) if rng.next_u64().is_multiple_of(4) => end,
            _ => {
                let place = rng.next_u64() as usize % mask.num_allowed();
                mask.ids().nth(place).unwrap()
            }
        };
        constraint.consume(id);
        assert_eq!(constraint.error(), None, "{ids:?} {id}");
        ids.push(id);
    }
    let finished = constraint.is_finished();
    if finished && !ENDS.is_empty() {
        let last = ids.pop().unwrap();
        assert!(ENDS.contains(&last));
    }
    (TOKENIZER.decode(&ids, false).unwrap(), finished)
}

/// Whether a whole text fits a grammar, token by token.
pub(crate) fn accepts(grammar: &Grammar, text: &str) -> bool {
    let mut constraint = compiled(grammar);
    for id in TOKENIZER.encode(text, false).unwrap() {
        if !constraint.mask().is_some_and(|mask| mask.allows(id)) {
            return false;
        }
        constraint.consume(id);
    }
    constraint.may_stop()
}

/// Checks which texts fit a grammar.
#[track_caller]
pub(crate) fn check(grammar: &Grammar, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(accepts(grammar, text), "{grammar:?} refuses {text:?}");
    }
    for text in bad {
        assert!(!accepts(grammar, text), "{grammar:?} accepts {text:?}");
    }
    for seed in 0..5 {
        let (text, finished) = random_text(compiled(grammar), seed, 200);
        assert!(
            !finished || accepts(grammar, &text),
            "{grammar:?}: {text:?}"
        );
    }
}

pub(crate) fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}
