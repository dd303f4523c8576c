//! Quantizing a weight of a checkpoint, and the tensors that bitsandbytes stores for it.

use std::borrow::Cow;

use burn::tensor::DType;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView, View};

use super::error::BnbError;
use super::finite::check_finite;
use super::names::QUANT_STATE;
use crate::nf4::{Absmax, BLOCK_SIZE, NESTED_BLOCK_SIZE, Nf4Data};

/// Values per rayon job, enough to hide the cost of scheduling.
const VALUES_PER_JOB: usize = 1 << 16;

/// A tensor that owns its bytes, to be written by [`safetensors::tensor::serialize_to_file`].
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedTensor {
    /// Type of the values.
    pub dtype: Dtype,
    /// Number of values in each dimension.
    pub shape: Vec<usize>,
    /// The values, little-endian, row-major.
    pub data: Vec<u8>,
}

impl OwnedTensor {
    /// A one-dimensional F32 tensor.
    pub fn from_f32s(values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: vec![values.len()],
            data: values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        }
    }

    /// A U8 tensor of the given shape.
    pub fn from_bytes(data: Vec<u8>, shape: Vec<usize>) -> Self {
        Self {
            dtype: Dtype::U8,
            shape,
            data,
        }
    }
}

impl View for OwnedTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// The tensors under which bitsandbytes stores `data` as the weight `name` (with its `.weight`).
pub fn nf4_tensors(name: &str, data: &Nf4Data) -> Vec<(String, OwnedTensor)> {
    let packed = OwnedTensor::from_bytes(data.packed.clone(), vec![data.packed.len(), 1]);
    let part = |part: &str, tensor| (format!("{name}.{part}"), tensor);
    let mut tensors = vec![
        (name.to_owned(), packed),
        part("quant_map", OwnedTensor::from_f32s(&data.quant_map)),
    ];
    match &data.absmax {
        Absmax::Single(absmax) => tensors.push(part("absmax", OwnedTensor::from_f32s(absmax))),
        Absmax::Double {
            codes,
            map,
            nested_absmax,
            ..
        } => tensors.extend([
            part(
                "absmax",
                OwnedTensor::from_bytes(codes.clone(), vec![codes.len()]),
            ),
            part("nested_absmax", OwnedTensor::from_f32s(nested_absmax)),
            part("nested_quant_map", OwnedTensor::from_f32s(&map[..])),
        ]),
    }
    let state = quant_state_json(data).into_bytes();
    let num_bytes = state.len();
    tensors.push(part(
        &format!("{QUANT_STATE}nf4"),
        OwnedTensor::from_bytes(state, vec![num_bytes]),
    ));
    tensors
}

/// The JSON text of the quantization state, spaced as Python's `json.dumps` does.
fn quant_state_json(data: &Nf4Data) -> String {
    let dtype = match data.dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    let [rows, columns] = data.shape;
    let nested = match &data.absmax {
        Absmax::Single(_) => String::new(),
        Absmax::Double { offset, .. } => format!(
            r#", "nested_blocksize": {NESTED_BLOCK_SIZE}, "nested_dtype": "float32", "nested_offset": {:?}"#,
            f64::from(*offset)
        ),
    };
    format!(
        r#"{{"quant_type": "nf4", "blocksize": {BLOCK_SIZE}, "dtype": "{dtype}", "shape": [{rows}, {columns}]{nested}}}"#
    )
}

/// The values of a float tensor as f32, and its type; `None` if it is not BF16, F16 or F32.
pub fn decode_floats(dtype: Dtype, data: &[u8]) -> Option<(DType, Vec<f32>)> {
    match dtype {
        Dtype::BF16 => Some((
            DType::BF16,
            decode(data, |x| bf16::from_le_bytes(x).to_f32()),
        )),
        Dtype::F16 => Some((DType::F16, decode(data, |x| f16::from_le_bytes(x).to_f32()))),
        Dtype::F32 => Some((DType::F32, decode(data, f32::from_le_bytes))),
        _ => None,
    }
}

/// Converts `N` bytes at a time, long runs of them in parallel.
fn decode<const N: usize>(data: &[u8], convert: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let encoded = data.as_chunks().0;
    let mut values = vec![0.0; encoded.len()];
    values
        .par_chunks_mut(VALUES_PER_JOB)
        .zip(encoded.par_chunks(VALUES_PER_JOB))
        .for_each(|(values, encoded)| {
            for (value, bytes) in values.iter_mut().zip(encoded) {
                *value = convert(*bytes);
            }
        });
    values
}

/// Quantizes the weight `name`, a BF16, F16 or F32 matrix `[out, in]` of a checkpoint.
///
/// # Errors
///
/// If the tensor has another type or number of dimensions, or holds a value that is not finite.
pub fn quantize_tensor(
    name: &str,
    tensor: &TensorView<'_>,
    double_quant: bool,
) -> Result<Nf4Data, BnbError> {
    let shape = <[usize; 2]>::try_from(tensor.shape()).map_err(|_| BnbError::NotAMatrix {
        name: name.to_owned(),
        found: tensor.shape().to_vec(),
    })?;
    let (dtype, weight) =
        decode_floats(tensor.dtype(), tensor.data()).ok_or_else(|| BnbError::Dtype {
            name: name.to_owned(),
            expected: "BF16, F16 or F32",
            found: tensor.dtype(),
        })?;
    let all_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    if !weight.par_chunks(VALUES_PER_JOB).all(all_finite) {
        check_finite(name, &weight)?;
    }
    Ok(Nf4Data::quantize(&weight, shape, dtype, double_quant))
}
