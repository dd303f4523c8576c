//! Modules whose whole weight an adapter brings: those of `modules_to_save`, and those that PEFT saves beside the matrices because
//! the vocabulary has grown (`save_embedding_layers`).

use std::collections::BTreeMap;

use safetensors::tensor::SafeTensors;

use super::config::LoraConfig;
use super::error::PeftError;
use super::floats::read_floats;
use super::names::PREFIX;
use super::savable::{SAVABLE, short_names};

/// The weight of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedModule {
    /// Row-major.
    pub weight: Vec<f32>,
    /// `[vocab, hidden]`.
    pub shape: [usize; 2],
}

/// Whether a configuration has a module saved.
fn is_listed(config: &LoraConfig, (short, module): (&str, &str)) -> bool {
    let mut names = config.modules_to_save.iter();
    names.any(|name| name == short || name == module)
}

/// The name of a module's tensor.
pub(super) fn saved_name(module: &str) -> String {
    format!("{PREFIX}{module}.weight")
}

/// The saved modules of a file, by their names in the model. The names of all of them are `modules_to_save` then. Where the
/// configuration names none, they are the model's own, and an embedding that is also the head stays both.
pub(super) fn read_saved(
    config: &mut LoraConfig,
    tensors: &SafeTensors<'_>,
) -> Result<BTreeMap<String, SavedModule>, PeftError> {
    let mut saved = BTreeMap::new();
    for names in SAVABLE {
        let name = saved_name(names.1);
        let tensor = match tensors.tensor(&name) {
            Ok(tensor) => tensor,
            Err(_) if is_listed(config, names) => return Err(PeftError::NoSavedModule(name)),
            Err(_) => continue,
        };
        let [rows, width] = *tensor.shape() else {
            let found = tensor.shape().to_vec();
            return Err(PeftError::SavedShape { name, found });
        };
        let module = SavedModule {
            weight: read_floats(&name, &tensor)?,
            shape: [rows, width],
        };
        saved.insert(names.1.to_owned(), module);
    }
    config.ensure_weight_tying |= config.modules_to_save.is_empty() && !saved.is_empty();
    let found: Vec<String> = saved.keys().cloned().collect();
    config.modules_to_save = short_names(&found);
    Ok(saved)
}
