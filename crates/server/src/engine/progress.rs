//! How far an engine is that starts.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What an engine that starts does just now. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct StartProgress(Arc<Mutex<Stage>>);

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Begun,
    Loading {
        /// That are there.
        num_layers: usize,
        of: usize,
    },
    Compiling {
        /// From 1.
        step: usize,
        num_steps: usize,
    },
    WarmingUp {
        /// From 1.
        step: usize,
        num_steps: usize,
    },
}

/// A part of a start that can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StartPart {
    /// What is done.
    pub(crate) what: &'static str,
    /// How many are done, or which one is.
    pub(crate) done: usize,
    /// How many there are.
    pub(crate) of: usize,
    /// What is counted.
    pub(crate) unit: &'static str,
}

impl StartProgress {
    pub(super) fn loads(&self, num_layers: usize, of: usize) {
        self.set(Stage::Loading { num_layers, of });
    }

    pub(super) fn compiles(&self, step: usize, num_steps: usize) {
        self.set(Stage::Compiling { step, num_steps });
    }

    pub(super) fn warms_up(&self, step: usize, num_steps: usize) {
        self.set(Stage::WarmingUp { step, num_steps });
    }

    fn set(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> Stage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is done now, and how far it is. `None` at first: a download shows itself.
    pub(crate) fn part(&self) -> Option<StartPart> {
        let (what, done, of, unit) = match self.stage() {
            Stage::Begun => return None,
            Stage::Loading { num_layers, of } => ("loading the model", num_layers, of, "layers"),
            Stage::Compiling { step, num_steps } => ("compiling kernels", step, num_steps, "steps"),
            Stage::WarmingUp { step, num_steps } => ("warming up", step, num_steps, "steps"),
        };
        Some(StartPart {
            what,
            done,
            of,
            unit,
        })
    }
}

impl fmt::Display for StartProgress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stage() {
            Stage::Begun => out.write_str("The model is being loaded."),
            Stage::Loading { num_layers, of } => {
                write!(
                    out,
                    "The model is being loaded: {num_layers} of {of} layers are there."
                )
            }
            Stage::Compiling { step, num_steps } => write!(
                out,
                "The model is loaded, and kernels that it needs are being compiled: step {step} of {num_steps}."
            ),
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
        assert_eq!(shown.part(), None);
        let part = |what, done, of, unit| {
            Some(StartPart {
                what,
                done,
                of,
                unit,
            })
        };
        progress.loads(3, 24);
        assert_eq!(shown.part(), part("loading the model", 3, 24, "layers"));
        let said = shown.to_string();
        assert_eq!(said, "The model is being loaded: 3 of 24 layers are there.");
        progress.compiles(5, 40);
        assert_eq!(shown.part(), part("compiling kernels", 5, 40, "steps"));
        assert!(shown.to_string().ends_with("step 5 of 40."), "{shown}");
        progress.warms_up(7, 40);
        assert_eq!(shown.part(), part("warming up", 7, 40, "steps"));
        assert!(shown.to_string().ends_with("step 7 of 40."), "{shown}");
    }
}
