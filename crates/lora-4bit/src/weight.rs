//! A weight matrix on a device: dense, or in NF4.

use std::sync::Arc;

use burn::backend::{Dispatch, DispatchTensor, TensorMetadata};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::device::is_cpu;
use crate::kernels::{self, AbsmaxOperand, ComputeDtype, Nf4Operand, WeightOperand};
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
        kernels::product(x, self.operand(), compute)
    }

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

    /// The handles of the weight, for the kernels.
    pub(crate) fn operand(&self) -> WeightOperand<Dispatch> {
        match self {
            Self::Dense(weight) => WeightOperand::Dense(weight.clone().into_dispatch()),
            Self::Nf4(weight) => WeightOperand::Nf4 {
                weight: weight.operand(),
            },
        }
    }
}

/// An NF4 weight on a device.
///
/// Layout and arithmetic as in [`Nf4Data`], which can be made from it and into it without loss.
#[derive(Clone, Debug)]
pub struct Nf4Weight {
    /// Shared, so that clones are small and cheap.
    operand: Arc<Nf4Operand<Dispatch>>,
    /// Type of the weight before quantization.
    dtype: DType,
}

impl Nf4Weight {
    /// Uploads `data`.
    pub fn from_data(data: &Nf4Data, device: &Device) -> Self {
        let absmax = match &data.absmax {
            Absmax::Single(absmax) => AbsmaxOperand::Single(floats(absmax, device).into_dispatch()),
            Absmax::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => AbsmaxOperand::Double {
                codes: bytes(codes, device).into_dispatch(),
                map: floats(&map[..], device).into_dispatch(),
                nested_absmax: floats(nested_absmax, device).into_dispatch(),
                offset: *offset,
            },
        };
        let operand = Nf4Operand {
            packed: bytes(&data.packed, device).into_dispatch(),
            quant_map: floats(&data.quant_map, device).into_dispatch(),
            absmax,
            shape: data.shape,
        };
        Self {
            operand: Arc::new(operand),
            dtype: data.dtype,
        }
    }

    /// Reads the weight back.
    pub fn to_data(&self) -> Nf4Data {
        let Nf4Operand {
            packed,
            quant_map,
            absmax,
            shape,
        } = &*self.operand;
        let num_values = shape[0] * shape[1];
        let absmax = match absmax {
            AbsmaxOperand::Single(absmax) => Absmax::Single(read_floats(absmax)),
            AbsmaxOperand::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => {
                let mut levels = Box::new([0.0; 256]);
                levels.copy_from_slice(&read_floats(map));
                Absmax::Double {
                    codes: read_bytes(codes, num_values.div_ceil(BLOCK_SIZE)),
                    map: levels,
                    nested_absmax: read_floats(nested_absmax),
                    offset: *offset,
                }
            }
        };
        let mut levels = [0.0; 16];
        levels.copy_from_slice(&read_floats(quant_map));
        Nf4Data {
            packed: read_bytes(packed, num_values.div_ceil(2)),
            absmax,
            quant_map: levels,
            shape: *shape,
            dtype: self.dtype,
        }
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.operand.shape
    }

    /// Type of the weight before quantization.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the weight lives.
    pub fn device(&self) -> Device {
        Tensor::<1, Int>::from_dispatch(self.operand.packed.clone()).device()
    }

    /// Bytes that codes, scales and maps occupy on the device.
    pub fn num_bytes(&self) -> usize {
        let size = |tensor: &DispatchTensor| tensor.shape().num_elements() * tensor.dtype().size();
        let Nf4Operand {
            packed,
            quant_map,
            absmax,
            ..
        } = &*self.operand;
        let absmax = match absmax {
            AbsmaxOperand::Single(absmax) => size(absmax),
            AbsmaxOperand::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => size(codes) + size(map) + size(nested_absmax) + size_of_val(offset),
        };
        size(packed) + size(quant_map) + absmax
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

    /// The handles of the weight, for the kernels.
    pub(crate) fn operand(&self) -> Nf4Operand<Dispatch> {
        (*self.operand).clone()
    }
}

fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, DType::F32))
}

/// Bytes on a device: as U8 on the CPU; on a GPU as I32 words of four bytes each, the first in the low bits, to which zeros
/// are added until there are full vectors of 16 bytes.
fn bytes(values: &[u8], device: &Device) -> Tensor<1, Int> {
    if is_cpu(device) {
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

fn read_floats(tensor: &DispatchTensor) -> Vec<f32> {
    let tensor = Tensor::<1>::from_dispatch(tensor.clone());
    tensor.into_data().iter::<f32>().collect()
}

fn read_bytes(tensor: &DispatchTensor, len: usize) -> Vec<u8> {
    let tensor = Tensor::<1, Int>::from_dispatch(tensor.clone());
    let (dtype, data) = (tensor.dtype(), tensor.into_data());
    if dtype == DType::U8 {
        return data.iter::<u8>().collect();
    }
    data.iter::<i32>()
        .flat_map(i32::to_le_bytes)
        .take(len)
        .collect()
}
