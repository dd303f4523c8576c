//! How much better than its group an answer is.

use crate::config::ScaleRewards;

/// Rewards closer to 0 than this are none, as `torch.isclose` has it.
const ZERO: f64 = 1e-8;

/// Advantages of the rewards of groups, and what TRL logs of the rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// One for each reward; 0 for an answer without a reward.
    pub values: Vec<f64>,
    /// Mean reward.
    pub reward: f64,
    /// Standard deviation of all rewards.
    pub reward_std: f64,
    /// Part of the answers whose group has equal rewards: nothing is learnt of these.
    pub frac_reward_zero_std: f64,
}

/// Advantages of `rewards`, whose groups of `size` follow each other. A reward that is not a number is none.
#[must_use]
pub fn advantages(rewards: &[f64], size: usize, scale: ScaleRewards) -> Advantages {
    let all = std_of(rewards);
    let (mut values, mut num_zero) = (Vec::with_capacity(rewards.len()), 0);
    for group in rewards.chunks(size.max(1)) {
        let (mean, own) = (mean_of(group), std_of(group));
        let std = match scale {
            ScaleRewards::Batch => all,
            ScaleRewards::Group | ScaleRewards::None => own,
        };
        // Of a group with fewer than two rewards nothing is learnt either.
        if std.is_nan() || std.abs() <= ZERO {
            num_zero += group.len();
        }
        values.extend(group.iter().map(|reward| {
            let advantage = match scale {
                ScaleRewards::None => reward - mean,
                ScaleRewards::Group | ScaleRewards::Batch => (reward - mean) / (std + 1e-4),
            };
            if advantage.is_nan() { 0.0 } else { advantage }
        }));
    }
    Advantages {
        values,
        reward: mean_of(rewards),
        reward_std: all,
        frac_reward_zero_std: num_zero as f64 / rewards.len().max(1) as f64,
    }
}

/// The mean of the numbers among `values`; NaN where there is none.
pub(crate) fn mean_of(values: &[f64]) -> f64 {
    let (sum, count) = sums(values, |value| value);
    sum / count
}

/// The standard deviation of the numbers among `values`, of a sample; NaN where there are fewer than two.
pub(crate) fn std_of(values: &[f64]) -> f64 {
    let mean = mean_of(values);
    let (sum, count) = sums(values, |value| (value - mean).powi(2));
    match count > 1.0 {
        true => (sum / (count - 1.0)).sqrt(),
        false => f64::NAN,
    }
}

fn sums(values: &[f64], of: impl Fn(f64) -> f64) -> (f64, f64) {
    let numbers = values.iter().filter(|value| !value.is_nan());
    numbers.fold((0.0, 0.0), |(sum, count), value| {
        (sum + of(*value), count + 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn a_group_is_compared_with_itself() {
        let rewards = [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        let found = advantages(&rewards, 4, ScaleRewards::Group);
        // The standard deviation of 1, 0, 0, 1 is √(1/3).
        let one = 0.5 / (1.0f64 / 3.0).sqrt();
        close(&found.values[4..], &[0.0; 4]);
        assert!((found.values[0] - one).abs() < 1e-3 && found.values[1] == -found.values[0]);
        close(&[found.reward, found.frac_reward_zero_std], &[1.25, 0.5]);
        let unscaled = advantages(&rewards, 4, ScaleRewards::None);
        close(&unscaled.values[..4], &[0.5, -0.5, -0.5, 0.5]);
        let batch = advantages(&rewards, 4, ScaleRewards::Batch);
        close(&[batch.values[0]], &[0.5 / (found.reward_std + 1e-4)]);
        assert_eq!(batch.frac_reward_zero_std, 0.0);
    }

    #[test]
    fn an_answer_without_a_reward_is_not_learnt() {
        let found = advantages(&[1.0, f64::NAN, 0.0], 3, ScaleRewards::None);
        close(&found.values, &[0.5, 0.0, -0.5]);
        close(&[found.reward], &[0.5]);
        let none = advantages(&[f64::NAN, f64::NAN], 2, ScaleRewards::Group);
        close(&none.values, &[0.0, 0.0]);
        assert!(none.reward_std.is_nan());
        assert_eq!(none.frac_reward_zero_std, 1.0);
    }
}
