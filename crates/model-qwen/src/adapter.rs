//! Putting LoRA adapters on a model and taking them off, while it serves.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device, Tensor, TensorData};
use lora_4bit::peft::{CONFIG_FILE, LoraAdapter, SavedModule, WEIGHTS_FILE};
use lora_4bit::{Linear, LoraWeights, Weight};

use crate::model::QwenModel;

/// Why an adapter cannot be put on a model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The adapter has matrices for a layer that the model has not.
    #[error("adapter module `{module}`: the model has no such linear layer")]
    NoSuchModule {
        /// The module's name in the adapter.
        module: String,
    },
    /// The adapter brings weights that requests cannot choose: those of the embedding and the head are one for all.
    #[error(
        "the adapter brings the whole weight of {modules}, expected one that changes the linear layers of the \
         decoder only: write a model of it by `trainer-sft merge --adapter FOLDER --output MODEL`, and load that"
    )]
    Saved {
        /// The modules.
        modules: String,
    },
    /// The weight of an embedding or a head is made for another vocabulary, mostly one that has grown.
    #[error(
        "adapter module `{module}`: the adapter's vocabulary has {found} rows, the base model's {expected}: resize the base model \
         first (transformers' resize_token_embeddings)"
    )]
    Vocabulary {
        /// The module's name in the adapter.
        module: String,
        /// Rows of the model's weight.
        expected: usize,
        /// Rows of the adapter's.
        found: usize,
    },
    /// The weight of an embedding or a head is made for another width.
    #[error(
        "adapter module `{module}`: expected a weight of shape {expected:?}, found {found:?}; is it an adapter of another base \
         model?"
    )]
    SavedShape {
        /// The module's name in the adapter.
        module: String,
        /// `[vocab, hidden]` of the model.
        expected: [usize; 2],
        /// The shape in the adapter.
        found: [usize; 2],
    },
    /// The matrices are made for another width.
    #[error(
        "adapter module `{module}`: expected in/out features {expected:?}, found {found:?}; \
         is it an adapter of another base model?"
    )]
    Shape {
        /// The module's name in the adapter.
        module: String,
        /// in and out features of the model's layer.
        expected: [usize; 2],
        /// in and out features of the adapter.
        found: [usize; 2],
    },
}

impl QwenModel {
    /// Whether the model has the layers that an adapter has matrices for. Layers that the adapter targets and has no matrices of are
    /// named in a warning.
    ///
    /// # Errors
    /// When the adapter was made for another architecture.
    pub fn check_adapter(&self, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        check_and_warn(adapter, &self.linear_shapes(), self.embedding_shape())
    }

    /// `[vocab, hidden]` of embedding and head.
    fn embedding_shape(&self) -> [usize; 2] {
        [self.config.vocab_size, self.config.hidden_size]
    }

    /// Whether the adapter leaves embedding and head as they are, so that requests with and without it share them.
    ///
    /// # Errors
    /// When it brings weights of its own for them.
    pub fn check_shared(adapter: &LoraAdapter) -> Result<(), AdapterError> {
        let modules: Vec<&str> = adapter.saved.keys().map(String::as_str).collect();
        match modules.is_empty() {
            true => Ok(()),
            false => Err(AdapterError::Saved {
                modules: modules.join(" and "),
            }),
        }
    }

    /// Puts the weights of an adapter in the place of the model's own embedding and head, in f32. One of them that is not saved
    /// keeps its weight, also where both were the same. What is computed then is of this adapter alone.
    pub fn replace_saved(&mut self, saved: &BTreeMap<String, SavedModule>) {
        let upload = |module: &SavedModule, device: &Device| {
            let data = TensorData::new(module.weight.clone(), module.shape);
            Tensor::<2>::from_data(data, (device, DType::F32))
        };
        if let Some(module) = saved.get(EMBED_TOKENS) {
            self.embed_tokens = upload(module, &self.embed_tokens.device());
        }
        if let Some(module) = saved.get(LM_HEAD) {
            let mut head = Linear::new(Weight::Dense(upload(module, &self.device())), None);
            (head.id, head.compute) = (self.lm_head.id, self.lm_head.compute);
            self.lm_head = head;
            self.int8_lm_head = None;
        }
        if !saved.is_empty() {
            self.config.tie_word_embeddings = false;
        }
    }

    /// In and out features of the linear layers of the decoder, by name.
    pub(crate) fn linear_shapes(&self) -> BTreeMap<String, [usize; 2]> {
        let linears = self.linears().into_iter();
        linears
            .map(|(name, linear)| (name, [linear.in_features(), linear.out_features()]))
            .collect()
    }

    /// Puts an adapter into `slot` of every linear layer it has matrices for; on an error nothing
    /// has changed.
    ///
    /// # Errors
    /// As [`Self::check_adapter`] and [`Self::check_shared`].
    pub fn add_adapter(&mut self, slot: usize, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        Self::check_shared(adapter)?;
        check_modules(adapter, &self.linear_shapes(), self.embedding_shape())?;
        self.remove_adapter(slot);
        let device = self.device();
        for (module, m) in &adapter.modules {
            let upload = |values: &[f32], shape: [usize; 2]| {
                let data = TensorData::new(values.to_vec(), shape);
                Tensor::<2>::from_data(data, (&device, DType::F32))
            };
            let mut weights = LoraWeights {
                a: upload(&m.a, [m.r, m.in_features]),
                b_t: upload(&transposed(&m.b, m.r), [m.r, m.out_features]),
                scaling: adapter.config.scaling_for(module) as f32,
                dora: None,
            };
            if let Some(linear) = self.linear_mut(module) {
                if let Some(magnitude) = &m.magnitude {
                    let data = TensorData::new(magnitude.clone(), [m.out_features]);
                    let magnitude = Tensor::<1>::from_data(data, (&device, DType::F32));
                    weights = weights.with_magnitude(&linear.weight, Some(magnitude));
                }
                linear.set_adapter(slot, Some(weights));
            }
        }
        Ok(())
    }

