//! AdamW with decoupled weight decay, and clipping by the global gradient norm.
//!
//! Both follow PyTorch (`torch.optim.AdamW`, `torch.nn.utils.clip_grad_norm_`). Everything stays on the device: the norm
//! and the clip factor are tensors, so that an optimizer step on a GPU reads nothing back to the host. On the CPU a step is one pass
//! over memory.

mod flat;
mod flat_moments;
mod moments;

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::device::{is_f32_on_cpu, is_untracked_cpu};
use lora_4bit::training::eight_bit::{self, DeviceMoments};
pub use lora_4bit::training::eight_bit::{BLOCK, ByteMoments, Codes};
use lora_4bit::training::{AdamWFactors, adamw};
use serde::{Deserialize, Serialize};

use self::flat_moments::FlatMoments;
pub use self::moments::Moments;

/// Parameters of fewer values keep moments in f32, as in bitsandbytes (`min_8bit_size`).
pub const MIN_VALUES: usize = 4096;

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
    /// Whether the moments of parameters with [`MIN_VALUES`] values or more are kept in 8 bits.
    #[serde(default)]
    pub eight_bit: bool,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            eight_bit: false,
        }
    }
}

/// Bytes of both moments of a parameter of `len` values.
pub(crate) fn moment_bytes(len: usize, eight_bit: bool) -> usize {
    match eight_bit && len >= MIN_VALUES {
        true => 2 * (len + size_of::<f32>() * len.div_ceil(BLOCK)),
        false => 2 * size_of::<f32>() * len,
    }
}

/// AdamW over named flat parameters.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: usize,
    moments: BTreeMap<String, Moments>,
    byte_moments: BTreeMap<String, Held>,
    /// Of what lies in buffers.
    flat: Option<FlatMoments>,
}

/// Moments in 8 bits, where the parameter is.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each parameter")]
enum Held {
    /// Also those of a checkpoint, until their parameter's first step.
    Host(ByteMoments),
    Device(DeviceMoments),
}

impl Held {
    fn to_host(&self) -> ByteMoments {
        match self {
            Self::Host(moments) => moments.clone(),
            Self::Device(moments) => moments.to_host(),
        }
    }

    /// Codes and scales of mean and variance.
    fn sizes(&self) -> [[usize; 2]; 2] {
        match self {
            Self::Host(ByteMoments { mean, variance }) => {
                [mean, variance].map(|Codes { codes, absmax }| [codes.len(), absmax.len()])
            }
            Self::Device(moments) => {
                let values = moments.num_values();
                [[values, values.div_ceil(BLOCK)]; 2]
            }
        }
    }
}

