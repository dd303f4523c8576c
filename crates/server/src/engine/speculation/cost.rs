//! What a further row costs, as measured.

/// Seconds of steps of one token per sequence, as a straight line over their rows: means, variance and covariance of the last
/// steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StepCost {
    num_steps: usize,
    rows: f64,
    seconds: f64,
    variance: f64,
    covariance: f64,
}

/// Steps after which one counts no more.
const MEMORY: usize = 64;
/// A further row, as a share of a step of one, before anything was measured, and how much that guess weighs: as the variance of
/// this many rows.
const GUESS: f64 = 0.1;
const GUESS_WEIGHT: f64 = 0.05;
/// A step that takes longer was disturbed.
const MAX_TIMES_MEAN: f64 = 4.0;
/// What a row has to bring beyond its cost, since both are estimates.
const MARGIN: f64 = 1.25;
const LEAST: f64 = 0.02;

impl StepCost {
    /// Adds a step.
    pub(super) fn observe(&mut self, rows: usize, seconds: f64) {
        self.num_steps += 1;
        // The first step of a process compiles or maps something.
        if self.num_steps == 1 {
            return;
        }
        let weight = 1.0 / self.num_steps.saturating_sub(1).min(MEMORY) as f64;
        let seconds = match self.seconds > 0.0 {
            true => seconds.min(MAX_TIMES_MEAN * self.seconds),
            false => seconds,
        };
        let (more_rows, more_seconds) = (rows as f64 - self.rows, seconds - self.seconds);
        self.rows += weight * more_rows;
        self.seconds += weight * more_seconds;
        let rest = 1.0 - weight;
        self.variance = rest * (self.variance + weight * more_rows * more_rows);
        self.covariance = rest * (self.covariance + weight * more_rows * more_seconds);
    }

    /// Seconds of a further row.
    fn row(&self) -> f64 {
        let of_one = self.seconds / (1.0 + GUESS * (self.rows - 1.0));
        let guess = GUESS_WEIGHT * GUESS * of_one;
        let slope = (self.covariance + guess) / (self.variance + GUESS_WEIGHT);
        // It costs something, and not more than its share.
        slope.clamp(0.0, self.seconds / self.rows)
    }

    /// How likely a row must be to give a token, so that a step of `rows` rows makes more tokens a second with it.
    pub(super) fn least_chance(&self, rows: usize) -> f64 {
        let share = match self.seconds > 0.0 && self.rows > 0.0 {
            true => {
                let row = self.row();
                let step = self.seconds + row * (rows as f64 - self.rows);
                row * rows as f64 / step.max(row * rows as f64)
            }
            false => GUESS * rows as f64 / (1.0 + GUESS * (rows as f64 - 1.0)),
        };
        if share.is_nan() {
            1.0
        } else {
            MARGIN * share + LEAST
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rows: &[usize], seconds: impl Fn(usize) -> f64) -> StepCost {
        let mut cost = StepCost::default();
        for &rows in rows {
            cost.observe(rows, seconds(rows));
        }
        cost
    }

    fn near(found: f64, expected: f64) {
        let expected = MARGIN * expected + LEAST;
        assert!((found - expected).abs() < 0.02, "{found}, not {expected}");
    }

    #[test]
    fn a_row_costs_what_was_measured() {
        near(StepCost::default().least_chance(1), GUESS);
        // Only one number of rows: the guess.
        near(measured(&[1; 40], |_| 0.05).least_chance(1), GUESS);
        near(measured(&[4; 40], |_| 0.05).least_chance(4), 0.4 / 1.3);
        let rows = [1, 4, 2, 4, 1, 3, 4, 4].repeat(20);
        // Nothing, half a step, a whole step.
        near(measured(&rows, |_| 0.05).least_chance(1), 0.0);
        near(
            measured(&rows, |rows| 0.02 * (1.0 + rows as f64)).least_chance(1),
            0.49,
        );
        near(
            measured(&rows, |rows| 0.02 * rows as f64).least_chance(1),
            0.95,
        );
        // 20 rows of one that costs a twentieth of a step of one.
        near(
            measured(&rows, |rows| 0.95 + 0.05 * rows as f64).least_chance(20),
            20.0 * 0.05 / 1.95,
        );
    }

    #[test]
    fn disturbed_steps_count_little_and_the_past_is_forgotten() {
        let mut cost = measured(&[1, 4].repeat(100), |rows| 0.9 + 0.1 * rows as f64);
        let before = cost.least_chance(1);
        cost.observe(1, 1000.0);
        assert!(cost.least_chance(1) < 1.0 && cost.seconds < 1.3, "{cost:?}");
        for rows in [1, 4].repeat(300) {
            cost.observe(rows, 0.1 + 0.1 * rows as f64);
        }
        assert!(cost.least_chance(1) > 2.0 * before, "{cost:?}");
        for cost in [
            measured(&[1, 2, 3], |_| 0.0),
            measured(&[1, 1], |_| f64::NAN),
        ] {
            assert!(cost.least_chance(3) > 0.0, "{cost:?}");
        }
    }
}
