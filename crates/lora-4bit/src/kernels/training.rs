//! What a training step computes besides the operations of serving: products with both operands read either way, and the
//! gradients of what lies between them.
//!
//! Tensors are of one type, bf16 or f32; sums are f32. Nothing here takes part in an autodiff graph: the gradients are
//! operations of their own. Each operation has a twin made of tensor operations in [`naive`], which runs on devices without a
//! kernel.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};
use tracing::trace_span;

pub(crate) use self::product::{gated_product, product};
pub(crate) use self::product_operand::{Epilogue, ProductOperand};
pub use self::swiglu::{swiglu, swiglu_backward};
#[cfg(feature = "gpu")]
use super::cube::features::has_kernels;
#[cfg(feature = "gpu")]
use super::device_ops::TrainingOps;
use super::draw::Draw;
use super::norm::Norm;
pub(crate) use super::operand::Part;
use super::operand::WeightOperand;
#[cfg(feature = "gpu")]
use super::operand::{Major, Maybe, PartOperand};

mod naive;
mod product;
mod product_operand;
mod swiglu;
#[cfg(all(test, feature = "gpu"))]
mod tests;

/// Adapters of a group in a launch, at most.
#[cfg(feature = "gpu")]
const MAX_PARTS: usize = 3;

/// The type in which a training step on `device` is fast: bf16 where tensor cores multiply it, f32 elsewhere.
pub(crate) fn dtype_of(device: &Device) -> DType {
    #[cfg(feature = "gpu")]
    if super::cube::features::features_of(device).is_some_and(|features| features.bf16_tensor_cores)
    {
        return DType::BF16;
    }
    let _ = device;
    DType::F32
}

