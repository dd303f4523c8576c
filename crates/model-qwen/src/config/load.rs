//! Reading `config.json`.

use std::fs;
use std::path::Path;

use super::check;
use super::{ConfigError, QwenConfig, quantization};
use crate::json_file::JsonFile;

impl QwenConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// When the file is missing, is not JSON, or describes something that is not a dense Qwen model.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        Self::load_with_notes(dir).map(|(config, _)| config)
    }

    /// [`Self::load`], with what the user should know about the file.
    pub(crate) fn load_with_notes(dir: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let path = dir.join("config.json");
        fs::metadata(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        let file = JsonFile::read(path)?;
        let read = check::read(&file)?;
        quantization::check_files(dir, &file)?;
        Ok(read)
    }

    /// Parses the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`QwenConfig::load`], but for reading.
    pub fn from_json(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let file = JsonFile::parse(text, path.to_owned())?;
        Ok(check::read(&file)?.0)
    }
}
