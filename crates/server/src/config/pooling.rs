//! Whether the server generates text or computes embeddings and scores: vLLM's `--runner`, `--convert`, `--pooler-config` and what
//! `--hf-overrides` says of classifiers.

use clap::ValueEnum;
use model_qwen::{Architecture, PoolingType};
use serde_json::{Map, Value};

/// `--runner`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Runner {
    /// What the model's folder says.
    #[default]
    Auto,
    /// Text.
    Generate,
    /// Embeddings or scores.
    Pooling,
}

/// `--convert`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Convert {
    /// What the model's folder says.
    #[default]
    Auto,
    /// As the model is.
    None,
    /// Embeddings.
    Embed,
    /// Scores.
    Classify,
}

/// `--task`, the older form of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// What the model's folder says.
    Auto,
    /// Text.
    Generate,
    /// Embeddings.
    #[value(alias = "embedding")]
    Embed,
    /// Scores.
    #[value(alias = "score")]
    Classify,
}

/// How a pooling model is served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolingConfig {
    /// Text, or embeddings and scores.
    pub runner: Runner,
    /// Which of the latter.
    pub convert: Convert,
    /// How hidden states become one vector.
    pub pooler: PoolerConfig,
    /// `classifier_from_token`: the tokens whose logits are compared, the negative one first.
    pub classifier_from_token: Option<Vec<String>>,
    /// How a score comes from their logits.
    pub method: Option<ScoreMethod>,
}

/// `method`: how a score comes from the logits of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreMethod {
    /// `from_2_way_softmax`: the logit of the second less that of the first.
    Softmax,
    /// `no_post_processing`: the logit of the only one.
    Logit,
}

/// `--pooler-config`; what it leaves out is as the model's folder says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolerConfig {
    /// How hidden states are pooled.
    pub pooling_type: Option<PoolingType>,
    /// Whether embeddings have length 1, and scores are between 0 and 1.
    pub use_activation: Option<bool>,
    /// Length of embeddings.
    pub dimensions: Option<usize>,
    /// Longest text in tokens.
    pub max_embed_len: Option<usize>,
    /// What the model computes, [`Task::Embed`] or [`Task::Classify`].
    pub task: Option<Task>,
}

impl PoolerConfig {
    /// From the value of the flag.
    ///
    /// # Errors
    /// The key, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| format!("expected a JSON object: {error}"))?;
        let mut config = Self::default();
        for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            let wrong =
                |expected: &str| Err(format!("`{key}`: expected {expected}, found {value}"));
            let positive = || value.as_u64().filter(|&n| n > 0).map(|n| n as usize);
            match key.as_str() {
                "pooling_type" | "seq_pooling_type" => {
                    let name = value.as_str().unwrap_or_default().to_ascii_uppercase();
                    config.pooling_type = Some(match name.as_str() {
                        "LAST" => PoolingType::Last,
                        "MEAN" => PoolingType::Mean,
                        "CLS" => PoolingType::Cls,
                        _ => return wrong("\"LAST\", \"MEAN\" or \"CLS\""),
                    });
                }
                "use_activation" | "normalize" | "activation" | "softmax" => {
                    match value.as_bool() {
                        Some(on) => config.use_activation = Some(on),
                        None => return wrong("true or false"),
                    }
                }
                "dimensions" | "max_embed_len" => {
                    let Some(number) = positive() else {
                        return wrong("a positive number");
                    };
                    match key.as_str() {
                        "dimensions" => config.dimensions = Some(number),
                        _ => config.max_embed_len = Some(number),
                    }
                }
                "enable_chunked_processing" if value == &Value::Bool(false) => {}
                "enable_chunked_processing" => {
                    return wrong("false: a text is as long as the model's context at most");
                }
                "task" => {
                    config.task = Some(match value.as_str() {
                        Some("embed") => Task::Embed,
                        Some("classify") => Task::Classify,
                        _ => return wrong("\"embed\" or \"classify\""),
                    });
                }
                _ => {
                    return Err(format!(
                        "`{key}`: this key is not supported; expected pooling_type, use_activation (or normalize), \
                         dimensions, max_embed_len or task"
                    ));
                }
            }
        }
        Ok(config)
    }
}

/// What `--hf-overrides` may say: of pooling only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HfOverrides {
    architecture: Option<Architecture>,
    classifier_from_token: Option<Vec<String>>,
    method: Option<ScoreMethod>,
}

