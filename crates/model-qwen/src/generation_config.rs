//! `generation_config.json`: how a checkpoint wants to be sampled.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::chat_template::ChatTemplate;
use crate::end_tokens::end_tokens;
use crate::json_file::{JsonFile, JsonFileError, says_nothing, whole};
use crate::sampling::{SamplingError, SamplingParams};

use crate::tokenizer::Tokenizer;

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationConfigError {
    /// A file cannot be read, or a field has a value that this crate cannot honour.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// A sampling default is out of its range.
    #[error("{}: {source}", path.display())]
    Sampling {
        /// The file.
        path: PathBuf,
        /// Which parameter, and its range.
        source: SamplingError,
    },
}

/// What `generation_config.json` says; every sampling field is `None` where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a sequence, see [`end_tokens`].
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a sequence.
    pub bos_token_id: Option<u32>,
    /// Token that fills up a batch.
    pub pad_token_id: Option<u32>,
    /// `false` asks for greedy decoding.
    pub do_sample: Option<bool>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Keep the k most likely tokens; all with 0.
    pub top_k: Option<usize>,
    /// Keep the smallest set of tokens with this much probability.
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the most likely one's probability.
    pub min_p: Option<f32>,
    /// Penalty on tokens of prompt and output.
    pub repetition_penalty: Option<f32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads how the model in `dir` wants to be sampled, and which tokens end its answers: `generation_config.json`, or without
    /// such a file the same fields of `config.json`. Both files may be missing.
    ///
    /// # Errors
    /// When a file cannot be read, or a field has the wrong type, is out of range, or asks for what is not implemented.
    pub fn from_dir(
        dir: &Path,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, GenerationConfigError> {
        let path = dir.join("generation_config.json");
        let has_own_file = path.is_file();
        let generation = JsonFile::read_optional(path)?;
        let model = JsonFile::read_optional(dir.join("config.json"))?;
        let file = if has_own_file { &generation } else { &model };
        let fields = file.top();
        refuse_unsupported(file)?;
        let unknown: Vec<&str> = generation.names().filter(|key| !knows(key)).collect();
        if !unknown.is_empty() {
            tracing::warn!(
                "{}: unknown keys are not read: {}",
                generation.path().display(),
                unknown.join(", ")
            );
        }

        let single = |field| -> Result<Option<u32>, JsonFileError> {
            Ok(match generation.top().token_ids(field)?.first() {
                Some(&id) => Some(id),
                None => model.top().token_ids(field)?.first().copied(),
            })
        };
        let float = |field| -> Result<Option<f32>, JsonFileError> {
            Ok(fields.number(field)?.map(|number| number as f32))
        };
        let config = Self {
            bos_token_id: single("bos_token_id")?,
            pad_token_id: single("pad_token_id")?,
            eos_token_ids: end_tokens(dir, tokenizer, template)?,
            do_sample: fields.boolean("do_sample")?,
            temperature: float("temperature")?,
            top_k: fields.read("top_k", "-1 (off) or a whole number, 0 or more", as_top_k)?,
            top_p: float("top_p")?,
            min_p: float("min_p")?,
            repetition_penalty: float("repetition_penalty")?,
            max_new_tokens: fields.read("max_new_tokens", "a whole number, 0 or more", as_usize)?,
        };
        config.sampling_defaults().validate().map_err(|source| {
            GenerationConfigError::Sampling {
                path: file.path().to_owned(),
                source,
            }
        })?;
        Ok(config)
    }

    /// Sampling parameters with this file's defaults in place, as vLLM takes them (`--generation-config auto`), except that
    /// `do_sample: false` is greedy, as in transformers.
    pub fn sampling_defaults(&self) -> SamplingParams {
        let base = SamplingParams::default();
        let temperature = match self.do_sample {
            Some(false) => 0.0,
            _ => self.temperature.unwrap_or(base.temperature),
        };
        SamplingParams {
            temperature,
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            ..base
        }
    }
}

fn as_usize(value: &Value) -> Option<usize> {
    whole(value).and_then(|n| usize::try_from(n).ok())
}

/// -1 keeps all tokens, as 0 does.
fn as_top_k(value: &Value) -> Option<usize> {
    match whole(value) {
        Some(-1) => Some(0),
        _ => as_usize(value),
    }
}

/// Keys that [`GenerationConfig`] has.
const READ: [&str; 10] = [
    "bos_token_id",
    "do_sample",
    "eos_token_id",
    "max_new_tokens",
    "min_p",
    "pad_token_id",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
];

