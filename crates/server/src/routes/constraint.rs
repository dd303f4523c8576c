//! From the fields of a request to what the engine gets, and from its grammar to the constraint of its answers.

use std::fmt;

use model_qwen::{Constraint, GrammarError, SamplingParams};

use crate::blocking::blocking;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::grammars::Grammars;
use crate::protocol::call_grammar::unusable_tool;
use crate::protocol::common::SamplingFields;
use crate::protocol::grammar::RequestedGrammar;
use crate::protocol::sampling::TextOptions;
use crate::state::AppState;

/// What is prepared of a request, whose grammar may still have to be compiled.
pub(super) trait Constrained {
    /// Takes out the grammar that is not compiled yet, if there is one.
    fn take_grammar(&mut self) -> Option<Uncompiled>;

    /// The sequences that keep to the grammar.
    fn sequences(&mut self) -> &mut [GenerateRequest];

    /// Gives all sequences their constraint.
    fn constrain(&mut self, constraint: &Constraint) {
        for sequence in self.sequences() {
            sequence.constraint = Some(constraint.clone());
        }
    }
}

/// What is shown of a request beside what is generated.
impl<S, T: Constrained> Constrained for (S, T) {
    fn take_grammar(&mut self) -> Option<Uncompiled> {
        self.1.take_grammar()
    }

    fn sequences(&mut self) -> &mut [GenerateRequest] {
        self.1.sequences()
    }
}

/// A sequence of a request, still without a prompt and a length.
#[derive(Debug)]
pub(super) struct Sequence {
    /// What the engine gets.
    pub(super) request: GenerateRequest,
    /// How its text ends.
    pub(super) text: TextOptions,
    /// A grammar that is not compiled yet.
    pub(super) grammar: Option<Uncompiled>,
}

/// What an answer has to keep to, and from where on.
#[derive(Debug)]
pub(super) struct PlacedGrammar {
    pub(super) grammar: RequestedGrammar,
    /// Nothing is constrained until this token has come.
    pub(super) after_token: Option<u32>,
}

impl PlacedGrammar {
    /// A grammar of the whole answer.
    pub(super) fn at_start(grammar: RequestedGrammar) -> Self {
        Self {
            grammar,
            after_token: None,
        }
    }
}

/// A grammar that takes its turn to be compiled.
pub(super) struct Uncompiled {
    asked: RequestedGrammar,
    place: Place,
    rename: Box<dyn FnOnce(ApiError) -> ApiError + Send>,
}

/// Where a text is constrained.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Nothing is, until this token has come.
    after: Option<u32>,
    /// The text ends only where nothing may follow.
    without_early_end: bool,
}

impl fmt::Debug for Uncompiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, place, .. } = self;
        f.debug_struct("Uncompiled")
            .field("asked", asked)
            .field("place", place)
            .finish_non_exhaustive()
    }
}

impl Uncompiled {
    /// The same with errors that name fields as an endpoint does.
    #[must_use]
    pub(super) fn renamed(
        self,
        rename: impl FnOnce(ApiError) -> ApiError + Send + 'static,
    ) -> Self {
        let inner = self.rename;
        Self {
            rename: Box::new(move |error| rename(inner(error))),
            ..self
        }
    }

    /// Compiles it, once it may.
    ///
    /// # Errors
    /// 400 with the grammar's field.
    pub(super) async fn compile(self, state: &AppState) -> Result<Constraint, ApiError> {
        let turn = state.compile_turn().await;
        let state = state.clone();
        blocking(move || {
            let grammars = state.grammars();
            let compiled = grammars.compile(&self.asked.grammar);
            let constraint =
                compiled.map_err(|error| (self.rename)(refusal(grammars, &self.asked, &error)))?;
            drop(turn);
            Ok(self.place.of(constraint))
        })
        .await
    }
}

impl Place {
    fn of(self, constraint: Constraint) -> Constraint {
        let constraint = constraint.after(self.after);
        match self.without_early_end {
            true => constraint.without_early_end(),
            false => constraint,
        }
    }
}

/// 400 with the field whose fault it is.
fn refusal(grammars: &Grammars, asked: &RequestedGrammar, error: &GrammarError) -> ApiError {
    let check = |grammar: &_| grammars.check(grammar);
    unusable_tool(&asked.tools, check).unwrap_or_else(|| asked.refusal(error))
}

/// A sequence of a request.
pub(super) fn sequence(
    state: &AppState,
    placed: Option<PlacedGrammar>,
    sampling: &SamplingFields,
    params: SamplingParams,
    adapter: Option<String>,
    text: TextOptions,
) -> Sequence {
    let stop_token_ids = text.stop_token_ids.clone();
    let mut sequence = Sequence {
        request: GenerateRequest {
            prompt: Vec::new(),
            sampling: params,
            constraint: None,
            max_tokens: 1,
            min_tokens: text.min_tokens,
            stop_token_ids,
            adapter,
            cache_salt: sampling.cache_salt.clone(),
            prompt_logprobs: sampling.prompt_logprobs(),
        },
        text,
        grammar: None,
    };
    let Some(PlacedGrammar {
        grammar: asked,
        after_token,
    }) = placed
    else {
        return sequence;
    };
    let place = Place {
        after: after_token,
        without_early_end: sampling.ignore_eos == Some(true),
    };
    let ends = &state.model().generation_config.eos_token_ids;
    sequence.text = sequence.text.constrained(asked.param.clone(), ends);
    match state.grammars().find(&asked.grammar) {
        Some(constraint) => sequence.request.constraint = Some(place.of(constraint)),
        None => {
            sequence.grammar = Some(Uncompiled {
                asked,
                place,
                rename: Box::new(|error| error),
            });
        }
    }
    sequence
}
