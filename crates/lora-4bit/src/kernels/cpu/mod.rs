//! Kernels of burn's flex backend.
//!
//! Weights are read as they are stored, a tile at a time, and never copied whole: bf16 and f16 are widened in registers
//! or, when a tile serves many rows of `x`, in a scratch buffer that fits the cache; NF4 codes are looked up in a table
//! of 16 levels that lies in a register. Products are accumulated in f32.
//!
//! - `forward`: `x · wᵀ`,
//! - `transposed`: `dy · w`,
//! - `nf4`: ranges of an NF4 weight,
//! - `simd`: the inner loops for AVX-512, AVX2, NEON and any other CPU.

mod forward;
mod nf4;
mod simd;
#[cfg(test)]
mod tests;
mod transposed;

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Bytes, DType, Shape};
use half::{bf16, f16};

use self::nf4::Nf4Matrix;
use self::simd::Kernels;
use super::{LinearOps, Nf4Operand, naive};

impl LinearOps for Flex {
    fn dense_linear(x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        let Some((x, w)) = operands(&x, &w) else {
            return naive::dense_linear::<Self>(x, w);
        };
        product(&x, w.layout().shape()[0], |x, shape, y| {
            let kernels = Kernels::get();
            match w.dtype() {
                DType::BF16 => forward::dense(kernels, x, w.storage::<bf16>(), shape, y),
                DType::F16 => forward::dense(kernels, x, w.storage::<f16>(), shape, y),
                _ => forward::dense(kernels, x, w.storage::<f32>(), shape, y),
            }
        })
    }

    fn dense_linear_t(dy: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        let Some((dy, w)) = operands(&dy, &w) else {
            return naive::dense_linear_t::<Self>(dy, w);
        };
        product(&dy, w.layout().shape()[1], |dy, shape, dx| {
            let kernels = Kernels::get();
            match w.dtype() {
                DType::BF16 => transposed::dense(kernels, dy, w.storage::<bf16>(), shape, dx),
                DType::F16 => transposed::dense(kernels, dy, w.storage::<f16>(), shape, dx),
                _ => transposed::dense(kernels, dy, w.storage::<f32>(), shape, dx),
            }
        })
    }

    fn nf4_linear(x: FloatTensor<Self>, w: Nf4Operand<Self>) -> FloatTensor<Self> {
        match (activations(&x), Nf4Matrix::new(&w)) {
            (Some(x), Some(matrix)) => product(&x, w.shape[0], |x, shape, y| {
                forward::nf4(Kernels::get(), x, &matrix, shape, y);
            }),
            _ => naive::nf4_linear::<Self>(x, w),
        }
    }

    fn nf4_linear_t(dy: FloatTensor<Self>, w: Nf4Operand<Self>) -> FloatTensor<Self> {
        match (activations(&dy), Nf4Matrix::new(&w)) {
            (Some(dy), Some(matrix)) => product(&dy, w.shape[1], |dy, shape, dx| {
                transposed::nf4(Kernels::get(), dy, &matrix, shape, dx);
            }),
            _ => naive::nf4_linear_t::<Self>(dy, w),
        }
    }
}

/// The sizes of a product: `left [m, inner]`, `right [inner, columns]` → `[m, columns]`.
#[derive(Clone, Copy)]
struct ProductShape {
    m: usize,
    inner: usize,
    columns: usize,
}

/// Runs `kernel` on the values of `left` and an output of zeros, unless one of the sizes is zero.
fn product(
    left: &FlexTensor,
    columns: usize,
    kernel: impl FnOnce(&[f32], ProductShape, &mut [f32]),
) -> FlexTensor {
    let [m, inner] = left.layout().shape().dims();
    let mut y = vec![0f32; m * columns];
    if m * inner * columns > 0 {
        let shape = ProductShape { m, inner, columns };
        kernel(left.storage::<f32>(), shape, &mut y);
    }
    let layout = Layout::contiguous(Shape::new([m, columns]));
    FlexTensor::new(Bytes::from_elems(y), layout, DType::F32)
}

/// Both operands contiguous, if the kernels know their types.
fn operands(x: &FlexTensor, w: &FlexTensor) -> Option<(FlexTensor, FlexTensor)> {
    let known = matches!(w.dtype(), DType::F32 | DType::BF16 | DType::F16);
    let x = activations(x)?;
    known.then(|| (x, w.to_contiguous()))
}

/// The tensor contiguous, if it is f32.
fn activations(x: &FlexTensor) -> Option<FlexTensor> {
    (x.dtype() == DType::F32).then(|| x.to_contiguous())
}
