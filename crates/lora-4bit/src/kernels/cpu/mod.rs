//! Kernels of burn's flex backend.
//!
//! Weights are read as they are stored, a tile at a time, and never copied whole: bf16 and f16 are widened in registers
//! or, when a tile serves many rows of `x`, in a scratch buffer that fits the cache; NF4 codes are looked up in a table
//! of 16 levels that lies in a register. Products are accumulated in f32.
//!
//! - `forward`: `x · wᵀ`,
//! - `transposed`: `dy · w`,
//! - `lora`: an adapter's product and its gradients,
//! - `pairs`: both with bf16 factors; `forward` has one with NF4 and integers,
//! - `tiles`: `x · wᵀ` with AMX and a bf16 weight,
//! - `nf4`: ranges of an NF4 weight,
//! - `simd`: the inner loops for AVX-512, AVX2, NEON and any other CPU.

mod aligned;
mod forward;
mod lora;
mod nf4;
mod pairs;
pub(crate) mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod transposed;

pub(super) use self::lora::LoraState;

use burn::backend::Flex;
use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Bytes, DType, Shape};
use half::{bf16, f16};

use self::nf4::Nf4Matrix;
use self::simd::ints::IntKernels;
use self::simd::pairs::PairKernels;
use self::simd::{Element, Kernels};
use super::{ComputeDtype, GatedOps, LinearOps, Nf4Operand, naive};
use crate::nf4::BLOCK_SIZE;

impl LinearOps for Flex {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let Some((x, w)) = operands(&x, &w) else {
            return naive::dense_linear::<Self>(x, w);
        };
        product(&x, w.layout().shape()[0], |x, shape, y| match w.dtype() {
            DType::BF16 => forward_dense(x, w.storage::<bf16>(), shape, compute, y),
            DType::F16 => forward_dense(x, w.storage::<f16>(), shape, compute, y),
            _ => forward_dense(x, w.storage::<f32>(), shape, compute, y),
        })
    }

    fn dense_linear_t(
        dy: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let Some((dy, w)) = operands(&dy, &w) else {
            return naive::dense_linear_t::<Self>(dy, w);
        };
        product(&dy, w.layout().shape()[1], |dy, shape, dx| {
            match w.dtype() {
                DType::BF16 => transposed_dense(dy, w.storage::<bf16>(), shape, compute, dx),
                DType::F16 => transposed_dense(dy, w.storage::<f16>(), shape, compute, dx),
                _ => transposed_dense(dy, w.storage::<f32>(), shape, compute, dx),
            }
        })
    }

    fn nf4_linear(
        x: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let (Some(x), Some(matrix)) = (activations(&x), Nf4Matrix::new(&w)) else {
            return naive::nf4_linear::<Self>(x, w);
        };
        product(&x, w.shape[0], |x, shape, y| {
            let kernels = Kernels::get();
            match pair_kernels(shape, compute) {
                Some(pairs) => {
                    let k = shape.inner;
                    let w = pairs::Nf4 {
                        kernels,
                        pairs,
                        matrix: &matrix,
                        k,
                    };
                    pairs::forward(pairs, x, &w, shape, y);
                }
                None => match int_kernels(shape, compute) {
                    Some(kernels) => forward::nf4_ints(kernels, x, &matrix, shape, y),
                    None => forward::nf4(kernels, x, &matrix, shape, y),
                },
            }
        })
    }

    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        let (Some(dy), Some(matrix)) = (activations(&dy), Nf4Matrix::new(&w)) else {
            return naive::nf4_linear_t::<Self>(dy, w);
        };
        product(&dy, w.shape[1], |dy, shape, dx| {
            let kernels = Kernels::get();
            match pair_kernels(shape, compute) {
                Some(pairs) => {
                    let k = shape.columns;
                    let w = pairs::Nf4 {
                        kernels,
                        pairs,
                        matrix: &matrix,
                        k,
                    };
                    pairs::transposed(pairs, dy, &w, shape, dx);
                }
                None => transposed::nf4(kernels, dy, &matrix, shape, dx),
            }
        })
    }
}

