//! What can be wrong with a bitsandbytes weight.

use safetensors::tensor::Dtype;

/// Why the parts of a bitsandbytes weight cannot be read.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum BnbError {
    /// A part of the weight is not in the file.
    #[error(
        "tensor `{0}` is missing, although the other parts of this bitsandbytes weight are there"
    )]
    Missing(String),
    /// A part has another type than its role asks for.
    #[error("tensor `{name}` has dtype {found}, expected {expected}")]
    Dtype {
        /// Name of the tensor.
        name: String,
        /// The types that would be right.
        expected: &'static str,
        /// The type in the file.
        found: Dtype,
    },
    /// A part has another size than the shape of the weight asks for.
    #[error("tensor `{name}` has {found} {unit}, expected {expected}{reason}")]
    Length {
        /// Name of the tensor.
        name: String,
        /// What is counted: `bytes` or `values`.
        unit: &'static str,
        /// The right number.
        expected: usize,
        /// The number in the file.
        found: usize,
        /// What the expectation follows from.
        reason: String,
    },
    /// The quantization state is not the JSON that bitsandbytes writes.
    #[error("tensor `{name}` is not a bitsandbytes quantization state: {reason}")]
    QuantState {
        /// Name of the tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weight is quantized in a way that is not implemented.
    #[error("weight `{name}` has {field} {found}, supported: {supported}")]
    Unsupported {
        /// Name of the weight.
        name: String,
        /// The property in question.
        field: &'static str,
        /// Its value in the file.
        found: String,
        /// The values that are supported.
        supported: &'static str,
    },
    /// A weight to be quantized is not a matrix.
    #[error("weight `{name}` has shape {found:?}, expected [out, in]")]
    NotAMatrix {
        /// Name of the weight.
        name: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A weight to be quantized, or a tensor of scales or levels, holds a NaN or an infinity, which would spoil whole blocks.
    #[error("tensor `{name}` has the value {found} at index {index}, expected finite numbers")]
    NotFinite {
        /// Name of the tensor.
        name: String,
        /// The value.
        found: f32,
        /// Its position in row-major order.
        index: usize,
    },
}
