//! The operations written with plain tensor operations of any backend: cast or dequantize the whole weight, multiply.
//!
//! They are the reference that tests compare the kernels with, and they run on devices without a kernel. Nothing is read back
//! to the host.

use burn::backend::Backend;
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, IntDType, Scalar, Shape, Slice, Tensor, activation};

use super::norm::Norm;
use super::operand::{AbsmaxOperand, Nf4Operand, StackOperand};
use crate::nf4::{BLOCK_SIZE, NESTED_BLOCK_SIZE};

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

/// `silu(x · gateᵀ) · (x · upᵀ)`, see `super::norm_swiglu`.
pub fn dense_swiglu<B: Backend>(
    x: FloatTensor<B>,
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
) -> FloatTensor<B> {
    let gate = dense_linear::<B>(x.clone(), gate);
    let up = dense_linear::<B>(x, up);
    let silu = B::float_mul(gate.clone(), B::sigmoid(gate));
    B::float_mul(silu, up)
}

/// See [`super::rms_norm`].
pub fn rms_norm(x: Tensor<2>, norm: Norm<'_>) -> Tensor<2> {
    let mean_square = (x.clone() * x.clone()).mean_dim(1); // [rows, 1]
    let inv_rms = (mean_square + norm.eps).sqrt().recip(); // [rows, 1]
    x * inv_rms * norm.weight.clone().unsqueeze() // [rows, dim]
}

/// See [`super::swiglu`].
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    activation::silu(gate) * up
}

/// `y + bias` for each row; either may belong to an autodiff graph.
pub fn add_bias(y: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let bias = bias.cast(y.dtype());
    y + bias.unsqueeze() // [rows, width]
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
    y + delta
}

/// `x · w`, of which either may belong to an autodiff graph.
fn matmul(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let w = w.cast(x.dtype());
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
/// `y [rows, n]` f32, `x [rows, k]` → `[rows, n]`
pub(crate) fn add_stacked<B: Backend>(
    y: FloatTensor<B>,
    x: FloatTensor<B>,
    stack: StackOperand<B>,
) -> FloatTensor<B> {
    let StackOperand {
        a,
        b,
        rank,
        num_slots,
        slots,
        at,
    } = stack;
    let ([rows, k], [_, n]) = (x.shape().dims(), y.shape().dims::<2>());
    let slots = B::int_slice(slots, &[Slice::from(at..at + rows)]); // [rows]
    let last = Scalar::from(num_slots as i32 - 1);
    let known = B::int_clamp(slots.clone(), Scalar::from(0), last); // [rows]
    // 0 for a row with an adapter, 1 without.
    let distance = B::int_abs(B::int_sub(slots, known.clone()));
    let distance = B::int_clamp(distance, Scalar::from(0), Scalar::from(1));
    let distance = B::int_into_float(distance, FloatDType::F32); // [rows]
    let has_adapter = B::float_add_scalar(B::float_neg(distance), Scalar::from(1)); // [rows]

    let a = cast::<B>(a, DType::F32);
    let a = B::float_reshape(a, Shape::new([num_slots, rank, k]));
    let a = B::float_select(a, 0, known.clone()); // [rows, rank, k]
    let x = B::float_reshape(cast::<B>(x, DType::F32), Shape::new([rows, 1, k]));
    let h = B::float_sum_dim(B::float_mul(a, x), 2); // [rows, rank, 1]
    let h = B::float_reshape(h, Shape::new([1, rows, rank]));

    let b = B::float_slice(b, &[Slice::from(0..n * num_slots * rank)]);
    let b = B::float_reshape(cast::<B>(b, DType::F32), Shape::new([n, num_slots, rank]));
    let b = B::float_select(b, 1, known); // [n, rows, rank]
    let sum = B::float_sum_dim(B::float_mul(b, h), 2); // [n, rows, 1]
    let sum = B::float_transpose(B::float_reshape(sum, Shape::new([n, rows]))); // [rows, n]
    let has_adapter = B::float_reshape(has_adapter, Shape::new([rows, 1]));
    B::float_add(y, B::float_mul(sum, has_adapter))
}
