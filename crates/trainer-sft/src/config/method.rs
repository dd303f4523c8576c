//! `--method`: what is learnt from which records, and the settings of each method.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::validate::{in_range, positive};
use super::{Config, ConfigError, TrainOn};

/// What is learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// To say what the answers say.
    #[default]
    Sft,
    /// To prefer one answer to another, beside a reference (chosen and rejected).
    Dpo,
    /// To say one answer and to prefer it to another, without a reference (chosen and rejected).
    Orpo,
    /// To say what was found good and not what was found bad, beside a reference (completion and label).
    Kto,
}

impl Method {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
            Self::Kto => "kto",
        }
    }

    /// Whether answers are compared or judged, and not only learnt.
    pub fn is_preference(self) -> bool {
        self != Self::Sft
    }

    /// Whether it takes two answers to each prompt.
    pub fn is_paired(self) -> bool {
        matches!(self, Self::Dpo | Self::Orpo)
    }

    /// Whether it compares the model with one that is not trained.
    pub fn has_reference(self) -> bool {
        matches!(self, Self::Dpo | Self::Kto)
    }

    fn is_dpo(self) -> bool {
        self == Self::Dpo
    }

    fn is_kto(self) -> bool {
        self == Self::Kto
    }
}

/// The loss of [`Method::Dpo`], by the names of TRL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LossType {
    /// -log σ of the difference of the rewards; with --label-smoothing conservative DPO.
    #[default]
    Sigmoid,
    /// The squared distance of the difference per token from 1 / (2 beta).
    Ipo,
    /// How far the difference of the rewards is below 1.
    Hinge,
    /// As `sigmoid`, unbiased where a part of the pairs (--label-smoothing) is the wrong way round.
    Robust,
}

/// The method and its settings, with the names of TRL; what the method has no use for is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MethodConfig {
    /// What is learnt.
    pub method: Method,
    /// How much a difference from the reference weighs (ORPO: how much the comparison weighs); `None` is 0.1.
    pub beta: Option<f64>,
    /// The loss of DPO.
    pub loss_type: Option<LossType>,
    /// Part of the pairs that are taken to be the wrong way round; `None` is 0.
    pub label_smoothing: Option<f64>,
    /// KTO: weight of the answers whose label is true; `None` is 1.
    pub desirable_weight: Option<f64>,
    /// KTO: weight of the answers whose label is false; `None` is 1.
    pub undesirable_weight: Option<f64>,
    /// The adapter of the reference; `None` is the model without one.
    pub ref_adapter: Option<PathBuf>,
}

impl MethodConfig {
    /// [`beta`](Self::beta) or its default.
    pub fn beta(&self) -> f64 {
        self.beta.unwrap_or(0.1)
    }

    /// These settings with their defaults. A run that starts from an `adapter` is compared with it.
    pub(super) fn resolved(&self, adapter: Option<&PathBuf>) -> Self {
        let mut all = self.clone();
        if all.method.is_preference() {
            all.beta.get_or_insert(0.1);
        }
        if all.method == Method::Dpo {
            all.loss_type.get_or_insert_default();
        }
        if all.method.has_reference() {
            all.ref_adapter = all.ref_adapter.or_else(|| adapter.cloned());
        }
        all
    }

    /// These settings where given, `file`'s otherwise. The file's settings of another method are none of this one.
    pub(super) fn over(self, file: Self, is_given: bool) -> Self {
        let method = if is_given { self.method } else { file.method };
        let fits = |uses: fn(Method) -> bool| method == file.method || uses(method);
        Self {
            method,
            beta: self
                .beta
                .or(file.beta.filter(|_| fits(Method::is_preference))),
            loss_type: self
                .loss_type
                .or(file.loss_type.filter(|_| fits(Method::is_dpo))),
            label_smoothing: self
                .label_smoothing
                .or(file.label_smoothing.filter(|_| fits(Method::is_dpo))),
            desirable_weight: self
                .desirable_weight
                .or(file.desirable_weight.filter(|_| fits(Method::is_kto))),
            undesirable_weight: self
                .undesirable_weight
                .or(file.undesirable_weight.filter(|_| fits(Method::is_kto))),
            ref_adapter: self
                .ref_adapter
                .or(file.ref_adapter.filter(|_| fits(Method::has_reference))),
        }
    }
}

