//! The twins, made of tensor operations, in f32.

use burn::backend::Dispatch;
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};

use super::product_operand::{Epilogue, ProductOperand};
use crate::kernels::norm::Norm;
use crate::kernels::operand::{Major, Part, WeightOperand};
use crate::kernels::products::nf4_dequantize;

fn f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.cast(DType::F32)
}

/// `[outer, inner]`.
fn in_rows(operand: ProductOperand) -> Tensor<2> {
    let axis = match operand.major {
        Major::Inner => 1,
        Major::Outer => 0,
    };
    let parts = std::iter::once(operand.first).chain(operand.second);
    let all = Tensor::cat(parts.map(f32).collect(), axis);
    match operand.major {
        Major::Inner => all,
        Major::Outer => all.transpose(),
    }
}

/// See [`super::product()`].
pub(super) fn product(a: ProductOperand, b: ProductOperand, epilogue: Epilogue) -> Tensor<2> {
    let mut y = in_rows(a).matmul(in_rows(b).transpose()); // [m, n]
    if let Some(bias) = epilogue.bias {
        y = y + f32(bias).unsqueeze::<2>();
    }
    if let Some(residual) = epilogue.residual {
        y = y + f32(residual);
    }
    y.cast(epilogue.dtype)
}

/// See [`super::stack_weights`].
pub(super) fn stack_weights(weights: Vec<WeightOperand<Dispatch>>, dtype: DType) -> Tensor<2> {
    let rows = weights.into_iter().map(|weight| match weight {
        WeightOperand::Dense(weight) => Tensor::<2>::from_dispatch(weight).cast(dtype),
        WeightOperand::Nf4 { weight } => nf4_dequantize(weight).cast(dtype),
    });
    Tensor::cat(rows.collect(), 0)
}

/// See [`super::stack_adapters`].
pub(super) fn stack_adapters(
    adapters: &[([&Tensor<2>; 2], Part)],
    [k, n, ranks]: [usize; 3],
    dtype: DType,
) -> [Tensor<2>; 2] {
    let device = adapters[0].0[0].device();
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, (&device, DType::F32));
    let (mut a, mut b_t) = (zeros([ranks, k]), zeros([ranks, n]));
    for ([part_a, part_b], part) in adapters {
        let rows = part.rank..part.rank + part.ranks;
        a = a.slice_assign([rows.clone(), 0..k], (*part_a).clone());
        let columns = part.row..part.row + part.rows;
        let scaled = (*part_b).clone() * part.scaling;
        b_t = b_t.slice_assign([rows, columns], scaled);
    }
    [a.cast(dtype), b_t.transpose().cast(dtype)]
}

/// See [`super::adapter_gradients`].
pub(super) fn adapter_gradients(da: &Tensor<2>, db: &Tensor<2>, part: Part) -> [Tensor<2>; 2] {
    let ranks = |sums: Tensor<2>| sums.narrow(1, part.rank, part.ranks).transpose();
    let b_t = ranks(db.clone().narrow(0, part.row, part.rows));
    [ranks(da.clone()), b_t.mul_scalar(part.scaling)]
}

/// One over the root of the mean square: `[tokens, 1]`.
fn inverse_rms(x: Tensor<2>, eps: f64) -> Tensor<2> {
    (x.clone() * x).mean_dim(1).add_scalar(eps).sqrt().recip()
}

/// See [`super::rms_norm`].
pub(super) fn rms_norm(x: Tensor<2>, norm: Norm<'_>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = f32(x);
    let factor = inverse_rms(x.clone(), norm.eps); // [tokens, 1]
    (x * factor * norm.weight.clone().unsqueeze::<2>()).cast(dtype)
}

/// See [`super::rms_norm_backward`].
pub(super) fn rms_norm_backward(
    x: Tensor<2>,
    norm: Norm<'_>,
    dy: Tensor<2>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let dtype = x.dtype();
    let x = f32(x);
    let factor = inverse_rms(x.clone(), norm.eps); // [tokens, 1]
    let x = x * factor.clone(); // [tokens, dim], normalised
    let g = f32(dy) * norm.weight.clone().unsqueeze::<2>(); // [tokens, dim]
    let mean = (g.clone() * x.clone()).mean_dim(1); // [tokens, 1]
    let dx = (g - x * mean) * factor; // [tokens, dim]
    let dx = match residual {
        Some(residual) => dx + f32(residual),
        None => dx,
    };
    dx.cast(dtype)
}

fn halves(gate_up: Tensor<2>) -> [Tensor<2>; 2] {
    let width = gate_up.dims()[1] / 2;
    let gate_up = f32(gate_up);
    [
        gate_up.clone().narrow(1, 0, width),
        gate_up.narrow(1, width, width),
    ]
}

/// See [`super::rescale`].
pub(super) fn rescale(
    x: Tensor<2>,
    factor: &Tensor<1>,
    offset: Option<Tensor<1>>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let dtype = x.dtype();
    let mut y = f32(x) * factor.clone().unsqueeze::<2>();
    if let Some(offset) = offset {
        y = y + f32(offset).unsqueeze::<2>();
    }
    if let Some(residual) = residual {
        y = y + f32(residual);
    }
    y.cast(dtype)
}

/// See [`super::swiglu()`].
pub(super) fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let dtype = gate_up.dtype();
    let [gate, up] = halves(gate_up);
    (gate.clone() * sigmoid(gate) * up).cast(dtype)
}

/// See [`super::swiglu_backward`].
pub(super) fn swiglu_backward(gate_up: Tensor<2>, dy: Tensor<2>) -> Tensor<2> {
    let dtype = gate_up.dtype();
    let [gate, up] = halves(gate_up);
    let (dy, sigma) = (f32(dy), sigmoid(gate.clone()));
    let silu = gate.clone() * sigma.clone(); // [tokens, width]
    // The derivative of silu: sigma · (1 + gate · (1 - sigma)).
    let slope = sigma.clone() * (gate * (sigma.neg() + 1.0) + 1.0); // [tokens, width]
    Tensor::cat(vec![dy.clone() * up * slope, dy * silu], 1).cast(dtype)
}
