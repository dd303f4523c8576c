//! From request fields to what the engine and the postprocessor take.

use model_qwen::{SamplingParams, Tokenizer};

use super::common::{SamplingFields, Texts};
use crate::error::ApiError;
use crate::state::AppState;

/// How many tokens an answer may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxTokens {
    /// As many as the context has room for.
    #[default]
    Room,
    /// So many; the context must have room for them.
    Exactly(usize),
    /// So many, or fewer where the context has less room.
    AtMost(usize),
}

impl MaxTokens {
    /// A field that is an error where the context has less room.
    pub fn of(field: Option<usize>) -> Self {
        field.map_or(Self::Room, Self::Exactly)
    }

    /// The number for which the context must have room.
    pub fn exact(self) -> Option<usize> {
        match self {
            Self::Exactly(num) => Some(num),
            Self::Room | Self::AtMost(_) => None,
        }
    }
}

/// How the text of a sequence ends and how it is shown.
#[derive(Clone, Debug, Default)]
pub struct TextOptions {
    /// Stop strings, none empty.
    pub stop: Vec<String>,
    /// Stop strings that are special tokens, which the text doesn't show.
    pub special_stops: Vec<(u32, String)>,
    /// Stop tokens of the request and, unless `ignore_eos`, of the model.
    pub stop_token_ids: Vec<u32>,
    /// The model's end-of-sequence ids among them; they are not reported as `stop_reason`.
    pub eos_token_ids: Vec<u32>,
    /// Keep the stop string (or token).
    pub include_stop: bool,
    /// Leave out special tokens.
    pub skip_special_tokens: bool,
    /// Special tokens that stay, with their texts: the tags of an answer's parts.
    pub kept_special: Vec<(u32, String)>,
    /// Tokens before a stop string counts.
    pub min_tokens: usize,
    /// The field of the grammar that the text keeps to.
    pub grammar_param: Option<String>,
}

impl TextOptions {
    /// The same for a text that the grammar of a field ends with one of `ends`, whatever the request says of these.
    #[must_use]
    pub(crate) fn constrained(mut self, param: String, ends: &[u32]) -> Self {
        self.grammar_param = Some(param);
        self.eos_token_ids = ends.to_vec();
        self.stop_token_ids.extend(ends);
        self.stop_token_ids.sort_unstable();
        self.stop_token_ids.dedup();
        self
    }
}

