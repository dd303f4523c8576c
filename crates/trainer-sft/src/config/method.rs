//! `--method`: what is learnt from which records, and the settings of each method.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ranges::{in_range, positive};
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
    /// What rewards say of the model's own answers (group relative policy optimization).
    Grpo,
}

impl Method {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Orpo => "orpo",
            Self::Kto => "kto",
            Self::Grpo => "grpo",
        }
    }

    /// Whether answers are compared or judged, and not only learnt.
    pub fn is_preference(self) -> bool {
        matches!(self, Self::Dpo | Self::Orpo | Self::Kto)
    }

    /// Whether it takes two answers to each prompt.
    pub fn is_paired(self) -> bool {
        matches!(self, Self::Dpo | Self::Orpo)
    }

    /// Whether it compares the model with one that is not trained.
    pub fn has_reference(self) -> bool {
        matches!(self, Self::Dpo | Self::Kto)
    }

    /// Whether it has a `--beta`.
    fn has_beta(self) -> bool {
        self != Self::Sft
    }

    /// What `--beta` is where nothing else is said.
    fn default_beta(self) -> f64 {
        match self.is_preference() {
            true => 0.1,
            false => 0.0,
        }
    }

    /// What `--loss-type` is where nothing else is said; `None` where there is one loss only.
    pub(crate) fn default_loss(self) -> Option<LossType> {
        match self {
            Self::Dpo => Some(LossType::Sigmoid),
            Self::Grpo => Some(LossType::Dapo),
            Self::Sft | Self::Orpo | Self::Kto => None,
        }
    }

    fn is_dpo(self) -> bool {
        self == Self::Dpo
    }

    fn is_kto(self) -> bool {
        self == Self::Kto
    }
}

/// The loss of [`Method::Dpo`], or that of [`Method::Grpo`], by the names of TRL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum LossType {
    /// dpo: -log σ of the difference of the rewards; with --label-smoothing conservative DPO.
    Sigmoid,
    /// dpo: the squared distance of the difference per token from 1 / (2 beta).
    Ipo,
    /// dpo: how far the difference of the rewards is below 1.
    Hinge,
    /// dpo: as `sigmoid`, unbiased where a part of the pairs (--label-smoothing) is the wrong way round.
    Robust,
    /// grpo: the mean of each answer, then of the answers: short answers weigh more per token.
    Grpo,
    /// grpo: the sum over --max-completion-length × answers: no bias by length (Dr. GRPO).
    DrGrpo,
    /// grpo: the mean of all tokens of the step (DAPO).
    Dapo,
}

impl LossType {
    /// The losses of a method and their names; none where it has one loss only.
    fn of(method: Method) -> &'static [(Self, &'static str)] {
        match method {
            Method::Dpo => &[
                (Self::Sigmoid, "sigmoid"),
                (Self::Ipo, "ipo"),
                (Self::Hinge, "hinge"),
                (Self::Robust, "robust"),
            ],
            Method::Grpo => &[
                (Self::Grpo, "grpo"),
                (Self::DrGrpo, "dr_grpo"),
                (Self::Dapo, "dapo"),
            ],
            Method::Sft | Method::Orpo | Method::Kto => &[],
        }
    }

    fn fits(self, method: Method) -> bool {
        Self::of(method).iter().any(|(loss, _)| *loss == self)
    }

    /// Its name on the command line.
    fn name(self) -> &'static str {
        let all = [Method::Dpo, Method::Grpo].map(Self::of);
        let own = all.into_iter().flatten().find(|(loss, _)| *loss == self);
        own.map_or("", |(_, name)| name)
    }
}

