//! AdamW with decoupled weight decay, and clipping by the global gradient norm.
//!
//! Both follow PyTorch (`torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`). Everything stays on the device: the norm
//! and the clip factor are tensors, so that an optimizer step reads nothing back to the host.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay rate of the mean of the gradients.
    pub beta1: f64,
    /// Decay rate of the mean of the squared gradients.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Running means of one parameter, both `[numel]` in f32.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean of the gradients.
    pub mean: Tensor<1>,
    /// Mean of the squared gradients.
    pub variance: Tensor<1>,
}

/// AdamW over named flat parameters.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: usize,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// An optimizer that has taken no step.
    #[must_use]
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// An optimizer that goes on after `step` steps with the moments that [`AdamW::moments`] gave then.
    #[must_use]
    pub fn resume(config: AdamWConfig, step: usize, moments: BTreeMap<String, Moments>) -> Self {
        Self {
            config,
            step,
            moments,
        }
    }

    /// Steps taken so far.
    #[must_use]
    pub fn step(&self) -> usize {
        self.step
    }

    /// The state of every parameter seen so far.
    #[must_use]
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// Starts the next step; [`AdamW::update`] is then called once for each parameter.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// The new value of one parameter.
    ///
    /// `decay` says whether this parameter is subject to weight decay (matrices are, biases and norms are not).
    ///
    /// # Shapes
    ///
    /// `value`, `gradient` and the result are `[numel]`.
    pub fn update(
        &mut self,
        name: &str,
        value: Tensor<1>,
        gradient: Tensor<1>,
        rate: StepRate,
    ) -> Tensor<1> {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
        } = self.config;
        let square = gradient.clone() * gradient.clone(); // [numel]
        let (mean, variance) = match self.moments.remove(name) {
            Some(Moments { mean, variance }) => (
                mean.mul_scalar(beta1) + gradient.mul_scalar(1.0 - beta1), // [numel]
                variance.mul_scalar(beta2) + square.mul_scalar(1.0 - beta2), // [numel]
            ),
            None => (
                gradient.mul_scalar(1.0 - beta1),
                square.mul_scalar(1.0 - beta2),
            ),
        };
        self.moments.insert(
            name.to_owned(),
            Moments {
                mean: mean.clone(),
                variance: variance.clone(),
            },
        );

        let steps = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(steps);
        let correction2 = (1.0 - beta2.powi(steps)).sqrt();
        let denominator = variance.sqrt().div_scalar(correction2).add_scalar(eps); // [numel]
        let update = (mean / denominator).mul_scalar(rate.learning_rate / correction1); // [numel]
        if rate.decay && weight_decay != 0.0 {
            value.mul_scalar(1.0 - rate.learning_rate * weight_decay) - update
        } else {
            value - update
        }
    }
}

/// How far one parameter moves in one step.
#[derive(Clone, Copy, Debug)]
pub struct StepRate {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Whether the parameter is subject to weight decay.
    pub decay: bool,
}

/// Factor that brings gradients of norm `norm` down to at most `max_norm`: `min(1, max_norm / (norm + 1e-6))`.
///
/// # Shapes
///
/// `[1]` to `[1]`.
#[must_use]
pub fn clip_factor(norm: Tensor<1>, max_norm: f64) -> Tensor<1> {
    norm.add_scalar(1e-6)
        .recip()
        .mul_scalar(max_norm)
        .clamp_max(1.0)
}
