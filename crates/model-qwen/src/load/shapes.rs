//! A model folder by names and shapes alone: no weight is read.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use lora_4bit::bnb;
use lora_4bit::peft::LoraAdapter;

use super::Loader;
use super::error::LoadError;
use super::options::LoadOptions;
use crate::adapter::{AdapterError, check_modules, told_missing};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::QwenConfig;
use crate::model::linear_features;

/// The linear layers that a model folder has, by `config.json` and the headers of its weight files.
#[derive(Clone, Debug)]
pub struct FolderShapes {
    /// In and out features by name.
    linears: BTreeMap<String, [usize; 2]>,
    /// Rows and columns of embedding and head.
    embedding: [usize; 2],
}

impl FolderShapes {
    /// Looks at the folder `dir`. lm_head may be missing, as in a model for embeddings.
    ///
    /// # Errors
    /// When a file is missing or broken, or the files do not fit each other.
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let config = QwenConfig::load(dir)?;
        let checkpoint = super::open(dir, &config)?;
        let options = LoadOptions {
            lm_head: false,
            ..LoadOptions::default()
        };
        let loader = Loader {
            checkpoint: &checkpoint,
            options: &options,
            device: &Device::flex(),
            keeps_pages: true,
            progress: &|_, _| {},
        };
        loader.check_names(dir, &config)?;
        let mut linears = BTreeMap::new();
        for layer in 0..config.num_hidden_layers {
            for (module, [inputs, outputs]) in linear_features(&config) {
                let name = format!("model.layers.{layer}.{module}");
                check_weight(&checkpoint, &name, [outputs, inputs])?;
                linears.insert(name, [inputs, outputs]);
            }
        }
        Ok(Self {
            linears,
            embedding: [config.vocab_size, config.hidden_size],
        })
    }

    /// Layers that the adapter targets and has no matrices of, as a sentence; `None` if there is none.
    pub fn missing(&self, adapter: &LoraAdapter) -> Option<String> {
        told_missing(adapter, &self.linears)
    }

    /// Whether the model has the layers that an adapter has matrices for; see [`Self::missing`], too.
    ///
    /// # Errors
    /// When the adapter was made for another architecture.
    pub fn check_adapter(&self, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        check_modules(adapter, &self.linears, self.embedding)
    }
}

/// Refuses a weight that is missing or has another shape, dense or in 4 bits.
fn check_weight(
    checkpoint: &Checkpoint,
    module: &str,
    expected: [usize; 2],
) -> Result<(), LoadError> {
    let name = checkpoint.stored(&format!("{module}.weight"));
    let dir = || checkpoint.dir().to_owned();
    let nf4 = bnb::read_nf4_shape(&|part| checkpoint.view(part), &name)?;
    let found = match (nf4, checkpoint.view(&name)) {
        (Some((shape, _)), _) => shape.to_vec(),
        (None, Some(view)) => view.shape().to_vec(),
        (None, None) => return Err(CheckpointError::Missing { dir: dir(), name }.into()),
    };
    match found == expected {
        true => Ok(()),
        false => Err(CheckpointError::Shape {
            dir: dir(),
            name,
            expected: expected.to_vec(),
            found,
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundled::bundled_model_dir;
    use crate::model::QwenModel;

    /// The shapes without the weights are those of the loaded model.
    #[test]
    fn shapes_are_those_of_the_model() {
        let dir = bundled_model_dir().unwrap();
        let model = QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
        let shapes = FolderShapes::open(&dir).unwrap();
        assert_eq!(shapes.linears, model.linear_shapes());
    }
}
