//! What a client asks of a job, and what the server trains on.

use burn::tensor::Device;
use model_qwen::{Dtype, Quantization, QwenModel};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::Config;
use crate::engine::ModelInfo;
use crate::error::ApiError;

/// Hyperparameters of OpenAI's that may be `"auto"`, which is as if they were not given.
const MAY_BE_AUTO: [&str; 4] = ["n_epochs", "batch_size", "learning_rate_multiplier", "beta"];

/// Body of `POST /v1/fine_tuning/jobs`.
#[derive(Clone, Debug, Deserialize)]
pub struct JobRequest {
    /// A served name, or an adapter to go on from.
    pub model: String,
    /// Id of the file to learn from.
    pub training_file: String,
    /// Id of the file to evaluate on.
    pub validation_file: Option<String>,
    /// Part of the result's name.
    pub suffix: Option<String>,
    /// Seed of shuffling, initialization and dropout.
    pub seed: Option<u64>,
    /// The older place of the hyperparameters of `supervised`.
    pub hyperparameters: Option<Map<String, Value>>,
    /// What is learnt, and its hyperparameters.
    pub method: Option<Map<String, Value>>,
    /// The client's own.
    pub metadata: Option<Map<String, Value>>,
}

/// What is learnt, by OpenAI's names where it has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// To say the answers.
    #[default]
    Supervised,
    /// To prefer one answer to another.
    Dpo,
    /// The same without a reference.
    Orpo,
    /// To say what was judged good.
    Kto,
}

impl Method {
    const ALL: [Self; 4] = [Self::Supervised, Self::Dpo, Self::Orpo, Self::Kto];

    /// Its name in a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
            Self::Kto => "kto",
        }
    }

    /// Its name in the trainer.
    pub(super) fn of_trainer(self) -> trainer_sft::config::Method {
        use trainer_sft::config::Method;
        match self {
            Self::Supervised => Method::Sft,
            Self::Dpo => Method::Dpo,
            Self::Orpo => Method::Orpo,
            Self::Kto => Method::Kto,
        }
    }
}

/// The method of a request, its hyperparameters, and where in the request these are.
#[derive(Debug)]
pub struct MethodPart {
    /// What is learnt.
    pub method: Method,
    /// As the client wrote them, without those that are `"auto"`.
    pub hyperparameters: Map<String, Value>,
    /// Where they are, such as `method.supervised.hyperparameters`.
    pub place: String,
}

impl MethodPart {
    /// Reads `method`, or the older `hyperparameters`.
    ///
    /// # Errors
    /// 400 with the field that is wrong.
    pub fn of(
        method: Option<&Map<String, Value>>,
        older: Option<&Map<String, Value>>,
    ) -> Result<Self, ApiError> {
        let older = older.filter(|older| !older.is_empty());
        let Some(fields) = method else {
            return Ok(Self::new(
                Method::Supervised,
                older.cloned().unwrap_or_default(),
                "hyperparameters".to_owned(),
            ));
        };
        let method = match fields.get("type") {
            None | Some(Value::Null) => Method::Supervised,
            Some(Value::String(name)) => method_named(name)?,
            Some(other) => return Err(expected_method(&other.to_string())),
        };
        let unknown = |(name, value): &(&String, &Value)| {
            *name != "type" && *name != method.name() && !value.is_null()
        };
        if let Some((name, _)) = fields.iter().find(unknown) {
            let param = format!("method.{name}");
            let message = format!(
                "`{param}`: the method is `{}`, whose settings are in `method.{0}`.",
                method.name()
            );
            return Err(ApiError::bad_request(param, message));
        }
        let place = format!("method.{}", method.name());
        let own = match fields.get(method.name()) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(own)) => own.clone(),
            Some(other) => {
                return Err(ApiError::expected(place, "an object", &other.to_string()));
            }
        };
        if let Some(name) = own.keys().find(|name| *name != "hyperparameters") {
            let param = format!("{place}.{name}");
            let message = format!(
                "`{param}`: there is no such field. Settings are in `{place}.hyperparameters`."
            );
            return Err(ApiError::bad_request(param, message));
        }
        let place = format!("{place}.hyperparameters");
        let hyperparameters = match own.get("hyperparameters") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(own)) => own.clone(),
            Some(other) => {
                return Err(ApiError::expected(place, "an object", &other.to_string()));
            }
        };
        match older {
            Some(_) if !hyperparameters.is_empty() => {
                let message =
                    format!("`hyperparameters` is the older place of `{place}`: give one of them.");
                Err(ApiError::bad_request("hyperparameters", message))
            }
            Some(older) => Ok(Self::new(
                method,
                older.clone(),
                "hyperparameters".to_owned(),
            )),
            None => Ok(Self::new(method, hyperparameters, place)),
        }
    }

    fn new(method: Method, mut hyperparameters: Map<String, Value>, place: String) -> Self {
        hyperparameters
            .retain(|name, value| !(MAY_BE_AUTO.contains(&name.as_str()) && value == "auto"));
        Self {
            method,
            hyperparameters,
            place,
        }
    }
}

fn method_named(name: &str) -> Result<Method, ApiError> {
    let method = Method::ALL.into_iter().find(|method| method.name() == name);
    method.ok_or_else(|| expected_method(&format!("`{name}`")))
}