/// See [`crate::compile_only::compile_kernels_only`]: nobody else may need a launch.
pub(crate) fn compile_kernels_only(device: &Device, work: impl FnOnce()) {
    #[cfg(feature = "cuda")]
    if super::cube::features::is_cuda(device) {
        // A launch that still waits in the queue would be refused its kernel, too. What has failed is told by who reads it.
        let _ = device.sync();
        let dry_run = cubecl::dry_run::DryRun::new();
        work();
        // The queue must not be behind when launches run again. There is nothing to wait for that could fail.
        let _ = device.sync();
        drop(dry_run);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = (device, work);
}

/// Weights with `k` columns, one below the other, in `dtype`: `[n, k]`.
pub(crate) fn stack_weights(weights: Vec<WeightOperand<Dispatch>>, dtype: DType) -> Tensor<2> {
    let _span = trace_span!("stack_weights").entered();
    if let [WeightOperand::Dense(weight)] = &weights[..] {
        let weight = Tensor::from_dispatch(weight.clone());
        if weight.dtype() == dtype {
            return weight;
        }
    }
    #[cfg(feature = "gpu")]
    if super::cube::features::has_plane_operations(&weights[0].device()) {
        let device = weights[0].device();
        let [_, k] = weights[0].shape();
        let n = weights.iter().map(|weight| weight.shape()[0]).sum();
        // From one dimension, so that no row is padded.
        let all: Tensor<2> = Tensor::<1>::empty([n * k], (&device, dtype)).reshape([n, k]);
        let mut all = all.into_dispatch();
        let mut at = 0;
        for weight in weights {
            let rows = weight.shape()[0];
            all = <Dispatch as TrainingOps>::write_weight(all, weight, at);
            at += rows;
        }
        return Tensor::from_dispatch(all);
    }
    naive::stack_weights(weights, dtype)
}

/// A one below the other, `[ranks, k]`, and B times the scaling as the blocks of a block-diagonal matrix, `[n, ranks]`; zero
/// elsewhere.
///
/// # Shapes
///
/// `adapters`: `a [r, k]` and the transpose of B, `[r, n of the layer]`, f32, with their places; `shape` is `[k, n, ranks]`
pub(crate) fn stack_adapters(
    adapters: &[([&Tensor<2>; 2], Part)],
    shape: [usize; 3],
    dtype: DType,
) -> [Tensor<2>; 2] {
    #[cfg(feature = "gpu")]
    if adapters.len() <= MAX_PARTS && has_kernels(adapters[0].0[0]) {
        let operand = |i: usize| {
            let ([a, b_t], part) = adapters.get(i).unwrap_or(&adapters[0]);
            let mut part = *part;
            if i >= adapters.len() {
                (part.ranks, part.rows) = (0, 0);
            }
            let [a, b_t] = [a, b_t].map(|tensor| (*tensor).clone().into_dispatch());
            PartOperand { a, b_t, part }
        };
        let (a, b) = <Dispatch as TrainingOps>::stack_adapters(
            operand(0),
            operand(1),
            operand(2),
            shape,
            dtype,
        );
        return [a, b].map(Tensor::from_dispatch);
    }
    naive::stack_adapters(adapters, shape, dtype)
}

/// The gradients of A, `[r, k]`, and of the transpose of B, `[r, n of the layer]`, of one layer of a group.
///
/// # Shapes
///
/// `da [k, ranks]`, `db [n, ranks]`, f32; each may have further columns
pub(crate) fn adapter_gradients(da: &Tensor<2>, db: &Tensor<2>, part: Part) -> [Tensor<2>; 2] {
    #[cfg(feature = "gpu")]
    if has_kernels(da) {
        let [da, db] = [da, db].map(|tensor| tensor.clone().into_dispatch());
        let (a, b_t) = <Dispatch as TrainingOps>::adapter_gradients(da, db, part);
        return [a, b_t].map(Tensor::from_dispatch);
    }
    naive::adapter_gradients(da, db, part)
}

/// Adds what [`adapter_gradients`] gives to `a [r, k]` and `b_t [r, n of the layer]`, whoever holds them, too.
///
/// # Panics
///
/// On a device without [`writes_in_place`](super::optimizer::writes_in_place).
pub(crate) fn add_adapter_gradients(
    [da, db]: [&Tensor<2>; 2],
    [a, b_t]: [&Tensor<2>; 2],
    part: Part,
) {
    assert!(
        super::optimizer::writes_in_place(&a.device()),
        "gradients: device"
    );
    let shapes = [da.dims()[0], part.rows].map(|columns| [part.ranks, columns]);
    assert_eq!([a.dims(), b_t.dims()], shapes, "gradients: shapes");
    let dtypes = [da, db, a, b_t].map(Tensor::dtype);
    assert_eq!(dtypes, [DType::F32; 4], "gradients: f32");
    #[cfg(feature = "gpu")]
    {
        let [da, db, a, b_t] = [da, db, a, b_t].map(|tensor| tensor.clone().into_dispatch());
        // The handles that come back are others of the same memory.
        let _ = <Dispatch as TrainingOps>::add_adapter_gradients(da, db, a, b_t, part);
    }
    #[cfg(not(feature = "gpu"))]
    let _ = db;
}

/// `x / rms(x) * weight` per row.
///
/// # Shapes
///
/// `x [tokens, dim]`, weight f32 `[dim]` → `[tokens, dim]`, of the type of `x`
pub fn rms_norm(x: Tensor<2>, norm: Norm<'_>) -> Tensor<2> {
    let _span = trace_span!("rms_norm").entered();
    assert_eq!(norm.weight.dims(), [x.dims()[1]], "rms_norm: weight");
    #[cfg(feature = "gpu")]
    if has_kernels(&x) {
        let (x, weight) = (x.into_dispatch(), norm.weight.clone().into_dispatch());
        return Tensor::from_dispatch(<Dispatch as TrainingOps>::training_norm(
            x, weight, norm.eps,
        ));
    }
    naive::rms_norm(x, norm)
}

/// The gradient of [`rms_norm`] with respect to `x`, added to `residual`.
///
/// # Shapes
///
/// `x`, `dy` and `residual` `[tokens, dim]` → `[tokens, dim]`, all of one type
pub fn rms_norm_backward(
    x: Tensor<2>,
    norm: Norm<'_>,
    dy: Tensor<2>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let _span = trace_span!("rms_norm_backward").entered();
    assert_eq!(x.dims(), dy.dims(), "rms_norm_backward: dy");
    #[cfg(feature = "gpu")]
    if has_kernels(&x) {
        let residual = Maybe::new(residual.as_ref());
        let (x, dy) = (x.into_dispatch(), dy.into_dispatch());
        let weight = norm.weight.clone().into_dispatch();
        let dx =
            <Dispatch as TrainingOps>::training_norm_backward(x, weight, dy, residual, norm.eps);
        return Tensor::from_dispatch(dx);
    }
    naive::rms_norm_backward(x, norm, dy, residual)
}

/// The gradient of [`rms_norm`] with respect to the weight, f32: the sum over rows of `dy * x / rms(x)`.
///
/// # Shapes
///
/// `x`, `dy` `[tokens, dim]` of one type → `[dim]`
pub fn rms_norm_weight_gradient(x: Tensor<2>, norm: Norm<'_>, dy: Tensor<2>) -> Tensor<1> {
    assert_eq!(x.dims(), dy.dims(), "rms_norm_weight_gradient: dy");
    let weight = Tensor::ones(norm.weight.dims(), (&x.device(), DType::F32)); // [dim]
    let of_one = Norm {
        weight: &weight,
        eps: norm.eps,
    };
    sum_rows(rms_norm(x, of_one) * dy)
}

/// The sum of all rows, f32.
///
/// # Shapes
///
/// `x [rows, columns]` → `[columns]`
pub fn sum_rows(x: Tensor<2>) -> Tensor<1> {
    let columns = x.dims()[1];
    #[cfg(feature = "gpu")]
    if super::cube::gemm::supports_gemm(&x, [columns, ONES], [x.dims()[0], 0], Major::Outer) {
        // A product with columns of ones: no other kernel sums over so many rows on all multiprocessors.
        let ones = Tensor::ones([x.dims()[0], ONES], (&x.device(), x.dtype()));
        let sums = product(
            ProductOperand::columns(x, None),
            ProductOperand::columns(ones, None),
            Epilogue::plain(DType::F32),
        ); // [columns, ONES]
        return sums.narrow(1, 0, 1).reshape([columns]);
    }
    x.cast(DType::F32).sum_dim(0).reshape([columns])
}

/// Columns of a tile of [`product()`], the fewest.
#[cfg(feature = "gpu")]
const ONES: usize = 64;

/// `x` times a mask that is drawn value by value.
///
/// # Shapes
///
/// `x [rows, columns]`; the result has its shape and type
pub(crate) fn drop_values(x: Tensor<2>, draw: Draw) -> Tensor<2> {
    let _span = trace_span!("drop_values").entered();
    #[cfg(feature = "gpu")]
    if has_kernels(&x) {
        let Draw {
            keys,
            threshold,
            keep,
        } = draw;
        let x = x.into_dispatch();
        let y = <Dispatch as TrainingOps>::training_dropout(x, keys, threshold, keep);
        return Tensor::from_dispatch(y);
    }
    let mask = draw.mask(x.dims(), &x.device()).cast(x.dtype()); // [rows, columns]
    x * mask
}

/// `x · factor + offset + residual`, factor and offset for each column.
///
/// # Shapes
///
/// `x`, `residual` `[rows, columns]` of one type, factor and offset f32 `[columns]` → as `x`
pub(crate) fn rescale(
    x: Tensor<2>,
    factor: &Tensor<1>,
    offset: Option<Tensor<1>>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    let _span = trace_span!("rescale").entered();
    assert_eq!(factor.dims(), [x.dims()[1]], "rescale: factor");
    #[cfg(feature = "gpu")]
    if has_kernels(&x) {
        let (offset, residual) = (Maybe::new(offset.as_ref()), Maybe::new(residual.as_ref()));
        let (x, factor) = (x.into_dispatch(), factor.clone().into_dispatch());
        let y = <Dispatch as TrainingOps>::training_rescale(x, factor, offset, residual);
        return Tensor::from_dispatch(y);
    }
    naive::rescale(x, factor, offset, residual)
}
