//! Progress that is reported now and then.

use std::time::{Duration, Instant};

/// Says when something is to be reported again, such as how far a long work is.
#[derive(Debug)]
pub struct Throttle {
    every: Duration,
    /// When it was reported, or begun.
    last: Instant,
}

impl Throttle {
    /// Due first when this time has passed.
    pub fn new(every: Duration) -> Self {
        let last = Instant::now();
        Self { every, last }
    }

    /// Whether the time has passed. It begins again then.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.last.elapsed() >= self.every;
        if is_due {
            self.last = Instant::now();
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_when_the_time_has_passed() {
        assert!(!Throttle::new(Duration::from_secs(3600)).is_due());
        let mut always = Throttle::new(Duration::ZERO);
        assert!(always.is_due() && always.is_due());
    }
}
