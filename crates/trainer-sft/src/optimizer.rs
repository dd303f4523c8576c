//! AdamW with decoupled weight decay, and clipping by the global gradient norm.
//!
//! Both follow PyTorch (`torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`). Everything stays on the device: the norm
//! and the clip factor are tensors, so that an optimizer step on a GPU reads nothing back to the host. On the CPU a step is one pass
//! over memory.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
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
        let steps = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(steps);
        let correction2 = (1.0 - beta2.powi(steps)).sqrt();
        let decay = match rate.decay {
            true => 1.0 - rate.learning_rate * weight_decay,
            false => 1.0,
        };
        if is_plain_cpu(&value) && is_plain_cpu(&gradient) {
            let pass = Pass {
                beta: [beta1 as f32, beta2 as f32],
                rest: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
                correction: correction2 as f32,
                eps: eps as f32,
                rate: (rate.learning_rate / correction1) as f32,
                decay: decay as f32,
            };
            let (value, moments) = pass.run(value, gradient, self.moments.remove(name));
            self.moments.insert(name.to_owned(), moments);
            return value;
        }
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

        let denominator = variance.sqrt().div_scalar(correction2).add_scalar(eps); // [numel]
        let update = (mean / denominator).mul_scalar(rate.learning_rate / correction1); // [numel]
        match decay == 1.0 {
            true => value - update,
            false => value.mul_scalar(decay) - update,
        }
    }
}

/// Whether a tensor's values lie in this process's memory, as f32.
fn is_plain_cpu(tensor: &Tensor<1>) -> bool {
    tensor.dtype() == DType::F32 && tensor.device() == Device::flex()
}

/// The factors of one step of one parameter: the tensor operations of [`AdamW::update`] in one pass over memory.
struct Pass {
    beta: [f32; 2],
    /// `1 - beta`.
    rest: [f32; 2],
    /// Root of the second moment's bias correction.
    correction: f32,
    eps: f32,
    /// Learning rate over the first moment's bias correction.
    rate: f32,
    decay: f32,
}

impl Pass {
    /// The new value, `[numel]`, and the new moments.
    fn run(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: Option<Moments>,
    ) -> (Tensor<1>, Moments) {
        let (mut value, gradient) = (host(value), host(gradient));
        let (mut mean, mut variance) = match moments {
            Some(Moments { mean, variance }) => (host(mean), host(variance)),
            None => (vec![0.0; value.len()], vec![0.0; value.len()]),
        };
        let moments = mean.iter_mut().zip(&mut variance);
        for ((value, gradient), (mean, variance)) in value.iter_mut().zip(gradient).zip(moments) {
            *mean = *mean * self.beta[0] + gradient * self.rest[0];
            *variance = *variance * self.beta[1] + gradient * gradient * self.rest[1];
            let denominator = variance.sqrt() / self.correction + self.eps;
            *value = *value * self.decay - *mean / denominator * self.rate;
        }
        let [value, mean, variance] = [value, mean, variance].map(|values| {
            let len = values.len();
            Tensor::from_data(
                TensorData::new(values, [len]),
                (&Device::flex(), DType::F32),
            )
        });
        (value, Moments { mean, variance })
    }
}

/// The values of a tensor for which [`is_plain_cpu`] holds; without a copy where nobody else holds them.
fn host(tensor: Tensor<1>) -> Vec<f32> {
    match tensor.into_data().try_into_vec() {
        Ok(values) => values,
        Err(error) => unreachable!("f32 values: {error}"),
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
