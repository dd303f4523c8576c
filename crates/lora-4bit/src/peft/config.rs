//! `adapter_config.json`.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::pattern::{Pattern, PatternMap};

/// The word that stands for every linear layer except the output head.
pub(super) const ALL_LINEAR: &str = "all-linear";

/// Which modules an adapter changes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// Modules of these names, or with names that end in a dot and one of these.
    List(Vec<String>),
    /// `all-linear`, or a regular expression for the whole name.
    Pattern(String),
}

impl Default for TargetModules {
    fn default() -> Self {
        Self::Pattern(ALL_LINEAR.to_owned())
    }
}

impl TargetModules {
    fn to_json(&self) -> Value {
        match self {
            Self::List(names) => json!(names),
            Self::Pattern(pattern) => json!(pattern),
        }
    }
}

/// The layers to which an adapter is restricted.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    /// A single value.
    One(T),
    /// A list of values.
    Many(Vec<T>),
}

impl<T: serde::Serialize> OneOrMany<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::One(value) => json!(value),
            Self::Many(values) => json!(values),
        }
    }
}

/// The hyperparameters of a LoRA adapter: what PEFT keeps in `adapter_config.json`.
///
/// Fields that are missing from a file take PEFT's defaults. A warning names unknown ones.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Rank of the update, for modules that `rank_pattern` does not name.
    pub r: usize,
    /// Numerator of the scaling, for modules that `alpha_pattern` does not name.
    pub lora_alpha: f64,
    /// Probability of dropping an input of the adapter in training.
    pub lora_dropout: f64,
    /// The modules that have an adapter.
    #[serde(deserialize_with = "null_as_default")]
    pub target_modules: TargetModules,
    /// Modules that have none, although `target_modules` names them.
    pub exclude_modules: Option<TargetModules>,
    /// Layers to which a list of `target_modules` is restricted.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// What precedes the number of a layer in a module's name, for `layers_to_transform`.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Ranks of single modules, by pattern; the first that matches counts.
    pub rank_pattern: PatternMap<usize>,
    /// Alphas of single modules, by pattern; the first that matches counts.
    pub alpha_pattern: PatternMap<f64>,
    /// Rank-stabilized scaling: `alpha / sqrt(r)` instead of `alpha / r` (<https://arxiv.org/abs/2312.03732>).
    pub use_rslora: bool,
    /// DoRA: each row of `W + s B A` is given a length that is trained (<https://arxiv.org/abs/2402.09353>).
    pub use_dora: bool,
    /// Modules whose whole weight the adapter brings: `embed_tokens`, `lm_head`. A file may call them otherwise and more than once;
    /// what is read has each of them once, by these names.
    pub modules_to_save: Vec<String>,
    /// Whether an embedding that is also the head stays both, where one of them is saved.
    pub ensure_weight_tying: bool,
    /// Name or path of the model the adapter was trained on.
    pub base_model_name_or_path: Option<String>,
    /// Revision of that model.
    pub revision: Option<String>,
    /// What the model is for, `CAUSAL_LM`.
    pub task_type: Option<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: TargetModules::default(),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: PatternMap::default(),
            alpha_pattern: PatternMap::default(),
            use_rslora: false,
            use_dora: false,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            base_model_name_or_path: None,
            revision: None,
            task_type: Some("CAUSAL_LM".to_owned()),
        }
    }
}

impl LoraConfig {
    /// The content of `adapter_config.json`, with sorted keys as PEFT writes them.
    pub fn to_json(&self) -> Value {
        json!({
            "alpha_pattern": self.alpha_pattern.0.iter().map(|(k, v)| (k.clone(), number(*v))).collect::<Map<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "ensure_weight_tying": self.ensure_weight_tying,
            "exclude_modules": self.exclude_modules.as_ref().map(TargetModules::to_json),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": self.layers_pattern.as_ref().map(OneOrMany::to_json),
            "layers_to_transform": self.layers_to_transform.as_ref().map(OneOrMany::to_json),
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": Some(&self.modules_to_save).filter(|names| !names.is_empty()),
            "peft_type": "LORA",
            "peft_version": "0.21.2",
            "r": self.r,
            "rank_pattern": self.rank_pattern.0.iter().map(|(k, v)| (k.clone(), json!(v))).collect::<Map<_, _>>(),
            "revision": self.revision,
            "target_modules": self.target_modules.to_json(),
            "task_type": self.task_type,
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        })
    }

    /// The rank of the adapter of `module`, a name such as `model.layers.0.self_attn.q_proj`.
    ///
    /// Patterns that [`validate`](Self::validate) refuses match nothing. [`matcher`](Self::matcher) is faster for many
    /// modules.
    pub fn rank_for(&self, module: &str) -> usize {
        let matching = |(key, _): &&(String, usize)| {
            Pattern::suffix("rank_pattern", key).is_ok_and(|pattern| pattern.matches(module))
        };
        self.rank_pattern
            .0
            .iter()
            .find(matching)
            .map_or(self.r, |(_, rank)| *rank)
    }

    /// The factor of `B A x` for `module`: `alpha / r`, or `alpha / sqrt(r)` with rsLoRA.
    pub fn scaling_for(&self, module: &str) -> f64 {
        let matching = |(key, _): &&(String, f64)| {
            Pattern::suffix("alpha_pattern", key).is_ok_and(|pattern| pattern.matches(module))
        };
        let alpha = self.alpha_pattern.0.iter().find(matching);
        self.scaling(
            alpha.map_or(self.lora_alpha, |(_, alpha)| *alpha),
            self.rank_for(module),
        )
    }

    pub(super) fn scaling(&self, alpha: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// A whole number without a decimal point, as Python writes an int.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn null_as_default<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TargetModules, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
