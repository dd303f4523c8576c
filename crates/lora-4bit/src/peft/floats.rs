//! The values of a tensor.

use safetensors::tensor::TensorView;

use super::error::PeftError;
use crate::bnb::decode_floats;

pub(super) fn read_floats(name: &str, tensor: &TensorView<'_>) -> Result<Vec<f32>, PeftError> {
    let values = decode_floats(tensor.dtype(), tensor.data()).map(|(_, values)| values);
    let values = values.ok_or_else(|| PeftError::Dtype {
        name: name.to_owned(),
        found: tensor.dtype(),
    })?;
    // Rows of a batch share products on a GPU: one adapter's would reach others.
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(PeftError::NotFinite {
            name: name.to_owned(),
            index,
            found: values[index],
        }),
        None => Ok(values),
    }
}
