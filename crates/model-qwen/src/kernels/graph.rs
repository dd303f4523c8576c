//! A step that is captured once as a CUDA graph and replayed: hundreds of launches become one. Without graphs it runs again.

// For the replay.
#![allow(unsafe_code)]

use std::fmt;

use burn::backend::{Backend, BackendGraph, Dispatch};
use burn::tensor::Device;

type Closure<T> = Box<dyn FnMut() -> T + Send>;

/// How often a step runs before it is captured, so that its kernels are compiled and all memory that it needs is there: to take
/// memory in a capture fails, and what such a step had written is lost. burn's own `capture` runs it three times.
const RUNS: usize = 2;

/// A captured computation that owns everything it reads and writes.
///
/// Where the device has no graphs, a replay runs the closure again.
pub(crate) struct CapturedStep<T> {
    device: Device,
    output: T,
    closure: Closure<T>,
    /// None on a device without graphs, and if the capture failed.
    graph: Option<BackendGraph<Dispatch>>,
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
        let mut closure: Closure<T> = Box::new(step);
        let queue = device.as_dispatch();
        let is_prepared = Dispatch::graph_prepare(queue).is_ok();
        if is_prepared {
            for _ in 0..RUNS {
                let output = closure();
                let _ = Dispatch::sync(queue);
                drop(output);
            }
        }
        let is_recorded = is_prepared && Dispatch::graph_start_capture(queue).is_ok();
        let output = closure();
        // If this fails, the queue is left as it was before.
        let graph = is_recorded
            .then(|| Dispatch::graph_stop_capture(queue).ok())
            .flatten();
        Self {
            device: device.clone(),
            output,
            closure,
            graph,
        }
    }

    /// Whether a replay is that of a graph.
    pub(crate) fn is_captured(&self) -> bool {
        self.graph.is_some()
    }

    /// Runs the step on what its inputs hold now. The result is overwritten by the next replay.
    ///
    /// Call it on the thread that captured the step: the device orders the work of one thread.
    pub(crate) fn replay(&mut self) -> &T {
        match &self.graph {
            Some(graph) => {
                // SAFETY: the closure is `'static`, so that it owns every tensor it reads or writes, and this step owns the
                // closure and the output. Inputs are written and outputs read on the same thread, thus in the order of its
                // queue.
                let replayed = unsafe { Dispatch::graph_replay(self.device.as_dispatch(), graph) };
                replayed.expect("a captured step is replayed");
            }
            None => self.output = (self.closure)(),
        }
        &self.output
    }
}