impl AdamW {
    /// An optimizer that has taken no step.
    #[must_use]
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            step: 0,
            moments: BTreeMap::new(),
            byte_moments: BTreeMap::new(),
            flat: None,
        }
    }

    /// An optimizer that goes on after `step` steps with the moments that [`AdamW::moments`] gave then.
    #[must_use]
    pub fn resume(config: AdamWConfig, step: usize, moments: BTreeMap<String, Moments>) -> Self {
        Self {
            config,
            step,
            moments,
            byte_moments: BTreeMap::new(),
            flat: None,
        }
    }

    /// With the moments that [`AdamW::byte_moments`] gave.
    #[must_use]
    pub fn with_byte_moments(self, byte_moments: BTreeMap<String, ByteMoments>) -> Self {
        let held = byte_moments.into_iter();
        Self {
            byte_moments: held
                .map(|(name, moments)| (name, Held::Host(moments)))
                .collect(),
            ..self
        }
    }

    /// Steps taken so far.
    #[must_use]
    pub fn step(&self) -> usize {
        self.step
    }

    /// The state of the parameters seen so far whose moments are in 8 bits, read from the device.
    pub fn byte_moments(&self) -> impl Iterator<Item = (&str, ByteMoments)> {
        let moments = self.byte_moments.iter();
        moments.map(|(name, held)| (name.as_str(), held.to_host()))
    }

    /// The state of every other parameter seen so far. A later step may write to these tensors.
    #[must_use]
    pub fn moments(&self) -> BTreeMap<String, Moments> {
        let mut all = self.moments.clone();
        all.extend(self.flat.iter().flat_map(FlatMoments::by_name));
        all
    }

    /// Starts the next step; [`AdamW::update`] is then called once for each parameter.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// The new value of one parameter.
    ///
    /// The gradient is multiplied with `clip` first.
    ///
    /// # Shapes
    ///
    /// `value`, `gradient` and the result are `[numel]`, `clip` is `[1]`.
    pub fn update(
        &mut self,
        name: &str,
        value: Tensor<1>,
        gradient: Tensor<1>,
        clip: Option<&Tensor<1>>,
        rate: StepRate,
    ) -> Tensor<1> {
        self.take_apart(name);
        let factors = self.factors(rate);
        let like = (&value.device(), DType::F32);
        let clip = clip.map_or_else(|| Tensor::ones([1], like), Clone::clone); // [1]
        let on_host = is_plain_cpu(&value) && is_plain_cpu(&gradient);
        if self.config.eight_bit && value.dims()[0] >= MIN_VALUES {
            let held = self.byte_moments.remove(name);
            let (value, held) = match on_host {
                true => in_bytes_on_host(value, gradient, clip.into_scalar(), held, factors),
                false => in_bytes_on_device(value, &gradient, &clip, held, factors),
            };
            self.byte_moments.insert(name.to_owned(), held);
            return value;
        }
        let moments = self.moments.remove(name);
        let (value, moments) = match on_host {
            true => in_floats_on_host(value, gradient, clip.into_scalar(), moments, factors),
            false => in_floats_on_device(value, &gradient, &clip, moments, factors),
        };
        self.moments.insert(name.to_owned(), moments);
        value
    }

    fn factors(&self, rate: StepRate) -> AdamWFactors {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
            ..
        } = self.config;
        let steps = i32::try_from(self.step).unwrap_or(i32::MAX);
        let correction1 = 1.0 - beta1.powi(steps);
        let correction2 = (1.0 - beta2.powi(steps)).sqrt();
        let decay = match rate.decay {
            true => 1.0 - rate.learning_rate * weight_decay,
            false => 1.0,
        };
        AdamWFactors {
            beta: [beta1 as f32, beta2 as f32],
            rest: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            correction: correction2 as f32,
            eps: eps as f32,
            rate: (rate.learning_rate / correction1) as f32,
            decay: decay as f32,
        }
    }

    /// Checks that the moments belong to parameters of these sizes: name and number of values, of all parameters.
    ///
    /// # Errors
    ///
    /// The first parameter whose moments are missing, unknown or of another length.
    pub fn check(&self, sizes: &BTreeMap<String, usize>) -> Result<(), MomentsError> {
        let error = |parameter: &str, expected: String, found: String| {
            Err(MomentsError {
                parameter: parameter.to_owned(),
                expected,
                found,
            })
        };
        let moments = self.moments();
        for (name, &size) in sizes {
            let expected = format!("{size} values");
            if let Some(held) = self.byte_moments.get(name) {
                for (kind, [codes, blocks]) in ["mean", "variance"].iter().zip(held.sizes()) {
                    if codes != size || blocks != size.div_ceil(BLOCK) {
                        let found = format!("{codes} codes in {blocks} blocks");
                        return error(&format!("{name}.{kind}"), expected, found);
                    }
                }
                continue;
            }
            let Some(Moments { mean, variance }) = moments.get(name) else {
                return error(name, expected, "no moments".into());
            };
            for (kind, found) in [("mean", mean.dims()[0]), ("variance", variance.dims()[0])] {
                if found != size {
                    return error(
                        &format!("{name}.{kind}"),
                        expected,
                        format!("{found} values"),
                    );
                }
            }
        }
        let mut names = moments.keys().chain(self.byte_moments.keys());
        match names.find(|name| !sizes.contains_key(*name)) {
            Some(name) => error(
                name,
                "a parameter of this run".into(),
                "none of this name".into(),
            ),
            None => Ok(()),
        }
    }
}

/// Moments that do not belong to the parameters of a run.
#[derive(Debug, thiserror::Error)]
#[error("`{parameter}`: expected {expected}, found {found}")]
pub struct MomentsError {
    /// The parameter, with `.mean` or `.variance` where one of them is meant.
    pub parameter: String,
    /// What belongs to it.
    pub expected: String,
    /// What was given.
    pub found: String,
}

/// Whether a tensor's values lie in this process's memory, as f32.
fn is_plain_cpu(tensor: &Tensor<1>) -> bool {
    is_untracked_cpu(tensor) && is_f32_on_cpu(tensor)
}

/// The new value, `[numel]`, and the new moments, on the device.
fn in_floats_on_device(
    value: Tensor<1>,
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    moments: Option<Moments>,
    factors: AdamWFactors,
) -> (Tensor<1>, Moments) {
    let like = (&value.device(), DType::F32);
    let Moments { mean, variance } = moments.unwrap_or_else(|| Moments {
        mean: Tensor::zeros(value.dims(), like),
        variance: Tensor::zeros(value.dims(), like),
    });
    let [value, mean, variance] = adamw([value, mean, variance], gradient, clip, factors);
    (value, Moments { mean, variance })
}

/// The same in one pass over memory.
fn in_floats_on_host(
    value: Tensor<1>,
    gradient: Tensor<1>,
    clip: f32,
    moments: Option<Moments>,
    factors: AdamWFactors,
) -> (Tensor<1>, Moments) {
    let (mut value, gradient) = (host(value), host(gradient));
    let (mut mean, mut variance) = match moments {
        Some(Moments { mean, variance }) => (host(mean), host(variance)),
        None => (vec![0.0; value.len()], vec![0.0; value.len()]),
    };
    // `zip` would leave the rest of the longer ones as it is: see `AdamW::check`.
    debug_assert_eq!(
        [gradient.len(), mean.len(), variance.len()],
        [value.len(); 3]
    );
    let moments = mean.iter_mut().zip(&mut variance);
    for ((value, gradient), (mean, variance)) in value.iter_mut().zip(gradient).zip(moments) {
        [*value, *mean, *variance] = factors.step([*value, *mean, *variance], gradient * clip);
    }
    let [value, mean, variance] = [value, mean, variance].map(on_cpu);
    (value, Moments { mean, variance })
}

