//! Compiled grammars, each one kept for the next request that brings it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use model_qwen::{Constraint, ConstraintFactory, Grammar, GrammarError, Tokenizer};

use crate::engine::ModelInfo;

/// Compiled grammars that are kept: each has the states that its texts have needed so far.
const MAX_KEPT: usize = 32;
/// Bytes of their sources, together.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Grammars that are compiled at once.
const MAX_COMPILING: usize = 4;

/// Compiles grammars for one model.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    vocab_size: usize,
    ends: Vec<u32>,
    /// Made for the first grammar: it takes half a second and some memory.
    factory: OnceLock<Result<ConstraintFactory, GrammarError>>,
    kept: Mutex<Kept>,
    turns: Turns,
}

/// Grammars by their source, the last one that was asked for at the end.
#[derive(Default)]
struct Kept {
    grammars: VecDeque<(String, Constraint)>,
    num_bytes: usize,
}

impl Grammars {
    /// Nothing compiled yet, for a model of so many logits.
    pub(crate) fn new(model: &ModelInfo, vocab_size: usize) -> Self {
        Self {
            tokenizer: model.tokenizer.clone(),
            vocab_size,
            ends: model.generation_config.eos_token_ids.clone(),
            factory: OnceLock::new(),
            kept: Mutex::default(),
            turns: Turns::new(MAX_COMPILING),
        }
    }

    /// A constraint of a new text. It may take a while, and waits while others are compiled.
    ///
    /// # Errors
    /// As [`ConstraintFactory::compile`].
    pub(crate) fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        // Unlike `==` it knows the order of a schema's properties.
        let source = format!("{grammar:?}");
        if let Some(constraint) = self.kept().take(&source) {
            return Ok(constraint);
        }
        let _turn = self.turns.take();
        // Another request may have brought it meanwhile.
        if let Some(constraint) = self.kept().take(&source) {
            return Ok(constraint);
        }
        let factory = self
            .factory
            .get_or_init(|| ConstraintFactory::new(&self.tokenizer, self.vocab_size, &self.ends));
        let constraint = factory
            .as_ref()
            .map_err(Clone::clone)?
            .compile(grammar, None)?;
        self.kept().put(source, &constraint);
        Ok(constraint)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn take(&mut self, source: &str) -> Option<Constraint> {
        let place = self.grammars.iter().position(|(kept, _)| kept == source)?;
        let found = self.grammars.remove(place)?;
        let constraint = found.1.clone();
        self.grammars.push_back(found);
        Some(constraint)
    }

    fn put(&mut self, source: String, constraint: &Constraint) {
        if source.len() > MAX_KEPT_BYTES || self.grammars.iter().any(|(kept, _)| *kept == source) {
            return;
        }
        self.num_bytes += source.len();
        self.grammars.push_back((source, constraint.clone()));
        while self.grammars.len() > MAX_KEPT || self.num_bytes > MAX_KEPT_BYTES {
            let Some((oldest, _)) = self.grammars.pop_front() else {
                return;
            };
            self.num_bytes -= oldest.len();
        }
    }
}

/// Who may compile now.
struct Turns {
    num_free: Mutex<usize>,
    freed: Condvar,
}

/// A turn, until it is dropped.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn new(num: usize) -> Self {
        Self {
            num_free: Mutex::new(num),
            freed: Condvar::new(),
        }
    }

    /// Waits for a turn.
    fn take(&self) -> Turn<'_> {
        let num_free = self.num_free();
        let num_free = self.freed.wait_while(num_free, |num_free| *num_free == 0);
        *num_free.unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn(self)
    }

    fn num_free(&self) -> MutexGuard<'_, usize> {
        self.num_free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.num_free() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_grammar_waits_while_as_many_as_may_are_compiled() {
        let dir = model_qwen::bundled_model_dir().unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let grammars = Grammars {
            vocab_size: tokenizer.vocab_size(),
            ends: vec![tokenizer.token_to_id("<|im_end|>").unwrap()],
            tokenizer,
            factory: OnceLock::new(),
            kept: Mutex::default(),
            turns: Turns::new(MAX_COMPILING),
        };
        let yes = Grammar::Choice(vec!["yes".to_owned()]);
        let mut turns: Vec<Turn<'_>> = (0..MAX_COMPILING).map(|_| grammars.turns.take()).collect();
        let (sender, compiled) = channel();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| sender.send(grammars.compile(&yes)).unwrap());
            }
            let none = compiled.recv_timeout(Duration::from_millis(200));
            assert_eq!(none.unwrap_err(), RecvTimeoutError::Timeout);
            turns.pop();
            for _ in 0..2 {
                let constraint = compiled.recv_timeout(Duration::from_secs(30)).unwrap();
                assert!(constraint.is_ok());
            }
            // One that is kept needs no turn.
            let last = grammars.turns.take();
            assert!(grammars.compile(&yes).is_ok());
            drop(last);
        });
        assert_eq!(grammars.kept().grammars.len(), 1);
        drop(turns);
        assert_eq!(*grammars.turns.num_free(), MAX_COMPILING);
    }
}
