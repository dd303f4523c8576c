//! Which kernel computes a product.

use burn::backend::Cube;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::super::device::WeightOperand;
use super::{ComputeDtype, Nf4Operand, has_plane_operations, mat_mul, mat_vec, nf4};

/// From how many rows on tensor cores are faster than plain sums.
const MIN_CORE_ROWS: usize = 3;

/// Rows that the kernel for few rows takes of a weight in NF4: with more, the weight is dequantized first.
pub(super) const MAX_NF4_ROWS: usize = 4;

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    MatVec,
    MatMul,
    Burn,
    /// The kernel for few rows of a weight in NF4.
    Nf4MatVec,
    /// The same on tensor cores, for rounded factors.
    Nf4Tiles,
    /// A dense product with the dequantized weight.
    Dequantize,
}

impl Method {
    pub(super) fn of(x: &CubeTensor, w: &WeightOperand<Cube>, compute: ComputeDtype) -> Self {
        match w {
            WeightOperand::Dense(w) => Self::of_dense(x, w, compute),
            WeightOperand::Nf4 { weight } => {
                let rows = x.meta.shape()[0];
                let is_rounded = compute == ComputeDtype::Bf16;
                let is_few = rows <= nf4::tiles::MAX_ROWS;
                if is_rounded && is_few && nf4::tiles::supports(x, weight) {
                    return Self::Nf4Tiles;
                }
                match rows <= MAX_NF4_ROWS && has_plane_operations(x) && nf4::supports(weight) {
                    true => Self::Nf4MatVec,
                    false => Self::Dequantize,
                }
            }
        }
    }

    pub(super) fn of_dense(x: &CubeTensor, w: &CubeTensor, compute: ComputeDtype) -> Self {
        let is_exact = compute != ComputeDtype::Bf16 || w.dtype == DType::F32;
        let is_small = x.meta.shape()[0] < MIN_CORE_ROWS;
        if !is_exact && !is_small {
            return match mat_mul::supports(x, w) {
                true => Self::MatMul,
                false => Self::Burn,
            };
        }
        // Burn multiplies f32 with 10 bits on tensor cores.
        if has_plane_operations(x) && mat_vec::supports(x, w) {
            return Self::MatVec;
        }
        Self::Burn
    }
}

/// Dense weights that one kernel multiplies together, and how: if they have a type and lie in memory alike.
pub(super) fn dense_alike<const N: usize>(
    x: &CubeTensor,
    weights: [WeightOperand<Cube>; N],
    compute: ComputeDtype,
) -> Option<([CubeTensor; N], Method)> {
    let weights = weights.map(|weight| match weight {
        WeightOperand::Dense(weight) => Some(weight),
        WeightOperand::Nf4 { .. } => None,
    });
    if weights.iter().any(Option::is_none) {
        return None;
    }
    let weights = weights.map(|weight| match weight {
        Some(weight) => weight,
        None => unreachable!("all are dense"),
    });
    let method = Method::of_dense(x, &weights[0], compute);
    let alike = |w: &CubeTensor| {
        w.dtype == weights[0].dtype
            && w.meta.strides() == weights[0].meta.strides()
            && Method::of_dense(x, w, compute) == method
    };
    weights.iter().all(alike).then_some((weights, method))
}

/// Weights in NF4 that one kernel multiplies together, and how.
pub(super) fn nf4_alike<const N: usize>(
    x: &CubeTensor,
    weights: &[WeightOperand<Cube>; N],
    compute: ComputeDtype,
) -> Option<([Nf4Operand<Cube>; N], Method)> {
    let nf4 = |weight: &WeightOperand<Cube>| match weight {
        WeightOperand::Nf4 { weight } => Some(weight.clone()),
        WeightOperand::Dense(_) => None,
    };
    let all = weights.iter().map(nf4).collect::<Option<Vec<_>>>()?;
    let method = Method::of(x, &weights[0], compute);
    let alike = matches!(method, Method::Nf4MatVec | Method::Nf4Tiles)
        && nf4::are_alike(&all)
        && (weights.iter()).all(|weight| Method::of(x, weight, compute) == method);
    Some((alike.then(|| all.try_into().ok())??, method))
}

/// Whether a product normalises its input. With more rows, a norm of its own costs less.
pub(super) fn fuses_norm(x: &CubeTensor, method: Method) -> bool {
    let most = match method {
        Method::MatVec => 1,
        Method::Nf4MatVec => MAX_NF4_ROWS,
        Method::Nf4Tiles => nf4::tiles::MAX_NORM_ROWS,
        _ => 0,
    };
    x.meta.shape()[0] <= most
}