/// [`in_floats_on_device`] with moments in 8 bits.
fn in_bytes_on_device(
    value: Tensor<1>,
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    held: Option<Held>,
    factors: AdamWFactors,
) -> (Tensor<1>, Held) {
    let device = value.device();
    let moments = match held {
        Some(Held::Device(moments)) => moments,
        Some(Held::Host(moments)) => DeviceMoments::from_host(&moments, &device),
        None => DeviceMoments::zeros(value.dims()[0], &device),
    };
    let (value, moments) = eight_bit::adamw(value, moments, gradient, clip, factors);
    (value, Held::Device(moments))
}

/// [`in_floats_on_host`] with moments in 8 bits.
fn in_bytes_on_host(
    value: Tensor<1>,
    gradient: Tensor<1>,
    clip: f32,
    held: Option<Held>,
    factors: AdamWFactors,
) -> (Tensor<1>, Held) {
    let (mut value, gradient) = (host(value), host(gradient));
    let mut moments = match held {
        Some(Held::Host(moments)) => moments,
        Some(Held::Device(moments)) => moments.to_host(),
        None => ByteMoments::zeros(value.len()),
    };
    eight_bit::adamw_on_host(&mut value, &gradient, clip, &mut moments, factors);
    (on_cpu(value), Held::Host(moments))
}

fn on_cpu(values: Vec<f32>) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(
        TensorData::new(values, [len]),
        (&Device::flex(), DType::F32),
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32]) -> Tensor<1> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::from_data(data, (&Device::flex(), DType::F32))
    }

    #[test]
    fn one_pass_over_memory_computes_what_the_tensor_operations_do() {
        for decay in [1.0, 0.99] {
            let start = tensor(&[0.5, -1.25, 3.0, 0.0, 1e-3]);
            let (mut host, mut device) = ((start.clone(), None), (start, None));
            for step in 1..=4 {
                let factor = step as f32;
                let gradient = tensor(&[0.1 * factor, -2.0, 1e-4, 0.0, 7.5 / factor]);
                let factors = AdamWFactors {
                    beta: [0.9, 0.999],
                    rest: [0.1, 0.001],
                    correction: (1.0 - 0.999f32.powi(step)).sqrt(),
                    eps: 1e-8,
                    rate: 1e-2 / (1.0 - 0.9f32.powi(step)),
                    decay,
                };
                let (value, moments) =
                    in_floats_on_host(host.0, gradient.clone(), 1.0, host.1, factors);
                host = (value, Some(moments));
                let (value, moments) =
                    in_floats_on_device(device.0, &gradient, &tensor(&[1.0]), device.1, factors);
                device = (value, Some(moments));
                let (Some(left), Some(right)) = (&host.1, &device.1) else {
                    panic!("no moments")
                };
                for (left, right) in [
                    (&host.0, &device.0),
                    (&left.mean, &right.mean),
                    (&left.variance, &right.variance),
                ] {
                    let values =
                        |tensor: &Tensor<1>| -> Vec<f32> { tensor.to_data().iter().collect() };
                    for (left, right) in values(left).into_iter().zip(values(right)) {
                        let close = (left - right).abs() <= 1e-6 * right.abs().max(1e-6);
                        assert!(close, "step {step}: {left}, {right}");
                    }
                }
            }
        }
    }

    #[test]
    fn moments_of_another_length_are_named() {
        let moments = |mean: usize, variance: usize| Moments {
            mean: tensor(&vec![0.0; mean]),
            variance: tensor(&vec![0.0; variance]),
        };
        let sizes = BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
        let check = |found: BTreeMap<String, Moments>| {
            let result = AdamW::resume(AdamWConfig::default(), 1, found).check(&sizes);
            result.map_err(|error| error.to_string())
        };
        let good = BTreeMap::from([
            ("a".to_owned(), moments(3, 3)),
            ("b".to_owned(), moments(2, 2)),
        ]);
        assert_eq!(check(good.clone()), Ok(()));
        for (name, pair, expected) in [
            (
                "b",
                Some(moments(2, 1)),
                "`b.variance`: expected 2 values, found 1 values",
            ),
            (
                "a",
                Some(moments(4, 3)),
                "`a.mean`: expected 3 values, found 4 values",
            ),
            ("a", None, "`a`: expected 3 values, found no moments"),
            (
                "c",
                Some(moments(1, 1)),
                "`c`: expected a parameter of this run, found none of this name",
            ),
        ] {
            let mut found = good.clone();
            match pair {
                Some(pair) => found.insert(name.to_owned(), pair),
                None => found.remove(name),
            };
            assert_eq!(check(found), Err(expected.to_owned()));
        }
    }
}
