//! A step that is captured once as a CUDA graph and replayed: hundreds of launches become one.

// For the replay.
#![allow(unsafe_code)]

use std::fmt;

use burn::tensor::{Device, Graph, capture};

type Closure<T> = Box<dyn FnMut() -> T + Send>;

/// A captured computation that owns everything it reads and writes.
///
/// Where the device has no graphs, a replay runs the closure again.
pub(crate) struct CapturedStep<T> {
    graph: Graph<T, Closure<T>>,
}

impl<T> fmt::Debug for CapturedStep<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CapturedStep").finish_non_exhaustive()
    }
}

impl<T> CapturedStep<T> {
    /// Runs `step` some times and captures it. What it writes to memory that others see must not depend on how often it
    /// runs.
    pub(crate) fn capture(device: &Device, step: impl FnMut() -> T + Send + 'static) -> Self {
        Self {
            graph: capture(device, Box::new(step) as Closure<T>),
        }
    }

    /// Runs the step on what its inputs hold now. The result is overwritten by the next replay.
    ///
    /// Call it on the thread that captured the step: the device orders the work of one thread.
    pub(crate) fn replay(&mut self) -> &T {
        // SAFETY: the closure is `'static`, so that it owns every tensor it reads or writes, and the graph owns the
        // closure and the output. Inputs are written and outputs read on the same thread, thus in the order of its queue.
        unsafe { self.graph.replay() }
    }
}