impl SamplingFields {
    /// Sampling parameters: the request's over the model's defaults, which are its `generation_config.json` over
    /// vLLM's.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn sampling_params(
        &self,
        state: &AppState,
        logprobs: Option<usize>,
    ) -> Result<SamplingParams, ApiError> {
        let defaults = state.model().generation_config.sampling_defaults();
        let vocab_size = state.engine().vocab_size();
        let top_k = match self.top_k {
            None => defaults.top_k,
            Some(-1 | 0) => 0,
            Some(k) => usize::try_from(k).map_err(|_| {
                ApiError::bad_request(
                    "top_k",
                    format!("`top_k` must be -1 (off), 0 (off) or positive, found {k}."),
                )
            })?,
        };
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            penalty_window: self.penalty_window,
            logit_bias: self.logit_bias(vocab_size)?,
            allowed_token_ids: self.allowed_token_ids.clone(),
            bad_words: self.bad_words(&state.model().tokenizer)?,
            // As in vLLM, -1 is no seed.
            seed: self.seed.filter(|seed| *seed != -1).map(i64::cast_unsigned),
            logprobs,
            logprobs_mode: state.api().logprobs_mode,
            thinking_budget: None,
        };
        params
            .validate_for_vocab(vocab_size)
            .map_err(|error| ApiError::bad_request(error.param, error.to_string()))?;
        Ok(params)
    }

    /// Tokens of each bad word at the beginning of a text, and after a space. vLLM leaves the second form out where it has another
    /// number of tokens, and so lets most words through.
    fn bad_words(&self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
        let mut words = Vec::new();
        let given = Texts::of(self.bad_words.as_ref());
        for (i, word) in given.iter().enumerate() {
            let param = format!("bad_words[{i}]");
            let encode = |text: &str| {
                let encoded = tokenizer.encode(text, false);
                encoded.map_err(|error| ApiError::bad_request(&param, error.to_string()))
            };
            let word = word.trim_start();
            let (bare, spaced) = (encode(word)?, encode(&format!(" {word}"))?);
            if bare.is_empty() {
                let message = format!("`{param}` must not be empty.");
                return Err(ApiError::bad_request(&param, message));
            }
            let is_another = !spaced.ends_with(&bare);
            words.push(bare);
            words.extend(is_another.then_some(spaced));
        }
        Ok(words)
    }

    fn logit_bias(&self, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let entries = self.logit_bias.iter().flatten();
        entries
            .map(|(token, &bias)| {
                let param = || format!("logit_bias.{token}");
                let id = token
                    .parse::<u32>()
                    .ok()
                    .filter(|&id| (id as usize) < vocab_size)
                    .ok_or_else(|| {
                        ApiError::bad_request(
                            param(),
                            format!(
                                "`logit_bias`: `{token}` is not a token id below {vocab_size}."
                            ),
                        )
                    })?;
                if !bias.is_finite() {
                    return Err(ApiError::bad_request(
                        param(),
                        "`logit_bias`: the number is out of range.",
                    ));
                }
                Ok((id, bias.clamp(-100.0, 100.0)))
            })
            .collect()
    }

    /// How the text ends.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn text_options(&self, state: &AppState) -> Result<TextOptions, ApiError> {
        let vocab_size = state.engine().vocab_size();
        let requested = self.stop_token_ids.clone().unwrap_or_default();
        if let Some(i) = requested.iter().position(|&id| id as usize >= vocab_size) {
            let message = format!(
                "`stop_token_ids`: {} is not a token id below {vocab_size}.",
                requested[i]
            );
            return Err(ApiError::bad_request(
                format!("stop_token_ids[{i}]"),
                message,
            ));
        }
        let eos_token_ids = match self.ignore_eos {
            Some(true) => Vec::new(),
            _ => state.model().generation_config.eos_token_ids.clone(),
        };
        let mut stop_token_ids = requested;
        stop_token_ids.extend(&eos_token_ids);
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        let (skips, tokenizer) = (
            self.skip_special_tokens.unwrap_or(true),
            &state.model().tokenizer,
        );
        let stop = self.stop_strings();
        let special = stop.iter().filter_map(|text| {
            let id = tokenizer.token_to_id(text)?;
            (skips && tokenizer.is_special(id)).then(|| (id, text.clone()))
        });
        Ok(TextOptions {
            special_stops: special.collect(),
            stop,
            stop_token_ids,
            eos_token_ids,
            include_stop: self.include_stop_str_in_output.unwrap_or(false),
            skip_special_tokens: skips,
            kept_special: Vec::new(),
            min_tokens: self.min_tokens.unwrap_or(0),
            grammar_param: None,
        })
    }

    /// Checks the lengths and gives the number of tokens to generate.
    ///
    /// # Errors
    /// 400 that names both lengths if they exceed the context.
    pub fn max_tokens(
        &self,
        state: &AppState,
        prompt_len: usize,
        requested: MaxTokens,
        prompt_param: &str,
    ) -> Result<usize, ApiError> {
        let max_model_len = state.model().max_model_len;
        let too_long = |param: &str, rest: String| ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::bad_request(
                param,
                format!(
                    "This model's maximum context length is {max_model_len} tokens. However, {rest}"
                ),
            )
        };
        if prompt_len >= max_model_len {
            let rest = format!(
                "the prompt has {prompt_len} tokens, which leaves no room for the output. Please shorten it."
            );
            return Err(too_long(prompt_param, rest));
        }
        let room = max_model_len - prompt_len;
        let max_tokens = match requested {
            MaxTokens::Room => room,
            MaxTokens::Exactly(num) => num,
            MaxTokens::AtMost(num) => num.min(room),
        };
        if max_tokens > room {
            let rest = format!(
                "you requested {max_tokens} output tokens and the prompt has {prompt_len} tokens, {} in total. Please shorten the \
                 prompt or request at most {room} output tokens.",
                max_tokens.saturating_add(prompt_len)
            );
            return Err(too_long("max_tokens", rest));
        }
        // As in vLLM, the model's own limit holds for all requests.
        let limit = state.model().generation_config.max_new_tokens;
        let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let max_tokens = max_tokens.min(limit);
        match self.min_tokens {
            Some(min_tokens) if min_tokens > max_tokens => Err(ApiError::bad_request(
                "min_tokens",
                format!(
                    "`min_tokens` ({min_tokens}) must not exceed the {max_tokens} tokens that may be generated."
                ),
            )),
            _ => Ok(max_tokens),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_word_is_one_behind_a_space_too() {
        let dir = model_qwen::bundled_model_dir().unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap();
        let spaced = |word: &str| ids(&format!(" {word}"));
        let is_other = |word: &&str| spaced(word).len() < ids(word).len();
        let words = ["duck", "first", "people", "water", "because", "was", "very"];
        let word = words.into_iter().find(is_other).unwrap();
        let fields = SamplingFields {
            bad_words: Some(Texts::One(word.to_owned())),
            ..SamplingFields::default()
        };
        let banned = fields.bad_words(&tokenizer).unwrap();
        assert_eq!(banned, [ids(word), spaced(word)]);
    }
}
