//! What a run passes before each piece of its work, so that others on the same device may come first.

use std::fmt;
use std::sync::Arc;

/// Called before each micro-batch, each batch of an evaluation and each token of an answer; it may wait. The default is open.
#[derive(Clone, Default)]
pub(crate) struct Gate(Option<Arc<dyn Fn() + Send + Sync>>);

impl Gate {
    pub(crate) fn new(wait: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(wait)))
    }

    /// Returns when the run may go on.
    pub(crate) fn pass(&self) {
        if let Some(wait) = &self.0 {
            wait();
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() {
            "Gate(…)"
        } else {
            "Gate"
        })
    }
}