impl HfOverrides {
    /// From the value of the flag.
    ///
    /// # Errors
    /// The key, what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let object: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| format!("expected a JSON object: {error}"))?;
        let mut overrides = Self::default();
        for (key, value) in &object {
            let wrong =
                |expected: &str| Err(format!("`{key}`: expected {expected}, found {value}"));
            let texts = || -> Option<Vec<String>> {
                let texts = value.as_array()?.iter();
                texts.map(|text| text.as_str().map(str::to_owned)).collect()
            };
            match key.as_str() {
                "architectures" => match texts().as_deref() {
                    Some([class]) => overrides.architecture = Some(Architecture::of_class(class)),
                    _ => return wrong("a list of one class"),
                },
                "classifier_from_token" => match texts() {
                    Some(tokens) if matches!(tokens.len(), 1 | 2) => {
                        overrides.classifier_from_token = Some(tokens);
                    }
                    _ => return wrong("a list of one or two tokens, such as [\"no\", \"yes\"]"),
                },
                // The prompt and the arithmetic of Qwen3-Reranker are what a score from tokens has anyway.
                "is_original_qwen3_reranker" if value.is_boolean() => {}
                "is_matryoshka" if value.is_boolean() => {}
                "num_labels" if value == 1 => {}
                "num_labels" => return wrong("1"),
                "method" => {
                    overrides.method = Some(match value.as_str() {
                        Some("from_2_way_softmax") => ScoreMethod::Softmax,
                        Some("no_post_processing") => ScoreMethod::Logit,
                        _ => return wrong("\"from_2_way_softmax\" or \"no_post_processing\""),
                    });
                }
                _ => {
                    return Err(format!(
                        "`{key}`: write it into config.json; only architectures, classifier_from_token, \
                         is_original_qwen3_reranker, num_labels, method and is_matryoshka are read here"
                    ));
                }
            }
        }
        Ok(overrides)
    }
}

impl PoolingConfig {
    /// Joins the flags. `task` is read where neither of the others is given.
    ///
    /// # Errors
    /// The flag and the message, if two contradict each other.
    pub fn new(
        (runner, convert): (Runner, Convert),
        task: Option<Task>,
        pooler: Option<PoolerConfig>,
        overrides: Option<HfOverrides>,
    ) -> Result<Self, (&'static str, String)> {
        let (runner, convert) = match task {
            None | Some(Task::Auto) => (runner, convert),
            Some(_) if (runner, convert) != (Runner::Auto, Convert::Auto) => {
                let message = "is the older form of --runner and --convert: give one of the forms";
                return Err(("--task", message.to_owned()));
            }
            Some(Task::Generate) => (Runner::Generate, Convert::Auto),
            Some(Task::Embed) => (Runner::Pooling, Convert::Embed),
            Some(Task::Classify) => (Runner::Pooling, Convert::Classify),
        };
        let overrides = overrides.unwrap_or_default();
        let convert = match (convert, overrides.architecture) {
            (Convert::Auto, Some(Architecture::Classifier)) => Convert::Classify,
            (Convert::Auto, Some(Architecture::Base)) => Convert::Embed,
            _ => convert,
        };
        if runner == Runner::Generate {
            let asks = matches!(convert, Convert::Embed | Convert::Classify)
                || pooler.is_some()
                || overrides.classifier_from_token.is_some()
                || overrides.method.is_some();
            if asks {
                let message =
                    "generate: --convert, --pooler-config and a classifier are of --runner pooling";
                return Err(("--runner", message.to_owned()));
            }
        }
        Ok(Self {
            runner,
            convert,
            pooler: pooler.unwrap_or_default(),
            classifier_from_token: overrides.classifier_from_token,
            method: overrides.method,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_or_refused_by_name() {
        let config =
            PoolerConfig::parse(r#"{"pooling_type": "mean", "normalize": false, "dimensions": 8}"#);
        let expected = PoolerConfig {
            pooling_type: Some(PoolingType::Mean),
            use_activation: Some(false),
            dimensions: Some(8),
            max_embed_len: None,
            task: None,
        };
        assert_eq!(config, Ok(expected));
        for (text, key) in [
            (r#"{"pooling_type": "ALL"}"#, "pooling_type"),
            (r#"{"step_tag_id": 1}"#, "step_tag_id"),
            (r#"{"dimensions": 0}"#, "dimensions"),
            (r#"{"task": "token_embed"}"#, "task"),
            (
                r#"{"enable_chunked_processing": true}"#,
                "enable_chunked_processing",
            ),
        ] {
            assert!(
                PoolerConfig::parse(text).unwrap_err().contains(key),
                "{text}"
            );
        }
        let reranker = r#"{"architectures": ["Qwen3ForSequenceClassification"],
            "classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": true}"#;
        let overrides = HfOverrides::parse(reranker).unwrap();
        assert_eq!(overrides.architecture, Some(Architecture::Classifier));
        assert_eq!(HfOverrides::parse("{}"), Ok(HfOverrides::default()));
        let error = HfOverrides::parse(r#"{"rope_theta": 1e6}"#).unwrap_err();
        assert!(error.contains("write it into config.json"), "{error}");
    }

    #[test]
    fn the_older_flag_says_the_same() {
        let auto = (Runner::Auto, Convert::Auto);
        let config = PoolingConfig::new(auto, Some(Task::Embed), None, None).unwrap();
        assert_eq!(
            (config.runner, config.convert),
            (Runner::Pooling, Convert::Embed)
        );
        let pooling = (Runner::Pooling, Convert::Auto);
        let (flag, _) = PoolingConfig::new(pooling, Some(Task::Embed), None, None).unwrap_err();
        assert_eq!(flag, "--task");
        let generate = (Runner::Generate, Convert::Embed);
        assert!(PoolingConfig::new(generate, None, None, None).is_err());
        let text = (Runner::Generate, Convert::Auto);
        let overrides = HfOverrides::parse(r#"{"method": "no_post_processing"}"#).unwrap();
        assert!(PoolingConfig::new(text, None, None, Some(overrides)).is_err());
        assert!(HfOverrides::parse(r#"{"method": "other"}"#).is_err());
    }
}
