//! When requests are sent.

use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Gamma};

/// How fast requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rate {
    /// So many per second; infinity = all at once.
    Steady(f64),
    /// From so many to so many per second.
    Ramp {
        /// Whether each step multiplies the rate instead of adding to it.
        is_exponential: bool,
        /// First rate.
        from: f64,
        /// Last rate.
        to: f64,
    },
}

impl Rate {
    /// The rate at request `index` of `num`.
    pub(super) fn at(self, index: usize, num: usize) -> f64 {
        match self {
            Self::Steady(rate) => rate,
            Self::Ramp {
                is_exponential,
                from,
                to,
            } => {
                let progress = index as f64 / num.saturating_sub(1).max(1) as f64;
                match is_exponential {
                    true => from * (to / from).powf(progress),
                    false => from + (to - from) * progress,
                }
            }
        }
    }
}

/// Seconds from the start of the run at which each of `num` requests is sent.
///
/// Intervals have a gamma distribution of shape `burstiness`: 1 is a Poisson process, less has bursts, infinity is a clock. The
/// times of a steady rate are scaled so that the last request comes when the rate says.
pub(super) fn times(num: usize, rate: Rate, burstiness: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut now = 0.0;
    let mut times: Vec<f64> = (0..num)
        .map(|index| {
            let mean = 1.0 / rate.at(index, num);
            now += match burstiness.is_finite() {
                // Intervals of no length have no distribution.
                true => Gamma::new(burstiness, mean / burstiness)
                    .map_or(mean, |interval| interval.sample(rng)),
                false => mean,
            };
            now
        })
        .collect();
    if let Rate::Steady(rate) = rate
        && now > 0.0
    {
        let scale = num as f64 / rate / now;
        times.iter_mut().for_each(|time| *time *= scale);
    }
    times
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::super::metrics::{mean, std_dev};
    use super::*;

    #[test]
    fn requests_come_at_the_rate() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut times_of = |rate, burstiness| times(100, rate, burstiness, &mut rng);
        assert_eq!(times_of(Rate::Steady(f64::INFINITY), 1.0), vec![0.0; 100]);
        let poisson = times_of(Rate::Steady(4.0), 1.0);
        assert!((poisson[99] - 25.0).abs() < 1e-9);
        assert!(poisson.is_sorted() && poisson[0] > 0.0);
        let clock = times_of(Rate::Steady(4.0), f64::INFINITY);
        assert!((clock[0] - 0.25).abs() < 1e-9 && (clock[1] - 0.5).abs() < 1e-9);
        // The same mean, and a variance of its square divided by the burstiness.
        for burstiness in [0.3, 4.0] {
            let (from, to, is_exponential) = (1.0, 1.0, false);
            let steady = Rate::Ramp {
                is_exponential,
                from,
                to,
            };
            let times = times(40_000, steady, burstiness, &mut rng);
            let intervals: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let (mean, deviation) = (mean(&intervals), std_dev(&intervals));
            assert!((mean - 1.0).abs() < 0.05, "{burstiness}: {mean}");
            let expected = 1.0 / burstiness.sqrt();
            assert!(
                (deviation / expected - 1.0).abs() < 0.1,
                "{burstiness}: {deviation}"
            );
        }
        let ramp = Rate::Ramp {
            is_exponential: true,
            from: 1.0,
            to: 100.0,
        };
        assert!((ramp.at(0, 3) - 1.0).abs() < 1e-9);
        assert!((ramp.at(1, 3) - 10.0).abs() < 1e-9);
        assert!((ramp.at(2, 3) - 100.0).abs() < 1e-9);
    }
}
