//! Compiled grammars, each one kept for the next request that brings it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use model_qwen::{Constraint, ConstraintFactory, Grammar, GrammarError, Tokenizer};

use crate::engine::ModelInfo;

/// Compiled grammars that are kept: each has the states that its texts have needed so far.
const MAX_KEPT: usize = 32;
/// Bytes of their sources, together.
const MAX_KEPT_BYTES: usize = 1 << 20;

/// Compiles grammars for one model.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    vocab_size: usize,
    ends: Vec<u32>,
    /// Made for the first grammar: it takes half a second and some memory.
    factory: OnceLock<Result<ConstraintFactory, GrammarError>>,
    kept: Mutex<Kept>,
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
        }
    }

    /// A constraint of a new text, if the grammar is kept.
    pub(crate) fn find(&self, grammar: &Grammar) -> Option<Constraint> {
        self.kept().take(&source(grammar))
    }

    /// A constraint of a new text. It may take a while.
    ///
    /// # Errors
    /// As [`ConstraintFactory::compile`].
    pub(crate) fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        if let Some(constraint) = self.find(grammar) {
            return Ok(constraint);
        }
        let constraint = self.factory()?.compile(grammar, None)?;
        self.kept().put(source(grammar), &constraint);
        Ok(constraint)
    }

    /// Whether a grammar can be used. Nothing of it is kept.
    ///
    /// # Errors
    /// As [`ConstraintFactory::compile`].
    pub(crate) fn check(&self, grammar: &Grammar) -> Result<(), GrammarError> {
        self.factory()?.compile(grammar, None).map(drop)
    }

    fn factory(&self) -> Result<&ConstraintFactory, GrammarError> {
        let factory = self
            .factory
            .get_or_init(|| ConstraintFactory::new(&self.tokenizer, self.vocab_size, &self.ends));
        factory.as_ref().map_err(Clone::clone)
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

/// By which a grammar is found. Unlike `==` it knows the order of a schema's properties.
fn source(grammar: &Grammar) -> String {
    format!("{grammar:?}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_is_kept_and_what_is_checked_is_not() {
        let dir = model_qwen::bundled_model_dir().unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let grammars = Grammars {
            vocab_size: tokenizer.vocab_size(),
            ends: vec![tokenizer.token_to_id("<|im_end|>").unwrap()],
            tokenizer,
            factory: OnceLock::new(),
            kept: Mutex::default(),
        };
        let yes = Grammar::Choice(vec!["yes".to_owned()]);
        assert!(grammars.check(&yes).is_ok());
        assert!(grammars.check(&Grammar::Regex("(".to_owned())).is_err());
        assert!(grammars.find(&yes).is_none());
        assert!(grammars.compile(&yes).is_ok());
        assert!(grammars.find(&yes).is_some());
        for num in 0..MAX_KEPT {
            grammars
                .compile(&Grammar::Choice(vec![num.to_string()]))
                .unwrap();
        }
        assert!(grammars.find(&yes).is_none());
        assert_eq!(grammars.kept().grammars.len(), MAX_KEPT);
    }
}
