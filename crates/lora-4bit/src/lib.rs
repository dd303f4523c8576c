//! 4-bit NF4 weights, LoRA adapters, and the linear layer that combines them.
//!
//! The crate has two halves.
//!
//! File formats and host arithmetic, without tensors:
//!
//! - [`nf4`]: NF4 quantization, bit for bit as bitsandbytes does it on the CPU,
//! - [`dynamic_map`]: the 8-bit map that stores block scales in double quantization,
//! - [`bnb`]: the bitsandbytes 4-bit layout inside safetensors files,
//! - [`peft`]: PEFT LoRA adapter folders, read and written.
//!
//! Tensors on a burn device:
//!
//! - [`weight`]: a weight matrix, dense or NF4,
//! - [`linear`]: a linear layer with such a weight and any number of adapters,
//! - [`row_bounds`]: the largest products with the rows of a matrix, from a copy of it in 8 bits,
//! - [`device`]: whether a tensor is on the CPU.
//!
//! Sources: QLoRA (<https://arxiv.org/abs/2305.14314>), LoRA (<https://arxiv.org/abs/2106.09685>),
//! rsLoRA (<https://arxiv.org/abs/2312.03732>), and the file formats written by `bitsandbytes` 0.50 and `peft` 0.21.
//!
#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod adapter_selection;
pub mod bnb;
pub mod compile_only;
mod compute_dtype;
pub mod device;
mod dropout;
pub mod dynamic_map;
pub mod kernels;
pub mod linear;
mod lora;
pub mod nf4;
pub mod peft;
pub mod row_bounds;
pub mod training;
pub mod weight;

pub use burn;

pub use adapter_selection::{AdapterSelection, RowGroups, StackedRows};
pub use compute_dtype::ComputeDtype;
pub use dropout::Dropout;

pub use kernels::{Norm, inner_product, rms_norm};
pub use linear::{Linear, linear_residual, norm_qkv, norm_swiglu};
pub use lora::{Dora, LoraWeights};
pub use row_bounds::RowBounds;
pub use weight::{Nf4Weight, Weight};
