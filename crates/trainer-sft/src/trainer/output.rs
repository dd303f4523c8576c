//! What an optimizer step found.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;

use crate::preference::Numbers;
use crate::replicas::{Witness, await_all};
use crate::step::Means;

/// What one optimizer step found; the numbers are read from the device only when somebody asks, and once for all clones.
#[derive(Clone, Debug)]
pub struct StepOutput {
    values: Arc<Values>,
    /// Further numbers of the method, by TRL's names.
    pub method_metrics: Numbers,
    /// Learning rate of the step.
    pub learning_rate: f64,
}

/// The numbers of one optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepNumbers {
    /// Means over the target tokens.
    pub means: Means,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
}

/// Where the numbers of a step are.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each step")]
enum Values {
    Pending(PendingNumbers),
    Known(StepNumbers),
}

/// Numbers on a device.
#[derive(Debug)]
pub(super) struct PendingNumbers {
    /// Means over the target tokens: loss, targets that are the likeliest token, entropy, `[3]`.
    means: Tensor<1>,
    /// `[1]`.
    grad_norm: Tensor<1>,
    /// What shows that the devices of the step have computed it; none where they were waited for.
    witnesses: Vec<Witness>,
    /// What was read.
    read: OnceLock<StepNumbers>,
}

impl PendingNumbers {
    /// `means [3]` and `grad_norm [1]`, which are read only after the witnesses.
    pub(super) fn new(means: Tensor<1>, grad_norm: Tensor<1>, witnesses: Vec<Witness>) -> Self {
        Self {
            means,
            grad_norm,
            witnesses,
            read: OnceLock::new(),
        }
    }

    fn read(&self) -> StepNumbers {
        *self.read.get_or_init(|| {
            await_all(&self.witnesses);
            let all = Tensor::cat(vec![self.means.clone(), self.grad_norm.clone()], 0).into_data(); // [4]
            let mut values = all.iter::<f64>();
            let mut next = || values.next().unwrap_or(f64::NAN);
            let means = Means {
                loss: next(),
                token_accuracy: next(),
                entropy: next(),
            };
            StepNumbers {
                means,
                grad_norm: next(),
            }
        })
    }
}

impl StepOutput {
    /// The output of a step whose numbers are known already.
    pub(crate) fn known(numbers: StepNumbers, method_metrics: Numbers, learning_rate: f64) -> Self {
        Self {
            values: Arc::new(Values::Known(numbers)),
            method_metrics,
            learning_rate,
        }
    }

    /// The output of a step whose numbers are read later.
    pub(super) fn pending(
        pending: PendingNumbers,
        method_metrics: Numbers,
        learning_rate: f64,
    ) -> Self {
        Self {
            values: Arc::new(Values::Pending(pending)),
            method_metrics,
            learning_rate,
        }
    }

    /// All numbers of the step. Waits for the device.
    #[must_use]
    pub fn numbers(&self) -> StepNumbers {
        match &*self.values {
            Values::Pending(pending) => pending.read(),
            Values::Known(numbers) => *numbers,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;

    #[test]
    fn what_a_clone_has_read_is_not_read_again() {
        let device = Device::flex();
        let on_cpu = (&device, DType::F32);
        let means = Tensor::from_data([1.5f32, 0.5, 2.0], on_cpu);
        let grad_norm = Tensor::from_data([0.25f32], on_cpu);
        let pending = PendingNumbers::new(means, grad_norm, Vec::new());
        let output = StepOutput::pending(pending, Numbers::new(), 0.0);
        let expected = StepNumbers {
            means: Means {
                loss: 1.5,
                token_accuracy: 0.5,
                entropy: 2.0,
            },
            grad_norm: 0.25,
        };
        assert_eq!(output.clone().numbers(), expected);
        let Values::Pending(pending) = &*output.values else {
            panic!("they were on the device");
        };
        assert_eq!(pending.read.get(), Some(&expected));
    }
}
