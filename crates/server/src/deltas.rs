//! The outputs of one sequence as text.

use serde_json::Value;

use crate::engine::{EngineOutput, FinishReason, OutputStream, SequenceError};
use crate::postprocess::{Delta, Finish, Postprocessor};

/// One sequence's text as it grows. Dropping it before its end aborts the sequence.
#[derive(Debug)]
pub struct Deltas {
    /// `None` once the last delta was given.
    outputs: Option<OutputStream>,
    text: Postprocessor,
    prompt_only: bool,
    num_cached_tokens: usize,
}

impl Deltas {
    /// The text of `outputs`.
    pub fn new(outputs: OutputStream, text: Postprocessor) -> Self {
        Self {
            outputs: Some(outputs),
            text,
            prompt_only: false,
            num_cached_tokens: 0,
        }
    }

    /// The same without the generated tokens, of a sequence that is submitted for what it says of its prompt.
    pub fn of_prompt(outputs: OutputStream, text: Postprocessor) -> Self {
        Self {
            prompt_only: true,
            ..Self::new(outputs, text)
        }
    }

    /// The next delta, `None` after the one with `finish` or after an error. `on_token` is called for each token on the way.
    ///
    /// # Errors
    /// [`SequenceError`] if the engine does not finish the sequence.
    pub async fn next(
        &mut self,
        mut on_token: impl FnMut(),
    ) -> Option<Result<Delta, SequenceError>> {
        loop {
            let delta = match self.outputs.as_mut()?.next().await {
                Some(EngineOutput::PromptLogprobs(logprobs)) => Delta {
                    prompt_logprobs: Some(logprobs),
                    ..Delta::default()
                },
                Some(EngineOutput::Token {
                    id,
                    logprobs,
                    num_cached_tokens,
                }) => {
                    self.num_cached_tokens = num_cached_tokens;
                    on_token();
                    match self.prompt_only {
                        true => continue,
                        false => match self.text.push(id, logprobs) {
                            Some(delta) => delta,
                            None => continue,
                        },
                    }
                }
                // Of sequences that want no text.
                Some(EngineOutput::Pooled { .. }) => continue,
                Some(EngineOutput::Finished { .. }) if self.prompt_only => Delta {
                    finish: Some(Finish {
                        reason: FinishReason::Length,
                        stop_reason: Value::Null,
                    }),
                    ..Delta::default()
                },
                Some(EngineOutput::Finished { reason }) => self.text.finish(reason),
                Some(EngineOutput::Failed(error)) => return Some(self.fail(error)),
                None => return Some(self.fail(SequenceError::Stopped)),
            };
            if delta.finish.is_some()
                && let Some(outputs) = self.outputs.take()
            {
                outputs.complete();
            }
            return Some(Ok(Delta {
                num_tokens: self.text.num_tokens(),
                num_cached_tokens: self.num_cached_tokens,
                ..delta
            }));
        }
    }

    fn fail(&mut self, error: SequenceError) -> Result<Delta, SequenceError> {
        self.outputs = None;
        Err(error)
    }
}
