//! Progress that is told now and then.

use std::time::{Duration, Instant};

/// Says when something is to be told again, such as how far a long work is.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    /// When it was told, or begun.
    last: Instant,
}

impl Seldom {
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
        assert!(!Seldom::new(Duration::from_secs(3600)).is_due());
        let mut always = Seldom::new(Duration::ZERO);
        assert!(always.is_due() && always.is_due());
    }
}