/// The method and its settings, with the names of TRL; what the method has no use for is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MethodConfig {
    /// What is learnt.
    pub method: Method,
    /// How much a difference from the reference weighs (ORPO: how much the comparison weighs; GRPO: weight of the divergence from
    /// the model without its adapter); `None` is 0.1, and 0 for GRPO.
    pub beta: Option<f64>,
    /// The loss of DPO (`None` is `sigmoid`) or of GRPO (`None` is `dapo`).
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
        self.beta.unwrap_or(self.method.default_beta())
    }

    /// The settings of a method where nothing is said.
    pub(crate) fn defaults_of(method: Method) -> Self {
        let own = Self {
            method,
            ..Self::default()
        };
        own.resolved(None)
    }

    /// These settings with their defaults. A run that starts from an `adapter` is compared with it.
    pub(super) fn resolved(&self, adapter: Option<&PathBuf>) -> Self {
        let mut all = self.clone();
        if all.method.has_beta() {
            all.beta.get_or_insert(all.method.default_beta());
        }
        if let Some(loss) = all.method.default_loss() {
            all.loss_type.get_or_insert(loss);
        }
        if all.method.has_reference() {
            all.ref_adapter = all.ref_adapter.or_else(|| adapter.cloned());
        }
        all
    }

    /// These settings where given, `file`'s otherwise. The file's settings of another method are none of this one.
    pub(super) fn over(self, file: Self, is_given: bool) -> Self {
        let method = if is_given { self.method } else { file.method };
        // A file that names no method has its settings for the one that a flag names, and they are refused where they do not fit.
        let is_same = method == file.method || file.method == Method::Sft;
        let fits = |uses: fn(Method) -> bool| is_same || uses(method);
        // GRPO's beta is another number than that of compared answers.
        let same_beta = is_same || method.is_preference() && file.method.is_preference();
        Self {
            method,
            beta: self.beta.or(file.beta.filter(|_| same_beta)),
            loss_type: self
                .loss_type
                .or(file.loss_type.filter(|loss| is_same || loss.fits(method))),
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
            ("beta", settings.beta.is_some(), method.has_beta()),
            (
                "loss-type",
                settings.loss_type.is_some(),
                !LossType::of(method).is_empty(),
            ),
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
        if method.is_preference() {
            positive("beta", settings.beta())?;
        }
        if let Some(loss) = settings.loss_type.filter(|loss| !loss.fits(method)) {
            let fitting: Vec<_> = LossType::of(method).iter().map(|(_, name)| *name).collect();
            return Err(ConfigError::Value {
                flag: "loss-type",
                expected: format!("a loss of --method {name} ({})", fitting.join(", ")),
                found: loss.name().into(),
            });
        }
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
        let part = settings.label_smoothing.unwrap_or(0.0);
        if settings.loss_type == Some(LossType::Robust) && part == 0.0 {
            return Err(ConfigError::Conflict(
                "--loss-type robust would have no effect without --label-smoothing, the part of the pairs that are the wrong way \
                 round: give it, or take --loss-type sigmoid"
                    .into(),
            ));
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
        if method.is_preference() {
            self.check_preference()?;
        }
        self.check_reference()
    }

    /// What has a reference that is the model with its adapter switched off, and what to take instead of it.
    pub(super) fn reference(&self) -> Option<(&'static str, Option<&'static str>)> {
        match self.method.method {
            _ if self.run.full => None,
            Method::Grpo if self.method.beta() > 0.0 => {
                Some(("--method grpo with --beta", Some("take --beta 0")))
            }
            Method::Kto => Some(("--method kto", None)),
            Method::Dpo => Some((
                "--method dpo",
                Some("take --method orpo, which needs no reference"),
            )),
            Method::Sft | Method::Orpo | Method::Grpo => None,
        }
    }

    /// A reference that is the model with its adapter switched off has to be what the run started from.
    fn check_reference(&self) -> Result<(), ConfigError> {
        let lora = &self.lora;
        let Some((what, otherwise)) = self.reference() else {
            return Ok(());
        };
        let otherwise = otherwise.unwrap_or("merge such a run first and start from the result");
        let given = if lora.init.changes_base() {
            let flag = format!("--init-lora-weights {}", lora.init);
            Some((flag, "without what the adapter starts as"))
        } else if !lora.modules_to_save.is_empty() {
            let flag = format!("--modules-to-save {}", lora.modules_to_save.join(","));
            Some((flag, "with the embedding or head that is trained"))
        } else {
            None
        };
        match given {
            Some((flag, but)) => Err(ConfigError::Conflict(format!(
                "{flag} cannot be used with {what}: the reference is the model with its adapter switched off, which would be the \
                 base {but}; leave it out, or {otherwise}"
            ))),
            None => Ok(()),
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
            ("lora-dropout", self.lora.dropout() > 0.0, noise),
        ] {
            if is_given {
                return conflict(format!(
                    "--{flag} cannot be used with --method {name}: {why}; leave it out"
                ));
            }
        }
        let answers = self.run.batch_size * self.run.gradient_accumulation * self.num_devices();
        if method == Method::Kto && answers < 2 {
            return conflict(
                "--method kto estimates its baseline from the answers of a step, each after the prompt of another one: --batch-size times --gradient-accumulation (on all of --devices) has to be 2 or more"
                    .into(),
            );
        }
        Ok(())
    }
}
