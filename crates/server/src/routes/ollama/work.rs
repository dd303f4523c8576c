//! What `/api/chat` and `/api/generate` are asked for.

use std::time::Instant;

use super::super::constraint::{Constrained, Uncompiled};
use super::super::conversation::{Conversation, PreparedChat};
use super::super::reasoning::model_has_reasoning;
use super::names::{model_name, renamed};
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::protocol::logprobs::LogprobLimit;
use crate::protocol::ollama::{Request, Think};
use crate::state::AppState;

/// A request, and what is generated for it, if anything is.
pub(super) struct Work {
    pub(super) request: Request,
    /// The name the request used.
    pub(super) model: String,
    pub(super) prepared: Option<PreparedChat>,
    pub(super) started: Instant,
}

impl Constrained for Work {
    fn take_grammar(&mut self) -> Option<Uncompiled> {
        self.prepared.as_mut()?.take_grammar()
    }

    fn sequences(&mut self) -> &mut [GenerateRequest] {
        let prepared = self.prepared.as_mut();
        prepared.map_or(&mut [], PreparedChat::sequences)
    }
}

impl Work {
    /// Checks a request, and prepares its conversation, if there is one.
    pub(super) fn new(
        state: &AppState,
        request: Request,
        conversation: Option<Conversation>,
        started: Instant,
    ) -> Result<Self, ApiError> {
        let model = request.fields.model.clone();
        let known = model_name(state, &model);
        state.resolve_model(Some(&known))?;
        request.options.check_length(state.model().max_model_len)?;
        let asks_to_think = match request.fields.think {
            None | Some(Think::Switch(false)) => false,
            Some(_) => request.shows_thinking(),
        };
        if asks_to_think && !model_has_reasoning(state) {
            let message = format!("`think`: the model `{model}` does not support thinking.");
            return Err(ApiError::bad_request("think", message));
        }
        let num_logprobs = request.num_logprobs(LogprobLimit::of(state))?;
        let sampling = request.options.sampling();
        if conversation.is_none() {
            // What is not generated yet is checked, too.
            let params = sampling.sampling_params(state, num_logprobs);
            params.map_err(renamed)?;
        }
        let prepare = |conversation| {
            let conversation = Conversation {
                model: Some(known),
                sampling,
                max_tokens: request.options.max_tokens(),
                num_logprobs,
                grammar: request.grammar(state.json_style()),
                ..conversation
            };
            let prepared = conversation.prepare(state).map_err(renamed);
            prepared.map(|prepared| prepared.renamed(renamed))
        };
        let prepared = conversation.map(prepare).transpose()?;
        Ok(Self {
            request,
            model,
            prepared,
            started,
        })
    }
}