/// Keys that ask for what is not implemented, each with the number that asks for nothing; null, false and empty do as well.
const REFUSED: [(&str, f64); 29] = [
    ("bad_words_ids", 0.0),
    ("begin_suppress_tokens", 0.0),
    ("constraints", 0.0),
    ("diversity_penalty", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("force_words_ids", 0.0),
    ("forced_bos_token_id", -1.0),
    ("forced_eos_token_id", -1.0),
    ("guidance_scale", 1.0),
    ("max_time", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beam_groups", 1.0),
    ("num_beams", 1.0),
    ("num_return_sequences", 1.0),
    ("penalty_alpha", 0.0),
    ("sequence_bias", 0.0),
    ("stop_strings", 0.0),
    ("suppress_tokens", 0.0),
    ("token_healing", 0.0),
    ("top_h", 1.0),
    ("typical_p", 1.0),
    ("watermarking_config", 0.0),
];

/// Keys that change nothing here, for the reasons in docs/src/model-folders.md.
const HARMLESS: [&str; 35] = [
    "_commit_hash",
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "early_stopping",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_length",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "transformers_version",
    "use_cache",
    "use_mtp",
];

/// Whether the state of a key of `generation_config.json` is known.
pub(crate) fn knows(key: &str) -> bool {
    let is_refused = REFUSED.iter().any(|(refused, _)| *refused == key);
    is_refused || READ.contains(&key) || HARMLESS.contains(&key)
}

fn refuse_unsupported(file: &JsonFile) -> Result<(), JsonFileError> {
    let top = file.top();
    for (key, neutral) in REFUSED {
        let asks = |value: &&Value| match value.as_f64() {
            Some(number) => number != neutral,
            None => !says_nothing(value),
        };
        if let Some(value) = top.get(key).filter(asks) {
            let expected = "nothing: this is not implemented; remove it to go without";
            return Err(top.error(key, expected, value));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<GenerationConfig, String> {
        let bundled = crate::bundled_model_dir().unwrap();
        let tokenizer = Tokenizer::from_dir(&bundled).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        GenerationConfig::from_dir(dir.path(), &tokenizer, None).map_err(|e| e.to_string())
    }

    #[test]
    fn reads_lists_and_defaults() {
        let config = load(&[(
            "generation_config.json",
            r#"{"eos_token_id": [151645, 151643], "bos_token_id": 151643, "temperature": 0.7,
                "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1, "do_sample": true}"#,
        )])
        .unwrap();
        assert_eq!(config.eos_token_ids, [151645, 151643]);
        assert_eq!(config.bos_token_id, Some(151643));
        let sampling = config.sampling_defaults();
        assert_eq!(
            (sampling.temperature, sampling.top_p, sampling.top_k),
            (0.7, 0.8, 20)
        );
        assert_eq!(sampling.repetition_penalty, 1.1);
        assert_eq!(sampling.min_p, 0.0);
    }

    #[test]
    fn a_top_k_of_minus_one_is_off() {
        let config = load(&[("generation_config.json", r#"{"top_k": -1}"#)]).unwrap();
        assert_eq!(config.sampling_defaults().top_k, 0);
    }

    #[test]
    fn config_json_stands_in_for_a_missing_file() {
        let old = r#"{"eos_token_id": 7, "bos_token_id": null, "temperature": 0.25}"#;
        let config = load(&[("config.json", old)]).unwrap();
        assert_eq!(config.eos_token_ids, [7]);
        assert_eq!(config.bos_token_id, None);
        assert_eq!(config.temperature, Some(0.25));
        let both = [
            (
                "generation_config.json",
                r#"{"eos_token_id": 5, "top_k": 3.0}"#,
            ),
            ("config.json", old),
        ];
        let config = load(&both).unwrap();
        assert_eq!(config.eos_token_ids, [7, 5]);
        assert_eq!((config.temperature, config.top_k), (None, Some(3)));
        assert_eq!(load(&[]).unwrap(), GenerationConfig::default());
    }

    #[test]
    fn without_sampling_the_most_likely_token_is_taken() {
        let text = r#"{"do_sample": false, "temperature": 0.7}"#;
        let config = load(&[("generation_config.json", text)]).unwrap();
        assert_eq!(config.sampling_defaults().temperature, 0.0);
    }

    #[test]
    fn what_is_not_implemented_is_refused_unless_it_asks_for_nothing() {
        for (key, value) in [
            ("suppress_tokens", "[3]"),
            ("begin_suppress_tokens", "[3]"),
            ("no_repeat_ngram_size", "3"),
            ("min_new_tokens", "5"),
            ("num_beams", "4"),
            ("forced_bos_token_id", "0"),
            ("stop_strings", "\"END\""),
            ("bad_words_ids", "[[1, 2]]"),
            ("typical_p", "0.9"),
            ("guidance_scale", "1.5"),
        ] {
            let text = format!("{{\"{key}\": {value}}}");
            let message = load(&[("generation_config.json", &text)]).unwrap_err();
            assert!(message.contains(&format!("field `{key}`")), "{message}");
            assert!(message.contains("not implemented"), "{message}");
        }
        let neutral = r#"{"suppress_tokens": null, "num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0,
            "forced_eos_token_id": null, "bad_words_ids": [], "max_length": 20, "new_key": 1}"#;
        load(&[("generation_config.json", neutral)]).unwrap();
    }

    #[test]
    fn errors_name_file_and_field() {
        for (text, expected) in [
            (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
            (r#"{"top_k": 1.5}"#, "top_k"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"temperature": -1.0}"#, "temperature"),
            (r#"{"top_p": 2.0}"#, "top_p"),
            ("[1]", "JSON object"),
            ("{", "JSON object"),
        ] {
            let message = load(&[("generation_config.json", text)]).unwrap_err();
            assert!(message.contains("generation_config.json"), "{message}");
            assert!(message.contains(expected), "{message}");
        }
    }
}
