//! Putting LoRA adapters on a model and taking them off, while it serves.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorData};
use lora_4bit::LoraWeights;
use lora_4bit::peft::LoraAdapter;

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
    /// Whether the model has the layers that an adapter has matrices for.
    ///
    /// # Errors
    /// When the adapter was made for another architecture.
    pub fn check_adapter(&self, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        check_modules(adapter, &self.linear_shapes())
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
    /// As [`Self::check_adapter`].
    pub fn add_adapter(&mut self, slot: usize, adapter: &LoraAdapter) -> Result<(), AdapterError> {
        self.check_adapter(adapter)?;
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

/// Whether there is a layer for each of the adapter's matrices; `shapes` are in and out features by name.
pub(crate) fn check_modules(
    adapter: &LoraAdapter,
    shapes: &BTreeMap<String, [usize; 2]>,
) -> Result<(), AdapterError> {
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

/// `[rows, columns]` → `[columns, rows]`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| values.iter().skip(column).step_by(columns).copied())
        .collect()
}
