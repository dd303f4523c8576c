//! `adapter_config.json`.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::PeftError;
use super::matcher::LoraMatcher;
use super::pattern::{Pattern, PatternMap};
use super::saved::short_names;
use super::unsupported::refuse_unsupported;

/// The word that stands for every linear layer except the output head.
pub(super) const ALL_LINEAR: &str = "all-linear";

/// The fields of [`LoraConfig`], and what each of them holds.
const FIELDS: [(&str, &str); 16] = [
    ("r", "a whole number, 1 or more"),
    ("lora_alpha", "a number"),
    ("lora_dropout", "a number, at least 0 and less than 1"),
    (
        "target_modules",
        "a list of names, or a regular expression as a string",
    ),
    (
        "exclude_modules",
        "a list of names, or a regular expression as a string",
    ),
    (
        "layers_to_transform",
        "the number of a layer, or a list of them",
    ),
    ("layers_pattern", "a string, or a list of strings"),
    (
        "rank_pattern",
        "an object from module patterns to whole numbers",
    ),
    ("alpha_pattern", "an object from module patterns to numbers"),
    ("use_rslora", "true or false"),
    ("use_dora", "true or false"),
    ("modules_to_save", "a list of names"),
    ("ensure_weight_tying", "true or false"),
    ("base_model_name_or_path", "a string"),
    ("revision", "a string"),
    ("task_type", "a string"),
];

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
    /// Parses the text of an `adapter_config.json`.
    ///
    /// # Errors
    ///
    /// If the text is not JSON, a field has the wrong type or an impossible value, or asks for something that is not
    /// implemented.
    pub fn from_json(text: &[u8]) -> Result<Self, PeftError> {
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
        let mut fields: Map<String, Value> =
            serde_json::from_slice(text).map_err(PeftError::ConfigJson)?;
        // Null says what a missing field says; but a null task is none, and a missing one is that of a language model.
        fields.retain(|field, value| !value.is_null() || field == "task_type");
        for field in ["r", "rank_pattern", "layers_to_transform"] {
            fields.get_mut(field).map(read_whole_floats);
        }
        refuse_unsupported(&fields)?;
        for (field, expected) in FIELDS {
            let Some(value) = fields.get(field) else {
                continue;
            };
            let alone = Map::from_iter([(field.to_owned(), value.clone())]);
            if serde_json::from_value::<Self>(Value::Object(alone)).is_err() {
                return Err(PeftError::value(field, value, expected));
            }
        }
        let mut config: Self =
            serde_json::from_value(Value::Object(fields)).map_err(PeftError::ConfigJson)?;
        config.modules_to_save = short_names(&config.modules_to_save);
        config.validate()?;
        Ok(config)
    }

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

    /// Checks ranges and patterns.
    ///
    /// # Errors
    ///
    /// If a rank is 0, alpha is not finite, dropout is outside `[0, 1)` or a pattern is not a regular expression.
    pub fn validate(&self) -> Result<(), PeftError> {
        let ranks = self.rank_pattern.0.iter().map(|(_, rank)| *rank);
        if ranks.chain([self.r]).any(|rank| rank == 0) {
            return Err(PeftError::value("r", "0", "a rank of at least 1"));
        }
        let alphas = self.alpha_pattern.0.iter().map(|(_, alpha)| *alpha);
        if let Some(alpha) = alphas
            .chain([self.lora_alpha])
            .find(|alpha| !alpha.is_finite())
        {
            return Err(PeftError::value("lora_alpha", alpha, "a finite number"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(PeftError::value(
                "lora_dropout",
                self.lora_dropout,
                "at least 0 and less than 1",
            ));
        }
        self.matcher().map(|_| ())
    }

    /// Compiles the patterns, to ask about many modules.
    ///
    /// # Errors
    ///
    /// If a pattern is not a regular expression.
    pub fn matcher(&self) -> Result<LoraMatcher<'_>, PeftError> {
        LoraMatcher::new(self)
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

/// Makes integers of whole numbers that are written as floats.
fn read_whole_floats(value: &mut Value) {
    match value {
        Value::Number(n) => {
            if let Some(float) = n.as_f64().filter(|x| n.is_f64() && (0.0..9e15).contains(x))
                && float.fract() == 0.0
            {
                *value = json!(float as u64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(read_whole_floats),
        Value::Object(fields) => fields.values_mut().for_each(read_whole_floats),
        _ => {}
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
