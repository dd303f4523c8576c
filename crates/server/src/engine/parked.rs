//! Sequences that wait for a slot for their adapter.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::adapters::AdapterId;
use super::receiver::Submission;

/// A sequence that has waited for so long lets no later one go first.
const FAIR_AFTER: Duration = Duration::from_secs(1);

/// A sequence whose adapter is in no slot.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) submission: Submission,
    pub(super) adapter: AdapterId,
    since: Instant,
}

impl Parked {
    /// It waits from now on.
    pub(super) fn new(submission: Submission, adapter: AdapterId) -> Self {
        Self {
            submission,
            adapter,
            since: Instant::now(),
        }
    }

    /// Whether no later one may go first any more.
    pub(super) fn waits_long(&self) -> bool {
        self.since.elapsed() > FAIR_AFTER
    }
}

/// They wait in the order of their arrival.
pub(super) type ParkedQueue = VecDeque<Parked>;