    /// Empties `slot` in every layer.
    pub fn remove_adapter(&mut self, slot: usize) {
        self.linears_mut()
            .for_each(|linear| linear.set_adapter(slot, None));
    }
}

/// Name of the embedding in an adapter.
pub(crate) const EMBED_TOKENS: &str = "model.embed_tokens";
/// Name of the head in an adapter.
pub(crate) const LM_HEAD: &str = "lm_head";

/// Whether there is a layer for each of the adapter's matrices; `shapes` are in and out features by name, `embedding` is the
/// shape of embedding and head.
pub(crate) fn check_modules(
    adapter: &LoraAdapter,
    shapes: &BTreeMap<String, [usize; 2]>,
    embedding: [usize; 2],
) -> Result<(), AdapterError> {
    let mut saved = adapter.saved.iter();
    if let Some((module, saved)) = saved.find(|(_, saved)| saved.shape != embedding) {
        let module = module.clone();
        let ([expected, width], [found, found_width]) = (embedding, saved.shape);
        return Err(match width == found_width {
            true => AdapterError::Vocabulary {
                module,
                expected,
                found,
            },
            false => AdapterError::SavedShape {
                module,
                expected: embedding,
                found: saved.shape,
            },
        });
    }
    for (module, matrices) in &adapter.modules {
        let Some(&expected) = shapes.get(module) else {
            return Err(AdapterError::NoSuchModule {
                module: module.clone(),
            });
        };
        let found = [matrices.in_features, matrices.out_features];
        if expected != found {
            return Err(AdapterError::Shape {
                module: module.clone(),
                expected,
                found,
            });
        }
    }
    Ok(())
}

/// [`check_modules`], with a warning of layers that the adapter's configuration targets and its file has no matrices of, as PEFT
/// does: they work as in the base model. Such a file is often not whole.
pub(crate) fn check_and_warn(
    adapter: &LoraAdapter,
    shapes: &BTreeMap<String, [usize; 2]>,
    embedding: [usize; 2],
) -> Result<(), AdapterError> {
    check_modules(adapter, shapes, embedding)?;
    if let Some(missing) = told_missing(adapter, shapes) {
        tracing::warn!("{missing}");
    }
    Ok(())
}

/// What such a warning says.
pub(crate) fn told_missing(
    adapter: &LoraAdapter,
    shapes: &BTreeMap<String, [usize; 2]>,
) -> Option<String> {
    let missing = missing_modules(adapter, shapes);
    let first = missing.first()?;
    let more = match missing.len() {
        1 => String::new(),
        number => format!(" and {} more", number - 1),
    };
    Some(format!(
        "{WEIGHTS_FILE} has no matrices of {first}{more}, which {CONFIG_FILE} targets: is the file whole?"
    ))
}

/// The model's linear layers that the adapter targets and has no matrices of.
fn missing_modules<'m>(
    adapter: &LoraAdapter,
    shapes: &'m BTreeMap<String, [usize; 2]>,
) -> Vec<&'m str> {
    // Patterns that don't compile were refused when the adapter was read.
    let Ok(matcher) = adapter.config.matcher() else {
        return Vec::new();
    };
    let modules = shapes.keys().map(String::as_str);
    let is_missing =
        |module: &&str| matcher.targets(module) && !adapter.modules.contains_key(*module);
    modules.filter(is_missing).collect()
}

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| values.iter().skip(column).step_by(columns).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use lora_4bit::peft::{LoraConfig, LoraMatrices, TargetModules};

    use super::*;

    #[test]
    fn layers_that_an_adapter_targets_and_lacks_are_found() {
        let name = |layer: usize, module: &str| format!("model.layers.{layer}.{module}");
        let (q, up) = ("self_attn.q_proj", "mlp.up_proj");
        let names = (0..3).flat_map(|layer| [name(layer, q), name(layer, up)]);
        let shapes: BTreeMap<_, _> = names.map(|name| (name, [4, 4])).collect();
        let matrices = LoraMatrices {
            a: vec![0.0; 4],
            b: vec![0.0; 4],
            r: 1,
            in_features: 4,
            out_features: 4,
            magnitude: None,
        };
        let adapter = |targets: &[&str], modules: &[String]| LoraAdapter {
            config: LoraConfig {
                r: 1,
                target_modules: TargetModules::List(targets.iter().map(|&t| t.into()).collect()),
                ..LoraConfig::default()
            },
            modules: modules
                .iter()
                .map(|module| (module.clone(), matrices.clone()))
                .collect(),
            saved: BTreeMap::new(),
        };
        let whole = adapter(&["q_proj"], &[name(0, q), name(1, q), name(2, q)]);
        assert_eq!(missing_modules(&whole, &shapes), [""; 0]);
        let cut = adapter(
            &["q_proj", "up_proj"],
            &[name(0, q), name(1, q), name(0, up)],
        );
        let missing = [name(1, up), name(2, up), name(2, q)];
        assert_eq!(missing_modules(&cut, &shapes), missing);
        // Layers that the configuration leaves out are not missing.
        let mut few = adapter(&["q_proj"], &[name(1, q)]);
        few.config.layers_to_transform = Some(lora_4bit::peft::OneOrMany::Many(vec![1]));
        assert_eq!(missing_modules(&few, &shapes), [""; 0]);
    }
}
