//! A weight matrix on a device: dense, or in NF4.

use std::sync::Arc;

use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::kernels::{self, AbsmaxOperand, ComputeDtype, Nf4Operand};
use crate::nf4::{Absmax, BLOCK_SIZE, Nf4Data};

/// The weight of a [`Linear`](crate::linear::Linear) layer, `[out, in]` as in checkpoints.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a tensor's size depends on the backends that are compiled in; there are few weights"
)]
pub enum Weight {
    /// f32, bf16 or f16: `[out, in]`.
    Dense(Tensor<2>),
    /// 4 bits a value and scales.
    Nf4(Nf4Weight),
}

impl Weight {
    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Nf4(weight) => weight.shape(),
        }
    }

    /// Bytes that the weight occupies on its device.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.shape().num_elements() * weight.dtype().size(),
            Self::Nf4(weight) => weight.num_bytes(),
        }
    }

    /// Where the weight lives.
    pub fn device(&self) -> Device {
        match self {
            Self::Dense(weight) => weight.device(),
            Self::Nf4(weight) => weight.device(),
        }
    }

    /// The whole matrix in f32: `[out, in]`.
    pub fn dequantize(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone().cast(DType::F32),
            Self::Nf4(weight) => weight.dequantize(),
        }
    }

    /// `x · weightᵀ`.
    ///
    /// A frozen weight is a constant: the gradient with respect to `x` is computed from the weight as it is stored.
    /// A dense weight that takes part in the autodiff graph is multiplied with burn's own matmul and gets a gradient.
    ///
    /// # Shapes
    ///
    /// `x [tokens, in]` → `[tokens, out]`
    pub fn forward(&self, x: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
        match self {
            Self::Dense(weight) if weight.is_tracked() => {
                let weight = weight.clone().cast(x.dtype()); // [out, in]
                constant_like(x, &weight).matmul(weight.transpose())
            }
            Self::Dense(weight) => kernels::dense_linear(x, weight.clone(), compute),
            Self::Nf4(weight) => weight.forward(x, compute),
        }
    }
}

impl Weight {
    /// `dy · weight`, the gradient of [`forward`](Self::forward) with respect to `x`.
    ///
    /// # Shapes
    ///
    /// `dy [tokens, out]` → `[tokens, in]`
    pub fn forward_t(&self, dy: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
        match self {
            Self::Dense(weight) => kernels::dense_linear_t(dy, weight.clone(), compute),
            Self::Nf4(weight) => weight.forward_t(dy, compute),
        }
    }
}

/// An NF4 weight on a device.
///
/// Layout and arithmetic as in [`Nf4Data`], which can be made from it and into it without loss.
#[derive(Clone, Debug)]
pub struct Nf4Weight {
    /// Shared, so that clones are small and cheap.
    tensors: Arc<Nf4Tensors>,
    shape: [usize; 2],
    dtype: DType,
}

#[derive(Debug)]
struct Nf4Tensors {
    /// `[ceil(out * in / 2)]` bytes, see [`bytes`]
    packed: Tensor<1, Int>,
    /// `[16]`
    quant_map: Tensor<1>,
    /// `[blocks]`, or with double quantization `[ceil(blocks / 256)]`
    absmax: Tensor<1>,
    nested: Option<NestedTensors>,
}

/// What double quantization adds.
#[derive(Debug)]
struct NestedTensors {
    /// `[blocks]` bytes, see [`bytes`]
    codes: Tensor<1, Int>,
    /// `[256]`
    map: Tensor<1>,
    offset: f32,
}

impl Nf4Weight {
    /// Uploads `data`.
    pub fn from_data(data: &Nf4Data, device: &Device) -> Self {
        let (absmax, nested) = match &data.absmax {
            Absmax::Single(absmax) => (absmax, None),
            Absmax::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => {
                let nested = NestedTensors {
                    codes: bytes(codes, device),
                    map: floats(&map[..], device),
                    offset: *offset,
                };
                (nested_absmax, Some(nested))
            }
        };
        let tensors = Nf4Tensors {
            packed: bytes(&data.packed, device),
            quant_map: floats(&data.quant_map, device),
            absmax: floats(absmax, device),
            nested,
        };
        Self {
            tensors: Arc::new(tensors),
            shape: data.shape,
            dtype: data.dtype,
        }
    }

