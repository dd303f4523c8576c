//! Files in JSON.

use std::fs;
use std::path::Path;

use serde_json::Value;

/// A JSON file, or what is wrong with it.
pub(super) fn read_json(path: &Path) -> Result<Value, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = fs::read(path).map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{name}: {error}"))
}
