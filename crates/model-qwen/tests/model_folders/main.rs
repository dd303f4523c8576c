//! Model folders as people bring them: the bundled model with other small files beside its weights.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod ends;
mod rope;
mod saved;
mod weights;

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use model_qwen::{
    ChatTemplate, GenerationConfig, GenerationConfigError, LoadError, LoadOptions, QwenModel,
    Tokenizer, bundled_model_dir,
};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// A copy of the bundled model. Its weights are linked where the file system can.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundled = bundled_model_dir().unwrap();
        for entry in fs::read_dir(&bundled).unwrap() {
            let from = entry.unwrap().path();
            let to = dir.path().join(from.file_name().unwrap());
            let is_large = to.extension().is_some_and(|end| end == "safetensors");
            if !is_large || fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).unwrap();
            }
        }
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Changes the fields of a JSON file.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let text = fs::read_to_string(self.file(name)).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        change(json.as_object_mut().unwrap());
        self.write(name, &json.to_string())
    }

    /// Sets one field of a JSON file.
    fn set(&self, name: &str, field: &str, value: Value) -> &Self {
        self.edit(name, |json| {
            json.insert(field.to_owned(), value);
        })
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        // The file may be a link to the bundled one.
        let _ = fs::remove_file(self.file(name));
        fs::create_dir_all(self.file(name).parent().unwrap()).unwrap();
        fs::write(self.file(name), text).unwrap();
        self
    }

    fn remove(&self, name: &str) -> &Self {
        fs::remove_file(self.file(name)).unwrap();
        self
    }

    fn load(&self) -> Result<QwenModel, LoadError> {
        QwenModel::load(self.path(), &LoadOptions::default(), &Device::flex())
    }

    /// Why the model cannot be loaded.
    fn refusal(&self) -> String {
        match self.load() {
            Ok(_) => panic!("the model was loaded"),
            Err(error) => error.to_string(),
        }
    }

    fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_dir(self.path()).unwrap()
    }

    fn template(&self) -> Option<ChatTemplate> {
        ChatTemplate::from_dir(self.path()).unwrap()
    }

    fn generation_config(&self) -> Result<GenerationConfig, GenerationConfigError> {
        GenerationConfig::from_dir(self.path(), &self.tokenizer(), self.template().as_ref())
    }
}