    /// Reads the weight back.
    pub fn to_data(&self) -> Nf4Data {
        let tensors = &self.tensors;
        let absmax = read_floats(&tensors.absmax);
        let num_values = self.shape[0] * self.shape[1];
        let absmax = match &tensors.nested {
            None => Absmax::Single(absmax),
            Some(nested) => {
                let mut map = Box::new([0.0; 256]);
                map.copy_from_slice(&read_floats(&nested.map));
                Absmax::Double {
                    codes: read_bytes(&nested.codes, num_values.div_ceil(BLOCK_SIZE)),
                    map,
                    nested_absmax: absmax,
                    offset: nested.offset,
                }
            }
        };
        let mut quant_map = [0.0; 16];
        quant_map.copy_from_slice(&read_floats(&tensors.quant_map));
        Nf4Data {
            packed: read_bytes(&tensors.packed, num_values.div_ceil(2)),
            absmax,
            quant_map,
            shape: self.shape,
            dtype: self.dtype,
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Type of the weight before quantization.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weight lives.
    pub fn device(&self) -> Device {
        self.tensors.packed.device()
    }

    /// Bytes that codes, scales and maps occupy on the device.
    pub fn num_bytes(&self) -> usize {
        let ints = |t: &Tensor<1, Int>| t.dims()[0] * t.dtype().size();
        let floats = |t: &Tensor<1>| t.dims()[0] * t.dtype().size();
        let tensors = &self.tensors;
        let nested = tensors.nested.as_ref().map_or(0, |nested| {
            ints(&nested.codes) + floats(&nested.map) + size_of_val(&nested.offset)
        });
        ints(&tensors.packed) + floats(&tensors.quant_map) + floats(&tensors.absmax) + nested
    }

    /// The whole matrix in f32: `[out, in]`.
    pub fn dequantize(&self) -> Tensor<2> {
        kernels::nf4_dequantize(self.operand())
    }

    /// `x · weightᵀ`: `[tokens, in]` → `[tokens, out]`.
    pub fn forward(&self, x: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
        kernels::nf4_linear(x, self.operand(), compute)
    }

    /// `dy · weight`, the gradient of [`forward`](Self::forward): `[tokens, out]` → `[tokens, in]`.
    pub fn forward_t(&self, dy: Tensor<2>, compute: ComputeDtype) -> Tensor<2> {
        kernels::nf4_linear_t(dy, self.operand(), compute)
    }

    /// The tensors, for the kernels.
    pub(crate) fn operand(&self) -> Nf4Operand<Dispatch> {
        let tensors = &self.tensors;
        let absmax = tensors.absmax.clone().into_dispatch();
        let absmax = match &tensors.nested {
            None => AbsmaxOperand::Single(absmax),
            Some(nested) => AbsmaxOperand::Double {
                codes: nested.codes.clone().into_dispatch(),
                map: nested.map.clone().into_dispatch(),
                nested_absmax: absmax,
                offset: nested.offset,
            },
        };
        Nf4Operand {
            packed: tensors.packed.clone().into_dispatch(),
            quant_map: tensors.quant_map.clone().into_dispatch(),
            absmax,
            shape: self.shape,
        }
    }
}

/// `tensor` as a constant of the autodiff graph that `other` belongs to, unchanged if there is none.
pub(crate) fn constant_like<const D: usize, const E: usize>(
    tensor: Tensor<D>,
    other: &Tensor<E>,
) -> Tensor<D> {
    if tensor.is_autodiff() {
        return tensor;
    }
    match other.gradient_checkpointing_strategy() {
        Some(strategy) => tensor
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy),
        None => tensor,
    }
}

fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, DType::F32))
}

/// Bytes on a device: as U8 on the CPU; on a GPU as I32 words of four bytes each, the first in the low bits, to which zeros
/// are added until there are full vectors of 16 bytes.
fn bytes(values: &[u8], device: &Device) -> Tensor<1, Int> {
    if matches!(device.as_dispatch(), DispatchDevice::Flex(_)) {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        return Tensor::from_data(data, (device, DType::U8));
    }
    let mut words: Vec<i32> = (values.chunks(4))
        .map(|four| {
            let mut word = [0; 4];
            word[..four.len()].copy_from_slice(four);
            i32::from_le_bytes(word)
        })
        .collect();
    words.resize(words.len().next_multiple_of(4), 0);
    let len = words.len();
    Tensor::from_data(TensorData::new(words, [len]), (device, DType::I32))
}

fn read_floats(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

fn read_bytes(tensor: &Tensor<1, Int>, len: usize) -> Vec<u8> {
    let data = tensor.to_data();
    if tensor.dtype() == DType::U8 {
        return data.iter::<u8>().collect();
    }
    data.iter::<i32>()
        .flat_map(i32::to_le_bytes)
        .take(len)
        .collect()
}
