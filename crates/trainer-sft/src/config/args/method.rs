//! What is learnt.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::values::number;
use crate::config::{LossType, Method, MethodConfig};

/// The flags under "Method".
#[derive(Clone, Debug, Default, clap::Args, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodArgs {
    /// What is learnt: `sft` learns to say the answers; `dpo` and `orpo` learn from pairs (`prompt`, `chosen`, `rejected`), `kto`
    /// from judged answers (`prompt`, `completion`, `label`), `grpo` from rewards for the model's own answers [default: sft]
    #[arg(long, value_enum)]
    pub method: Option<Method>,

    /// dpo, kto: how much a difference from the reference weighs; orpo: how much the comparison weighs; grpo: weight of the
    /// divergence (KL) from the model with the adapter switched off [default: 0.1; 0 with grpo]
    #[arg(long, value_name = "BETA", value_parser = number)]
    pub beta: Option<f64>,

    /// Loss of dpo (sigmoid, ipo, hinge, robust), or how grpo averages the losses of tokens (grpo, dr_grpo, dapo) [default:
    /// sigmoid; dapo with grpo]
    #[arg(long, value_enum)]
    pub loss_type: Option<LossType>,

    /// dpo: part of the pairs that are taken to be the wrong way round, for --loss-type sigmoid and robust [default: 0]
    #[arg(long, value_name = "PART", value_parser = number)]
    pub label_smoothing: Option<f64>,

    /// kto: weight of the answers whose label is true [default: 1]
    #[arg(long, value_name = "W", value_parser = number)]
    pub desirable_weight: Option<f64>,

    /// kto: weight of the answers whose label is false [default: 1]
    #[arg(long, value_name = "W", value_parser = number)]
    pub undesirable_weight: Option<f64>,

    /// dpo, kto: the reference is the model with this adapter (a PEFT folder) [default: that of --adapter, or the model without
    /// an adapter]
    #[arg(long, value_name = "FOLDER")]
    pub ref_adapter: Option<PathBuf>,
}

impl MethodArgs {
    /// These settings where given, `file`'s otherwise.
    pub(super) fn over(self, file: &Self) -> Self {
        let all = self
            .to_config()
            .over(file.to_config(), self.method.is_some());
        Self {
            method: self.method.or(file.method),
            beta: all.beta,
            loss_type: all.loss_type,
            label_smoothing: all.label_smoothing,
            desirable_weight: all.desirable_weight,
            undesirable_weight: all.undesirable_weight,
            ref_adapter: all.ref_adapter,
        }
    }

    /// The method and its settings, as far as they are given.
    pub(in crate::config) fn to_config(&self) -> MethodConfig {
        MethodConfig {
            method: self.method.unwrap_or_default(),
            beta: self.beta,
            loss_type: self.loss_type,
            label_smoothing: self.label_smoothing,
            desirable_weight: self.desirable_weight,
            undesirable_weight: self.undesirable_weight,
            ref_adapter: self.ref_adapter.clone(),
        }
    }
}
