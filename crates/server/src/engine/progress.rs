//! How far an engine is that starts.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What an engine that starts does just now. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StartProgress(Arc<Mutex<Stage>>);

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Loading,
    WarmingUp {
        /// From 1.
        step: usize,
        num_steps: usize,
    },
}

impl StartProgress {
    pub(super) fn warms_up(&self, step: usize, num_steps: usize) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Stage::WarmingUp { step, num_steps };
    }
}

impl fmt::Display for StartProgress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Stage::Loading => out.write_str("The model is being loaded."),
            Stage::WarmingUp { step, num_steps } => write!(
                out,
                "The model is loaded, and its kernels are being warmed up: step {step} of {num_steps}."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_say_the_same() {
        let progress = StartProgress::default();
        let shown = progress.clone();
        assert_eq!(shown.to_string(), "The model is being loaded.");
        progress.warms_up(7, 40);
        assert!(shown.to_string().ends_with("step 7 of 40."), "{shown}");
    }
}
