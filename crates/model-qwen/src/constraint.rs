//! Text that has to keep to a grammar: which tokens may come next.
//!
//! A [`ConstraintFactory`] compiles a [`Grammar`] to a [`Constraint`], with the `llguidance` crate. The constraint follows one
//! sequence: it says which tokens may come ([`Constraint::mask`]) and takes the one that came ([`Constraint::consume`]). The mask
//! of the next token is computed on another thread while the model computes its logits.
//!
//! Where the grammar accepts the text so far, the tokens that end a text may come, too. Where nothing else may come, only they
//! may. A constraint never panics and never hangs: what is too much for it is an error with a reason.

mod blame;
mod closed;
mod ebnf;
mod endless;
mod factory;
mod formats;
mod grammar;
mod grammar_error;
mod json_schema;
mod json_style;
mod keywords;
mod lark;
mod mask;
mod numbers;
mod one_of;
mod patterns;
mod places;
mod property_names;
mod references;
mod structural_tag;
mod subschemas;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;

pub use factory::ConstraintFactory;
pub use grammar::Grammar;
pub use grammar_error::GrammarError;
pub use json_style::JsonStyle;
pub use keywords::drop_null_keywords;
pub use mask::TokenMask;

/// What the next tokens of one sequence may be. A clone goes its own way from there.
#[derive(Debug)]
pub struct Constraint {
    state: Arc<Mutex<State>>,
    /// The token that ends the free text before the grammar, until it has come.
    after: Option<u32>,
    /// Tokens that end a text.
    ends: Arc<[u32]>,
    /// Whether a text may end where the grammar would let it go on.
    ends_early: bool,
    finished: bool,
    error: Option<String>,
}

/// The part that another thread may work on.
struct State {
    matcher: Matcher,
    /// The mask of the next token, once it is known.
    mask: Option<Result<Arc<TokenMask>, String>>,
    ends_early: bool,
    num_tokens: usize,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mask = self.mask.as_ref();
        f.debug_struct("State").field("mask", &mask).finish()
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        let state = lock(&self.state);
        let copy = State {
            matcher: state.matcher.deep_clone(),
            mask: state.mask.clone(),
            ..*state
        };
        Self {
            state: Arc::new(Mutex::new(copy)),
            ends: Arc::clone(&self.ends),
            error: self.error.clone(),
            ..*self
        }
    }
}

/// Computing a mask leaves nothing half done that the next one would need.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The mask of the next token; computes it if nobody has.
    fn mask(&mut self, ends: &[u32]) -> Result<Arc<TokenMask>, String> {
        if let Some(mask) = &self.mask {
            return mask.clone();
        }
        let mask = catch_unwind(AssertUnwindSafe(|| self.matcher.compute_mask_or_eos()));
        let mask = match mask {
            Ok(Ok(mask)) => {
                let ends = if self.ends_early { &[] } else { ends };
                let mask = TokenMask::without(mask.into(), self.num_tokens, ends);
                Ok(Arc::new(mask))
            }
            Ok(Err(error)) => Err(grammar_error::reason(&error)),
            Err(_) => Err("the mask could not be computed".to_owned()),
        };
        self.mask = Some(mask.clone());
        mask
    }
}

impl Constraint {
    /// A constraint whose first token comes after `after`, or at once.
    fn new(
        matcher: Matcher,
        num_tokens: usize,
        ends: Arc<[u32]>,
        after: Option<u32>,
    ) -> Result<Self, GrammarError> {
        let mut state = State {
            matcher,
            mask: None,
            ends_early: true,
            num_tokens,
        };
        let mask = state.mask(&ends).map_err(GrammarError::Invalid)?;
        let is_empty = mask.num_allowed() == 0;
        let finished = after.is_none() && is_empty && state.matcher.is_stopped();
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            after,
            ends,
            ends_early: true,
            finished,
            error: None,
        })
    }

    /// The same behind free text that the token `after` ends. Of use before the first token.
    #[must_use]
    pub fn after(self, after: Option<u32>) -> Self {
        Self { after, ..self }
    }

    /// The token that comes where `id` was drawn. A text is not complete without the grammar's part: what would end it within
    /// the free text before ends the free text.
    pub fn instead_of(&self, id: u32) -> u32 {
        let ends = self.ends.contains(&id);
        self.after.filter(|_| ends).unwrap_or(id)
    }

    /// The same for a text that goes on as long as its grammar lets it: the tokens that end a text may come only where no other
    /// token may. Of use before the first token.
    #[must_use]
    pub fn without_early_end(mut self) -> Self {
        self.ends_early = false;
        {
            let mut state = lock(&self.state);
            state.ends_early = false;
            state.mask = None;
        }
        self
    }

    /// Whether the next token is constrained.
    pub fn is_active(&self) -> bool {
        self.after.is_none() && !self.finished && self.error.is_none()
    }

    /// The tokens that may come next; `None` where every token may. Waits for the thread that computes it, or computes it.
    pub fn mask(&mut self) -> Option<Arc<TokenMask>> {
        if !self.is_active() {
            return None;
        }
        let mask = lock(&self.state).mask(&self.ends);
        match mask {
            Ok(mask) => Some(mask),
            Err(reason) => {
                self.error = Some(reason);
                None
            }
        }
    }

    /// Takes note of the token that has come, and lets another thread compute the mask of the next one.
    pub fn consume(&mut self, id: u32) {
        if self.finished || self.error.is_some() {
            return;
        }
        if let Some(token) = self.after {
            if id == token {
                self.after = None;
                self.begin_mask();
            }
            return;
        }
        if self.ends.contains(&id) {
            self.finished = true;
            return;
        }
        let mut state = lock(&self.state);
        state.mask = None;
        let consumed = catch_unwind(AssertUnwindSafe(|| state.matcher.consume_token(id)));
        let is_stopped = state.matcher.is_stopped();
        drop(state);
        match consumed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.error = Some(grammar_error::reason(&error)),
            Err(_) => self.error = Some(format!("token {id} could not be taken")),
        }
        // A model without such tokens ends where nothing may follow.
        self.finished = self.error.is_none() && is_stopped && self.ends.is_empty();
        self.begin_mask();
    }

    /// Whether the text may end here.
    pub fn may_stop(&mut self) -> bool {
        let mask = self.mask();
        let has_end = |mask: Arc<TokenMask>| self.ends.iter().any(|&id| mask.allows(id));
        self.finished || (self.after.is_none() && mask.is_none_or(has_end))
    }

    /// Whether the text is complete: a token has ended it, or nothing may follow and the model has no such token.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Why the sequence can't go on, if it can't: the grammar has become too complex, or no token fits it.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Computes the next mask on another thread, unless it is there.
    fn begin_mask(&self) {
        if !self.is_active() {
            return;
        }
        let (state, ends) = (Arc::clone(&self.state), Arc::clone(&self.ends));
        // Whoever needs the mask before a thread gets there computes it: nobody waits for a free thread.
        rayon::spawn(move || {
            // The error is found again by whoever asks for the mask.
            let _ = lock(&state).mask(&ends);
        });
    }
}