impl Config {
    /// The settings of a method: in range, and not there where it has none; and what a method cannot be with.
    pub(super) fn check_method(&self) -> Result<(), ConfigError> {
        let settings = &self.method;
        let (method, name) = (settings.method, settings.method.name());
        for (flag, is_given, is_used) in [
            ("beta", settings.beta.is_some(), method.is_preference()),
            ("loss-type", settings.loss_type.is_some(), method.is_dpo()),
            (
                "label-smoothing",
                settings.label_smoothing.is_some(),
                method.is_dpo(),
            ),
            (
                "desirable-weight",
                settings.desirable_weight.is_some(),
                method.is_kto(),
            ),
            (
                "undesirable-weight",
                settings.undesirable_weight.is_some(),
                method.is_kto(),
            ),
            (
                "ref-adapter",
                settings.ref_adapter.is_some(),
                method.has_reference(),
            ),
        ] {
            if is_given && !is_used {
                return Err(ConfigError::Conflict(format!(
                    "--{flag} would have no effect: --method {name} has no such setting; leave it out"
                )));
            }
        }
        positive("beta", settings.beta())?;
        if let Some(part) = settings.label_smoothing {
            let uses = |loss| matches!(loss, LossType::Sigmoid | LossType::Robust);
            if !settings.loss_type.is_none_or(uses) {
                return Err(ConfigError::Conflict(
                    "--label-smoothing would have no effect: of --loss-type, only sigmoid and robust have it; leave it out"
                        .into(),
                ));
            }
            if !(0.0..0.5).contains(&part) {
                return Err(ConfigError::Value {
                    flag: "label-smoothing",
                    expected: "a number from 0 to below 0.5".into(),
                    found: part.to_string(),
                });
            }
        }
        let weights = [settings.desirable_weight, settings.undesirable_weight];
        for (flag, weight) in ["desirable-weight", "undesirable-weight"]
            .into_iter()
            .zip(weights)
        {
            in_range(flag, weight.unwrap_or(1.0), 0.0, 1e6)?;
        }
        if weights == [Some(0.0), Some(0.0)] {
            let text = "--desirable-weight and --undesirable-weight are both 0, and nothing would be learnt: give one of them another value";
            return Err(ConfigError::Conflict(text.into()));
        }
        match method.is_preference() {
            true => self.check_preference(),
            false => Ok(()),
        }
    }

    /// What learning from compared answers cannot be with.
    fn check_preference(&self) -> Result<(), ConfigError> {
        let method = self.method.method;
        let name = method.name();
        let conflict = |text: String| Err(ConfigError::Conflict(text));
        if self.run.full && method.has_reference() {
            return conflict(format!(
                "--method {name} compares the model with itself as it was, which is the model with its adapter switched off, and --full makes no adapter: leave --full out, or take --method orpo, which needs no reference"
            ));
        }
        let noise = "it would change the probabilities that are compared";
        for (flag, is_given, why) in [
            (
                "packing",
                self.data.packing,
                "its batches are made of whole answers",
            ),
            (
                "train-on",
                self.data.train_on != TrainOn::Assistant,
                "it compares answers",
            ),
            (
                "neftune-noise-alpha",
                self.optimizer.neftune_noise_alpha.is_some(),
                noise,
            ),
            ("lora-dropout", self.lora.dropout > 0.0, noise),
        ] {
            if is_given {
                return conflict(format!(
                    "--{flag} cannot be used with --method {name}: {why}; leave it out"
                ));
            }
        }
        if method == Method::Kto && self.run.batch_size * self.run.gradient_accumulation < 2 {
            return conflict(
                "--method kto estimates its baseline from the answers of a step, each after the prompt of another one: --batch-size times --gradient-accumulation has to be 2 or more"
                    .into(),
            );
        }
        Ok(())
    }
}