fn expected_method(found: &str) -> ApiError {
    ApiError::expected(
        "method.type",
        "`supervised`, `dpo`, `orpo` or `kto` (rewards are for the program `trainer-sft`)",
        found,
    )
}

/// How the trainer finds the weights that jobs start from, and where it computes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Source {
    /// As the server's `--model`; `None` is the bundled one.
    pub(super) model: Option<String>,
    /// How the linear layers are held.
    pub(super) quantization: Quantization,
    /// How the other weights are held.
    pub(super) dtype: Dtype,
    /// Where a job in a process of its own computes. In the server's process it is the server's device.
    pub(super) device: String,
    /// Bytes that a job may take; of the weights, too, in a process of its own.
    pub(super) memory: Option<u64>,
}

impl Source {
    fn identity(&self) -> Option<String> {
        let mut config = trainer_sft::config::Config::new("");
        config.model.model.clone_from(&self.model);
        let identity = trainer_sft::identity_of_base(&config);
        identity
            .inspect_err(
                |error| tracing::warn!(%error, "the model of fine-tuning jobs is not known"),
            )
            .ok()
    }
}

/// What jobs start from: the served model.
#[derive(Clone)]
pub(super) struct Base {
    /// How the trainer finds it.
    pub(super) source: Source,
    /// A hash of the model's files; `None` if they cannot be found.
    pub(super) identity: Option<String>,
    /// The weights that the engine computes with; `None` where the model generates no text.
    pub(super) weights: Option<QwenModel>,
    /// The first served name.
    pub(super) name: String,
    /// `--max-lora-rank`; `None` without `--enable-lora`.
    pub(super) max_lora_rank: Option<usize>,
    /// Whether the server shows models another chat template than their own.
    pub(super) has_own_template: bool,
}

impl Base {
    /// How the weights are held that a job with these settings trains on, as flags.
    pub(super) fn held_for(&self, settings: &Map<String, Value>) -> String {
        let name = |value: serde_json::Result<Value>| match value {
            Ok(Value::String(name)) => name,
            _ => String::new(),
        };
        let own = settings.get("quantization").and_then(Value::as_str);
        let quantization = own.map_or_else(
            || name(serde_json::to_value(self.source.quantization)),
            str::to_owned,
        );
        let dtype = name(serde_json::to_value(self.source.dtype));
        format!("--quantization {quantization} --dtype {dtype}")
    }

    pub(super) fn of(config: &Config, model: &ModelInfo) -> Self {
        let name = config.served_model_names.first();
        let own = config.finetuning.as_ref();
        let device = own.and_then(|own| own.device.clone());
        let source = Source {
            model: config.model.clone(),
            quantization: config.quantization,
            dtype: config.dtype,
            // The server's device is given to the run itself.
            device: device.unwrap_or_else(|| "cpu".to_owned()),
            memory: own.and_then(|own| own.memory),
        };
        Self {
            identity: source.identity(),
            source,
            weights: model.base.clone().filter(|_| model.pooling.is_none()),
            name: name.unwrap_or(&model.model_id).clone(),
            max_lora_rank: config.lora.as_ref().map(|lora| lora.max_lora_rank),
            has_own_template: config.chat_template.is_some(),
        }
    }

    pub(super) fn device(&self) -> Option<Device> {
        self.weights.as_ref().map(QwenModel::device)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn part(method: Value, older: Value) -> Result<MethodPart, String> {
        let part = MethodPart::of(method.as_object(), older.as_object());
        part.map_err(|error| error.message)
    }

    #[test]
    fn hyperparameters_are_in_one_of_two_places() {
        let given = json!({ "n_epochs": 2, "batch_size": "auto" });
        let old = part(Value::Null, given.clone()).unwrap();
        assert_eq!(
            (old.method, old.place.as_str()),
            (Method::Supervised, "hyperparameters")
        );
        assert_eq!(Value::Object(old.hyperparameters), json!({ "n_epochs": 2 }));
        let dpo = json!({ "type": "dpo", "dpo": { "hyperparameters": given }, "supervised": null });
        let dpo = part(dpo, Value::Null).unwrap();
        assert_eq!(
            (dpo.method, dpo.place.as_str()),
            (Method::Dpo, "method.dpo.hyperparameters")
        );
        let both =
            json!({ "type": "supervised", "supervised": { "hyperparameters": { "n_epochs": 1 } } });
        assert!(
            part(both, json!({ "n_epochs": 2 }))
                .unwrap_err()
                .contains("older place")
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (method, message) in [
            (
                json!({ "type": "reinforcement" }),
                "`method.type`: expected `supervised`",
            ),
            (json!({ "type": 3 }), "found 3"),
            (
                json!({ "type": "dpo", "supervised": {} }),
                "`method.supervised`: the method is `dpo`",
            ),
            (
                json!({ "type": "dpo", "dpo": 1 }),
                "`method.dpo`: expected an object",
            ),
            (
                json!({ "dpo": {} }),
                "`method.dpo`: the method is `supervised`",
            ),
            (
                json!({ "supervised": { "n_epochs": 2 } }),
                "Settings are in `method.supervised.hyperparameters`",
            ),
        ] {
            let error = part(method, Value::Null).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
