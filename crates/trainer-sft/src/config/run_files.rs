//! Files of a run by their names.

/// The settings of a run, in its folder.
pub(crate) const SETTINGS: &str = "run.toml";
/// The file that makes a folder a checkpoint.
pub(crate) const STATE_FILE: &str = "trainer_state.json";