/// Whether [`GatedOps`] has a kernel for `m` rows of `x` and weights `[n, k]` in bf16.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, reason = "no such kernels")
)]
pub(super) fn gates(m: usize, [n, k]: [usize; 2], compute: ComputeDtype) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let shape = ProductShape {
            m,
            inner: k,
            columns: n,
        };
        n > 0 && k > 0 && tiles::parts(shape, compute).is_some()
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl GatedOps for Flex {
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(unused_variables, reason = "no such kernels")
    )]
    fn dense_gated(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        #[cfg(target_arch = "x86_64")]
        if gate.dtype() == DType::BF16
            && up.dtype() == DType::BF16
            && let (Some((x, gate)), Some((_, up))) = (operands(&x, &gate), operands(&x, &up))
        {
            let ([m, inner], [columns, _]) =
                (x.layout().shape().dims(), gate.layout().shape().dims::<2>());
            let shape = ProductShape { m, inner, columns };
            if let Some(parts) = tiles::parts(shape, compute) {
                let weights = [gate.storage::<bf16>(), up.storage::<bf16>()];
                return product(&x, columns, |x, shape, y| {
                    tiles::gated(parts, x, weights, shape, y);
                });
            }
        }
        naive::dense_gated::<Self>(x, gate, up)
    }
}

fn forward_dense<E: Element>(
    x: &[f32],
    values: &[E],
    shape: ProductShape,
    compute: ComputeDtype,
    y: *mut f32,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(values) = E::as_bf16(values)
        && let Some(parts) = tiles::parts(shape, compute)
    {
        return tiles::forward(parts, x, values, shape, y);
    }
    let kernels = Kernels::get();
    match pair_kernels(shape, compute) {
        Some(pairs) => {
            let k = shape.inner;
            let w = pairs::Dense {
                kernels,
                pairs,
                values,
                k,
            };
            pairs::forward(pairs, x, &w, shape, y);
        }
        None => forward::dense(kernels, x, values, shape, y),
    }
}

fn transposed_dense<E: Element>(
    dy: &[f32],
    values: &[E],
    shape: ProductShape,
    compute: ComputeDtype,
    dx: *mut f32,
) {
    let kernels = Kernels::get();
    match pair_kernels(shape, compute) {
        Some(pairs) => {
            let k = shape.columns;
            let w = pairs::Dense {
                kernels,
                pairs,
                values,
                k,
            };
            pairs::transposed(pairs, dy, &w, shape, dx);
        }
        None => transposed::dense(kernels, dy, values, shape, dx),
    }
}

/// The loops for bf16 factors, if they are wanted, exist, and pay.
fn pair_kernels(shape: ProductShape, compute: ComputeDtype) -> Option<&'static PairKernels> {
    let pays = compute == ComputeDtype::Bf16 && shape.m >= pairs::MIN_ROWS;
    pays.then(PairKernels::get).flatten()
}

/// The loops for integers, if they are wanted, exist, and fit the blocks of a row.
fn int_kernels(shape: ProductShape, compute: ComputeDtype) -> Option<&'static IntKernels> {
    let fits = compute == ComputeDtype::Bits16 && shape.inner.is_multiple_of(BLOCK_SIZE);
    fits.then(|| IntKernels::get(shape.m)).flatten()
}

/// The sizes of a product: `left [m, inner]`, `right [inner, columns]` → `[m, columns]`.
#[derive(Clone, Copy)]
struct ProductShape {
    m: usize,
    inner: usize,
    columns: usize,
}

/// Runs `kernel` on the values of `left` and room for the result, which it fills, unless one of the sizes is zero.
fn product(
    left: &FlexTensor,
    columns: usize,
    kernel: impl FnOnce(&[f32], ProductShape, *mut f32),
) -> FlexTensor {
    let [m, inner] = left.layout().shape().dims();
    let len = m * columns;
    let mut y = Vec::with_capacity(len);
    if m * inner * columns > 0 {
        let shape = ProductShape { m, inner, columns };
        kernel(left.storage::<f32>(), shape, y.as_mut_ptr());
        // SAFETY: the kernel has written every value.
        unsafe { y.set_len(len) };
    } else {
        y.resize(len, 0f32);
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
