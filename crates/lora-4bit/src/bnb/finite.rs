//! Values that a checkpoint may hold.

use super::error::BnbError;

/// One value that is none would spoil its block, or all blocks.
pub(super) fn check_finite(name: &str, values: &[f32]) -> Result<(), BnbError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(BnbError::NotFinite {
            name: name.to_owned(),
            found: values[index],
            index,
        }),
    }
}
