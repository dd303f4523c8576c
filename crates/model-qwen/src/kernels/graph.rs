//! A step that is captured once as a CUDA graph and replayed: hundreds of launches become one.

// For the replay.
#![allow(unsafe_code)]

use std::fmt;

use burn::backend::{Backend, BackendGraph, Dispatch};
use burn::tensor::Device;

type Closure<T> = Box<dyn FnMut() -> T + Send>;

/// How often a step runs before it is captured, at most. Its kernels and buffers must be there: the first run makes them.
const MAX_RUNS: usize = 3;

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
        for _ in 0..MAX_RUNS {
            if let Some((output, graph)) = try_capture(device, &mut closure) {
                return Self {
                    device: device.clone(),
                    output,
                    closure,
                    graph: Some(graph),
                };
            }
        }
        Self {
            device: device.clone(),
            output: closure(),
            closure,
            graph: None,
        }
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

/// Runs a step once, and once more while it is captured: burn's own `capture` runs it three times before. None if the device
/// can't, or if the first run didn't leave all that the second one needs.
fn try_capture<T>(
    device: &Device,
    closure: &mut Closure<T>,
) -> Option<(T, BackendGraph<Dispatch>)> {
    let device = device.as_dispatch();
    Dispatch::graph_prepare(device).ok()?;
    let output = closure();
    let _ = Dispatch::sync(device);
    drop(output);
    Dispatch::graph_start_capture(device).ok()?;
    let output = closure();
    // If this fails, the queue is left as it was before.
    let graph = Dispatch::graph_stop_capture(device).ok()?;
    Some((output, graph))
}
