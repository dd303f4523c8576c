//! The object `options`.

use serde::Deserialize;

use crate::error::ApiError;
use crate::protocol::common::{SamplingFields, Texts};
use crate::protocol::sampling::MaxTokens;

/// Options that make a difference here.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Options {
    /// Softmax temperature, 0 = greedy.
    pub temperature: Option<f32>,
    /// 0 or below = off.
    pub top_k: Option<i64>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Least probability, as a fraction of the best token's.
    pub min_p: Option<f32>,
    /// Multiplicative penalty on tokens of prompt and answer.
    pub repeat_penalty: Option<f32>,
    /// How far back it looks.
    pub repeat_last_n: Option<i64>,
    /// Subtracted once from tokens of the answer.
    pub presence_penalty: Option<f32>,
    /// Subtracted per occurrence in the answer.
    pub frequency_penalty: Option<f32>,
    /// Of the random numbers.
    pub seed: Option<i64>,
    /// Most tokens to generate; below 1: no limit.
    pub num_predict: Option<i64>,
    /// Longest prompt plus answer.
    pub num_ctx: Option<usize>,
    /// Strings that end the text.
    pub stop: Option<Texts>,
}

impl Options {
    /// Checks what one field says of another.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if Texts::of(self.stop.as_ref()).iter().any(String::is_empty) {
            let message = "`stop` must not contain an empty string.";
            return Err(ApiError::bad_request("stop", message));
        }
        let penalizes = self.repeat_penalty.is_some_and(|penalty| penalty != 1.0);
        match self.repeat_last_n {
            Some(num) if penalizes && !matches!(num, 0 | -1) => Err(ApiError::expected(
                "repeat_last_n",
                "0 (no penalty) or -1 (the whole text)",
                &num.to_string(),
            )),
            Some(num) if self.repeat_penalty.is_none() && !matches!(num, 0 | -1) => {
                // Clients send Ollama's default. It is no error where no penalty is asked for.
                tracing::warn!(
                    num,
                    "ignored option repeat_last_n: a penalty of the model is one of the whole text"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Most tokens to generate.
    pub fn max_tokens(&self) -> MaxTokens {
        let num = self.num_predict.filter(|&num| num > 0);
        let num = num.and_then(|num| usize::try_from(num).ok());
        num.map_or(MaxTokens::Room, MaxTokens::AtMost)
    }

    /// Checks the length against the context.
    ///
    /// # Errors
    /// 400 if it is longer.
    pub fn check_length(&self, max_model_len: usize) -> Result<(), ApiError> {
        match self.num_ctx {
            Some(num) if num > max_model_len => Err(ApiError::expected(
                "options.num_ctx",
                &format!("at most {max_model_len} (--max-model-len)"),
                &num.to_string(),
            )),
            _ => Ok(()),
        }
    }

    /// The same in OpenAI's form.
    pub fn sampling(&self) -> SamplingFields {
        SamplingFields {
            temperature: self.temperature,
            top_k: self.top_k.map(|k| k.max(0)),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: match self.repeat_last_n {
                Some(0) => Some(1.0),
                _ => self.repeat_penalty,
            },
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            // As in Ollama, -1 is none.
            seed: self.seed.filter(|&seed| seed != -1),
            stop: self.stop.clone(),
            ..SamplingFields::default()
        }
        .with_top_p_of_zero()
    }
}
