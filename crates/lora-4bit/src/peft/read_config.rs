//! Reading a configuration, and checking it.

use serde_json::{Map, Value, json};

use super::config::LoraConfig;
use super::error::PeftError;
use super::matcher::LoraMatcher;
use super::savable::short_names;
use super::unsupported::refuse_unsupported;

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
