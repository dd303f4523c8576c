//! The settings that a run has from the adapter that it trains further.

use std::path::Path;

use lora_4bit::peft::CONFIG_FILE;

use super::ranges::{MAX_RANK, in_range, positive, whole_in_range};
use super::{Config, ConfigError};

impl Config {
    /// Checks the settings that are those of the adapter in `folder`, as [`Self::check`] does with flags. No flag has them, so the
    /// adapter's file is named.
    ///
    /// # Errors
    /// The first setting that is out of range, or that the run cannot be with.
    pub(crate) fn check_adapter(&self, folder: &Path) -> Result<(), ConfigError> {
        let (lora, method) = (&self.lora, self.method.method);
        let refused = |reason: String| {
            Err(ConfigError::File {
                path: folder.join(CONFIG_FILE).display().to_string(),
                reason,
            })
        };
        let merge = "merge the adapter into its model (command `merge`) and start from the result";
        let ranges = whole_in_range("r", lora.r, 1, MAX_RANK)
            .and_then(|()| positive("lora_alpha", lora.alpha))
            .and_then(|()| in_range("lora_dropout", lora.dropout(), 0.0, 0.99));
        match ranges {
            Ok(()) => {}
            Err(ConfigError::Value {
                flag: "lora_dropout",
                expected,
                found,
            }) => {
                return refused(format!(
                    "`lora_dropout`: expected {expected}, found {found}: give --lora-dropout"
                ));
            }
            Err(ConfigError::Value {
                flag,
                expected,
                found,
            }) => {
                return refused(format!(
                    "`{flag}`: expected {expected}, found {found}: {merge}"
                ));
            }
            Err(error) => return Err(error),
        }
        if method.is_preference() && lora.dropout() > 0.0 {
            return refused(format!(
                "`lora_dropout` is {}, and dropout cannot be used with --method {}: it would change the probabilities that are \
                 compared; give --lora-dropout 0",
                lora.dropout(),
                method.name()
            ));
        }
        match self.reference() {
            Some((what, otherwise)) if !lora.modules_to_save.is_empty() => {
                let otherwise =
                    otherwise.map_or_else(String::new, |otherwise| format!(", or {otherwise}"));
                refused(format!(
                    "`modules_to_save` is {}, which cannot be used with {what}: the reference is the model with its adapter \
                     switched off, which would be the base with the embedding or head that is trained; {merge}{otherwise}",
                    lora.modules_to_save.join(", ")
                ))
            }
            _ => Ok(()),
        }
    }
}
