//! Learning-rate schedules: the factor that multiplies the peak learning rate at each optimizer step.
//!
//! The same numbers as `get_scheduler` of Hugging Face transformers, so that a recipe found on the web means the same here.
//! `constant` has a warm-up, as `constant_with_warmup` there.

use std::f64::consts::PI;

use crate::config::{Config, LrSchedule};

/// The lowest learning rate of [`LrSchedule::Polynomial`] where nothing else is said.
const POLYNOMIAL_END: f64 = 1e-7;
/// Steps of [`LrSchedule::InverseSqrt`] in which the rate falls to 1/√2, without a warm-up.
const TIMESCALE: usize = 10_000;

/// A learning-rate schedule with linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: LrSchedule,
    /// Optimizer steps over which the rate rises to its peak.
    pub warmup_steps: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// Settings of the kinds that have some.
    pub shape: Shape,
}

/// What some kinds of schedules need to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// The lowest factor.
    pub least: f64,
    /// The power of [`LrSchedule::Polynomial`].
    pub power: f64,
    /// Steps of the last stage of [`LrSchedule::WarmupStableDecay`].
    pub decay_steps: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            least: 0.0,
            power: 1.0,
            decay_steps: 0,
        }
    }
}

impl Shape {
    /// As the settings of a run say.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let optimizer = &config.optimizer;
        let peak = config.learning_rate();
        let default = match optimizer.lr_schedule {
            LrSchedule::Polynomial => (POLYNOMIAL_END / peak).min(1.0),
            _ => 0.0,
        };
        let least = optimizer.min_lr.map(|rate| rate / peak);
        Self {
            least: optimizer.min_lr_rate.or(least).unwrap_or(default),
            power: optimizer.lr_power.unwrap_or(1.0),
            decay_steps: optimizer.lr_decay_steps.unwrap_or(0),
        }
    }
}

impl Schedule {
    /// Factor in `[0, 1]` for optimizer step `step`, counted from 0.
    #[must_use]
    pub fn factor(&self, step: usize) -> f64 {
        let Shape { least, power, .. } = self.shape;
        let above = |factor: f64| factor * (1.0 - least) + least;
        if step < self.warmup_steps {
            let factor = step as f64 / self.warmup_steps.max(1) as f64;
            return match self.kind {
                LrSchedule::WarmupStableDecay => above(factor),
                _ => factor,
            };
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let since = (step - self.warmup_steps) as f64;
        let progress = since / decay_steps;
        match self.kind {
            LrSchedule::Cosine => half_wave(progress).max(0.0),
            LrSchedule::Linear => (1.0 - progress).max(0.0),
            LrSchedule::Constant => 1.0,
            LrSchedule::CosineWithMinLr => above(half_wave(progress)).max(0.0),
            LrSchedule::WarmupStableDecay => {
                let falling = self.shape.decay_steps as f64;
                let progress = (since - (decay_steps - falling)) / falling.max(1.0);
                match progress {
                    ..0.0 => 1.0,
                    0.0..1.0 => above(half_wave(progress)),
                    _ => least,
                }
            }
            LrSchedule::Polynomial => above((1.0 - progress).max(0.0).powf(power)),
            LrSchedule::InverseSqrt => {
                let timescale = match self.warmup_steps {
                    0 => TIMESCALE as f64,
                    warmup => warmup as f64,
                };
                1.0 / (1.0 + since / timescale).sqrt()
            }
        }
    }
}

/// From 1 at 0 down to 0 at 1.
fn half_wave(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_after_warmup_runs_at_the_peak() {
        for kind in [LrSchedule::Cosine, LrSchedule::Linear, LrSchedule::Constant] {
            let schedule = Schedule {
                kind,
                warmup_steps: 4,
                total_steps: 20,
                shape: Shape::default(),
            };
            assert_eq!(schedule.factor(0), 0.0);
            assert_eq!(schedule.factor(2), 0.5);
            assert_eq!(schedule.factor(4), 1.0);
        }
    }

    #[test]
    fn steps_past_the_end_stay_in_range() {
        let schedule = Schedule {
            kind: LrSchedule::Linear,
            warmup_steps: 0,
            total_steps: 3,
            shape: Shape::default(),
        };
        assert_eq!(schedule.factor(9), 0.0);
    }
}
