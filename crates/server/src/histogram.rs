//! Counts in buckets, with vLLM's bounds.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Of whole requests and their phases, in seconds.
pub const REQUEST_SECONDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Of the time to the first token, in seconds.
pub const FIRST_TOKEN_SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Of the time between tokens, in seconds.
pub const TOKEN_SECONDS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// Of tokens in a step.
pub const STEP_TOKENS: [f64; 13] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
/// Of `n`.
pub const CHOICES: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];
/// Of preemptions of a request.
pub const PREEMPTIONS: [f64; 7] = [1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Values counted in fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: Vec<f64>,
    counts: Mutex<Counts>,
}

#[derive(Clone, Debug)]
struct Counts {
    buckets: Vec<u64>,
    count: u64,
    sum: f64,
}

/// What a histogram has counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// Upper bounds, and how many values are at most that.
    pub buckets: Vec<(f64, u64)>,
    /// All values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Histogram {
    /// An empty one.
    pub fn new(bounds: &[f64]) -> Self {
        Self {
            bounds: bounds.to_vec(),
            counts: Mutex::new(Counts {
                buckets: vec![0; bounds.len()],
                count: 0,
                sum: 0.0,
            }),
        }
    }

    /// An empty one for numbers of tokens: 1, 2, 5, 10, … up to `max`.
    pub fn of_tokens(max: usize) -> Self {
        let powers = (0..u32::MAX).map_while(|exponent| 10usize.checked_pow(exponent));
        let bounds = powers.flat_map(|power| [1, 2, 5].map(|digit| power.saturating_mul(digit)));
        let bounds = bounds.take_while(|&bound| bound <= max);
        let bounds: Vec<f64> = bounds.map(|bound| bound as f64).collect();
        Self::new(&bounds)
    }

    /// Adds one duration.
    pub fn observe(&self, duration: Duration) {
        self.observe_value(duration.as_secs_f64());
    }

    /// Adds one value.
    pub fn observe_value(&self, value: f64) {
        let bucket = self.bounds.iter().position(|&bound| value <= bound);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = bucket {
            counts.buckets[bucket] += 1;
        }
        counts.count += 1;
        counts.sum += value;
    }

    /// The counts so far.
    pub fn snapshot(&self) -> Snapshot {
        let Counts {
            buckets,
            count,
            sum,
        } = self
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let cumulative = buckets.into_iter().scan(0, |below, in_bucket| {
            *below += in_bucket;
            Some(*below)
        });
        Snapshot {
            buckets: self.bounds.iter().copied().zip(cumulative).collect(),
            count,
            sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_at_most_at_their_bound() {
        let histogram = Histogram::of_tokens(20);
        for value in [1.0, 2.0, 3.0, 20.0, 21.0] {
            histogram.observe_value(value);
        }
        let snapshot = histogram.snapshot();
        let expected = [(1.0, 1), (2.0, 2), (5.0, 3), (10.0, 3), (20.0, 4)];
        assert_eq!(snapshot.buckets, expected);
        assert_eq!((snapshot.count, snapshot.sum), (5, 47.0));
    }
}
