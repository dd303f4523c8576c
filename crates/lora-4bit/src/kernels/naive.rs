//! The operations written with plain tensor operations of any backend: cast or dequantize the whole weight, multiply.
//!
//! GPU backends run these; on the CPU they are the reference that tests compare the kernels with. Nothing is read back
//! to the host.

use burn::backend::Backend;
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, IntDType, Scalar, Shape, Slice, Tensor};

use super::{AbsmaxOperand, Nf4Operand};
use crate::nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE};
use crate::weight::constant_like;

/// `x · wᵀ`, see [`super::dense_linear`].
pub fn dense_linear<B: Backend>(x: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    let w = cast::<B>(w, x.dtype());
    B::float_matmul(x, B::float_transpose(w))
}

/// `dy · w`, see [`super::dense_linear_t`].
pub fn dense_linear_t<B: Backend>(dy: FloatTensor<B>, w: FloatTensor<B>) -> FloatTensor<B> {
    let w = cast::<B>(w, dy.dtype());
    B::float_matmul(dy, w)
}

/// `silu(x · gateᵀ) · (x · upᵀ)`, see `cpu_gated`.
pub fn dense_gated<B: Backend>(
    x: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> FloatTensor<B> {
    let gate = dense_linear::<B>(x.clone(), gate);
    let up = dense_linear::<B>(x, up);
    let silu = B::float_mul(gate.clone(), B::sigmoid(gate));
    B::float_mul(silu, up)
}

/// `x · wᵀ`, see `nf4_linear`.
pub fn nf4_linear<B: Backend>(x: FloatTensor<B>, w: Nf4Operand<B>) -> FloatTensor<B> {
    dense_linear::<B>(x, dequantize::<B>(w))
}

/// `dy · w`, see `nf4_linear_t`.
pub fn nf4_linear_t<B: Backend>(dy: FloatTensor<B>, w: Nf4Operand<B>) -> FloatTensor<B> {
    dense_linear_t::<B>(dy, dequantize::<B>(w))
}

/// `y + scaling · (x · aᵀ) · b`, see [`super::lora_add`].
pub fn lora_add(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scaling: f32) -> Tensor<2> {
    let low = matmul(x, a.transpose()); // [m, r]
    let delta = matmul(low * scaling, b); // [m, n]
    constant_like(y, &delta) + delta
}

/// `x · w`, of which either may belong to an autodiff graph.
fn matmul(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let w = w.cast(x.dtype());
    let x = constant_like(x, &w);
    let w = constant_like(w, &x);
    x.matmul(w)
}

/// The whole weight in f32: `[n, k]`.
pub fn dequantize<B: Backend>(w: Nf4Operand<B>) -> FloatTensor<B> {
    let [rows, columns] = w.shape;
    let len = rows * columns;

    let packed = bytes::<B>(w.packed, len.div_ceil(2)); // [ceil(len / 2)]
    let num_bytes = packed.shape().num_elements();
    let high = B::bitwise_right_shift_scalar(packed.clone(), Scalar::from(4));
    let low = B::bitwise_and_scalar(packed, Scalar::from(15));
    let pair = Shape::new([num_bytes, 1]);
    let codes = B::int_cat(
        vec![
            B::int_reshape(high, pair.clone()),
            B::int_reshape(low, pair),
        ],
        1,
    ); // [num_bytes, 2]
    let codes = first_ints::<B>(B::int_reshape(codes, Shape::new([2 * num_bytes])), len);
    let levels = B::float_select(w.quant_map, 0, codes); // [len]

    let scales = absmax::<B>(w.absmax, len.div_ceil(BLOCK_SIZE)); // [blocks]
    let scales = repeat_each::<B>(scales, BLOCK_SIZE, len); // [len]
    B::float_reshape(B::float_mul(levels, scales), Shape::new([rows, columns]))
}

/// Bytes as integers of 32 bits: `[len]`.
fn bytes<B: Backend>(tensor: IntTensor<B>, len: usize) -> IntTensor<B> {
    if tensor.dtype() == DType::U8 {
        return B::int_cast(tensor, IntDType::I32);
    }
    // Words of four bytes.
    let num_words = tensor.shape().num_elements();
    let byte = |i: i32| {
        let shifted = B::bitwise_right_shift_scalar(tensor.clone(), Scalar::from(8 * i));
        let byte = B::bitwise_and_scalar(shifted, Scalar::from(255));
        B::int_reshape(byte, Shape::new([num_words, 1]))
    };
    let bytes = B::int_cat((0..4).map(byte).collect(), 1); // [words, 4]
    first_ints::<B>(B::int_reshape(bytes, Shape::new([4 * num_words])), len)
}

/// The scales in f32: `[blocks]`.
fn absmax<B: Backend>(absmax: AbsmaxOperand<B>, len: usize) -> FloatTensor<B> {
    match absmax {
        AbsmaxOperand::Single(absmax) => absmax,
        AbsmaxOperand::Double {
            codes,
            map,
            nested_absmax,
            offset,
        } => {
            let codes = bytes::<B>(codes, len);
            let levels = B::float_select(map, 0, codes); // [blocks]
            let scales = repeat_each::<B>(nested_absmax, NESTED_BLOCK_SIZE, len); // [blocks]
            B::float_add_scalar(B::float_mul(levels, scales), Scalar::from(offset))
        }
    }
}

/// Every value `times` times in a row, cut off after `len`.
fn repeat_each<B: Backend>(values: FloatTensor<B>, times: usize, len: usize) -> FloatTensor<B> {
    let n = values.shape().num_elements();
    let values = B::float_reshape(values, Shape::new([n, 1]));
    let values = B::float_expand(values, Shape::new([n, times]));
    let values = B::float_reshape(values, Shape::new([n * times]));
    if n * times == len {
        return values;
    }
    B::float_slice(values, &[Slice::from(0..len)])
}

fn first_ints<B: Backend>(values: IntTensor<B>, len: usize) -> IntTensor<B> {
    if values.shape().num_elements() == len {
        return values;
    }
    B::int_slice(values, &[Slice::from(0..len)])
}

fn cast<B: Backend>(w: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if w.dtype() == dtype {
        return w;
    }
    B::float_cast(w, FloatDType::from(dtype))
}

/// `y + x · aᵀ · b` with each row's adapter of a stack.
///
/// # Shapes
///
/// `y [rows, out]`, `x [rows, in]` → `[rows, out]`
pub(crate) fn add_stacked(
    y: Tensor<2>,
    x: Tensor<2>,
    stack: &crate::lora_stack::LoraStack,
    rows: &crate::adapter_selection::StackedRows,
) -> Tensor<2> {
    let [num_rows, inner] = x.dims();
    let (rank, outer, num_slots) = (stack.rank, y.dims()[1], stack.num_slots);
    let slots = rows.slots.clone().narrow(0, rows.at, num_rows); // [rows]
    let known = slots.clone().clamp(0, num_slots as i64 - 1);
    let has_adapter = slots.equal(known.clone()).float().cast(DType::F32); // [rows]
    let slots = known;
    let a = stack.a.clone().cast(DType::F32);
    let a = a.reshape([num_slots, rank, inner]).select(0, slots.clone()); // [rows, r, in]
    let b = stack.b.clone().narrow(0, 0, outer * num_slots * rank);
    let b = b.cast(DType::F32).reshape([outer, num_slots, rank]);
    let b = b.select(1, slots); // [out, rows, r]
    let x = x.cast(DType::F32).reshape([num_rows, 1, inner]);
    let h = (a * x).sum_dim(2).reshape([1, num_rows, rank]);
    let sum = (b * h).sum_dim(2).reshape([outer, num_rows]).transpose(); // [rows, out]
    y + sum * has_adapter.reshape([num_rows, 1])
}
