//! When requests are sent.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

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
    fn at(self, index: usize, num: usize) -> f64 {
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
            now += match mean > 0.0 && burstiness.is_finite() {
                true => gamma(burstiness, rng) * mean / burstiness,
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

/// A number of the gamma distribution with this shape and scale 1, after Marsaglia and Tsang (2000).
fn gamma(shape: f64, rng: &mut ChaCha8Rng) -> f64 {
    if shape < 1.0 {
        let boost = positive(rng).powf(1.0 / shape);
        return gamma(shape + 1.0, rng) * boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && positive(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

/// A number of the standard normal distribution, after Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * positive(rng).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// A number in (0, 1].
fn positive(rng: &mut ChaCha8Rng) -> f64 {
    1.0 - rng.random::<f64>()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn gamma_has_its_mean_and_variance() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for shape in [0.3, 1.0, 4.0] {
            let numbers: Vec<f64> = (0..40_000).map(|_| gamma(shape, &mut rng)).collect();
            let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
            let squares = numbers.iter().map(|x| (x - mean).powi(2));
            let variance = squares.sum::<f64>() / numbers.len() as f64;
            assert!((mean / shape - 1.0).abs() < 0.05, "{shape}: mean {mean}");
            assert!(
                (variance / shape - 1.0).abs() < 0.1,
                "{shape}: variance {variance}"
            );
        }
    }

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
