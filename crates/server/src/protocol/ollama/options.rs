//! The object `options`.

use serde::Deserialize;

use crate::error::ApiError;
use crate::protocol::common::{SamplingFields, Texts};
use crate::protocol::sampling::MaxTokens;

/// `repeat_last_n` where a request has none, as in Ollama.
const REPEAT_LAST_N: i64 = 64;

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
    /// At how many of the last tokens the penalties look; 0 turns them off, -1 is all.
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
        match self.repeat_last_n {
            Some(num) if num < -1 => Err(ApiError::expected(
                "repeat_last_n",
                "a number of tokens, 0 (no penalty) or -1 (the whole text)",
                &num.to_string(),
            )),
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
        let window = self.repeat_last_n.unwrap_or(REPEAT_LAST_N);
        let unless_off = |penalty: Option<f32>, none: f32| match window {
            0 => Some(none),
            _ => penalty,
        };
        SamplingFields {
            temperature: self.temperature,
            top_k: self.top_k.map(|k| k.max(0)),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: unless_off(self.repeat_penalty, 1.0),
            presence_penalty: unless_off(self.presence_penalty, 0.0),
            frequency_penalty: unless_off(self.frequency_penalty, 0.0),
            // -1 is none.
            penalty_window: usize::try_from(window).ok(),
            // As in Ollama, -1 is none.
            seed: self.seed.filter(|&seed| seed != -1),
            stop: self.stop.clone(),
            ..SamplingFields::default()
        }
        .with_top_p_of_zero()
    }
}
