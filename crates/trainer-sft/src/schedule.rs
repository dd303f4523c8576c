//! Learning-rate schedules: the factor that multiplies the peak learning rate at each optimizer step.
//!
//! The same numbers as `get_{cosine,linear,constant}_schedule_with_warmup` of Hugging Face transformers, so that a recipe
//! found on the web means the same here.

use crate::config::LrSchedule;

/// A learning-rate schedule with linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Shape after warm-up.
    pub kind: LrSchedule,
    /// Optimizer steps over which the rate rises from 0 to its peak.
    pub warmup_steps: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
}

impl Schedule {
    /// Factor in `[0, 1]` for optimizer step `step`, counted from 0.
    #[must_use]
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps.max(1) as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = (step - self.warmup_steps) as f64 / decay_steps;
        match self.kind {
            LrSchedule::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            LrSchedule::Linear => (1.0 - progress).max(0.0),
            LrSchedule::Constant => 1.0,
        }
    }
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
        };
        assert_eq!(schedule.factor(9), 0.0);
    }
}
