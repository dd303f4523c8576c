//! `generation_config.json`: when a checkpoint wants generation to stop, and how it wants to be
//! sampled.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::sampling::{SamplingError, SamplingParams};

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationConfigError {
    /// The file cannot be read or is not a JSON object.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field has another type than expected.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
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
    /// Tokens that end a sequence.
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
    /// Reads `generation_config.json` of a checkpoint folder. EOS, BOS and pad ids that it lacks
    /// come from `config.json`. Both files may be missing.
    ///
    /// # Errors
    /// When a file cannot be read, or a field has the wrong type or is out of range.
    pub fn from_dir(dir: &Path) -> Result<Self, GenerationConfigError> {
        let generation = Fields::read(dir.join("generation_config.json"))?;
        let model = Fields::read(dir.join("config.json"))?;

        let mut eos_token_ids = generation.token_ids("eos_token_id")?;
        if eos_token_ids.is_empty() {
            eos_token_ids = model.token_ids("eos_token_id")?;
        }
        let single = |field| -> Result<Option<u32>, GenerationConfigError> {
            Ok(match generation.token_ids(field)?.first() {
                Some(&id) => Some(id),
                None => model.token_ids(field)?.first().copied(),
            })
        };
        let config = Self {
            bos_token_id: single("bos_token_id")?,
            pad_token_id: single("pad_token_id")?,
            eos_token_ids,
            do_sample: generation.get("do_sample", "a boolean", Value::as_bool)?,
            temperature: generation.float("temperature")?,
            top_k: generation.get("top_k", "-1 (off) or a whole number, 0 or more", as_top_k)?,
            top_p: generation.float("top_p")?,
            min_p: generation.float("min_p")?,
            repetition_penalty: generation.float("repetition_penalty")?,
            max_new_tokens: generation.get(
                "max_new_tokens",
                "a whole number, 0 or more",
                as_usize,
            )?,
        };
        config.sampling_defaults().validate().map_err(|source| {
            GenerationConfigError::Sampling {
                path: generation.path,
                source,
            }
        })?;
        Ok(config)
    }

    /// Sampling parameters with this file's defaults in place, as vLLM takes them
    /// (`--generation-config auto`).
    pub fn sampling_defaults(&self) -> SamplingParams {
        let base = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            ..base
        }
    }
}

fn as_usize(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// -1 keeps all tokens, as 0 does.
fn as_top_k(value: &Value) -> Option<usize> {
    match value.as_i64() {
        Some(-1) => Some(0),
        _ => as_usize(value),
    }
}

fn as_token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| u32::try_from(n).ok())
}

/// The fields of one JSON file; none when the file is missing.
struct Fields {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Fields {
    fn read(path: PathBuf) -> Result<Self, GenerationConfigError> {
        if !path.exists() {
            let object = Map::new();
            return Ok(Self { path, object });
        }
        let parsed = std::fs::read(&path)
            .map_err(|e| format!("cannot be read: {e}"))
            .and_then(|bytes| {
                serde_json::from_slice(&bytes).map_err(|e| format!("expected a JSON object: {e}"))
            });
        match parsed {
            Ok(object) => Ok(Self { path, object }),
            Err(reason) => Err(GenerationConfigError::File { path, reason }),
        }
    }

    fn get<T>(
        &self,
        field: &'static str,
        expected: &'static str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, GenerationConfigError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(GenerationConfigError::Field {
                    path: self.path.clone(),
                    field,
                    expected,
                    found: value.to_string(),
                }),
            },
        }
    }

    fn float(&self, field: &'static str) -> Result<Option<f32>, GenerationConfigError> {
        self.get(field, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    /// One id or a list of ids.
    fn token_ids(&self, field: &'static str) -> Result<Vec<u32>, GenerationConfigError> {
        let ids = self.get(
            field,
            "a token id or a list of token ids",
            |value| match value {
                Value::Array(list) => list.iter().map(as_token_id).collect(),
                _ => as_token_id(value).map(|id| vec![id]),
            },
        )?;
        Ok(ids.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<GenerationConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        GenerationConfig::from_dir(dir.path()).map_err(|e| e.to_string())
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
    fn falls_back_to_config_json() {
        let config = load(&[
            ("generation_config.json", r#"{"temperature": 0.5}"#),
            (
                "config.json",
                r#"{"eos_token_id": 7, "bos_token_id": null}"#,
            ),
        ])
        .unwrap();
        assert_eq!(config.eos_token_ids, [7]);
        assert_eq!(config.bos_token_id, None);
        assert_eq!(load(&[]).unwrap(), GenerationConfig::default());
    }

    #[test]
    fn errors_name_file_and_field() {
        for (text, expected) in [
            (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
            (r#"{"eos_token_id": [1, -2]}"#, "eos_token_id"),
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
