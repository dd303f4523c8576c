//! What goes from the engine to the publisher.

use super::blocks::Event;

/// A batch on its way to the publisher.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) number: u64,
    /// Unix seconds.
    pub(super) time: f64,
    pub(super) events: Vec<Event>,
}
