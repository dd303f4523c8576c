//! What a training step computes besides the operations of serving: products with both factors read either way, and the
//! gradients of what lies between them.
//!
//! Tensors are of one type, bf16 or f32; sums are f32. Nothing here takes part in an autodiff graph: the gradients are
//! operations of their own. Each operation has a twin made of tensor operations in [`naive`], which runs on devices without a
//! kernel.

use burn::backend::Dispatch;
#[cfg(feature = "gpu")]
use burn::backend::tensor::FloatTensor;
#[cfg(feature = "gpu")]
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::{DType, Device, Tensor};
use tracing::trace_span;

use super::elementwise::{Norm, inner_product};
#[cfg(feature = "gpu")]
use super::operand::Maybe;
use super::operand::{Major, WeightOperand};

mod naive;

/// A factor of a [`product`].
#[derive(Clone, Debug)]
pub(crate) struct Factor {
    /// `[outer, inner]` or `[inner, outer]`.
    pub(crate) first: Tensor<2>,
    /// More of the inner dimension; the other factor goes on as well.
    pub(crate) second: Option<Tensor<2>>,
    pub(crate) major: Major,
}

impl Factor {
    /// `[outer, inner]`.
    pub(crate) fn rows(first: Tensor<2>, second: Option<Tensor<2>>) -> Self {
        let major = Major::Inner;
        Self {
            first,
            second,
            major,
        }
    }

    /// `[inner, outer]`.
    pub(crate) fn columns(first: Tensor<2>, second: Option<Tensor<2>>) -> Self {
        let major = Major::Outer;
        Self {
            first,
            second,
            major,
        }
    }

    fn outer(&self) -> usize {
        self.first.dims()[match self.major {
            Major::Inner => 0,
            Major::Outer => 1,
        }]
    }

    fn inner(&self) -> [usize; 2] {
        let axis = match self.major {
            Major::Inner => 1,
            Major::Outer => 0,
        };
        let second = self.second.as_ref();
        [
            self.first.dims()[axis],
            second.map_or(0, |second| second.dims()[axis]),
        ]
    }
}

/// What is done to the sums of a [`product`].
#[derive(Clone, Debug)]
pub(crate) struct Epilogue {
    /// f32: `[n]`.
    pub(crate) bias: Option<Tensor<1>>,
    /// `[m, n]`, of the type of the result.
    pub(crate) residual: Option<Tensor<2>>,
    /// The sums are multiplied with it first.
    pub(crate) alpha: f32,
    /// Type of the result: f32 or the factors'.
    pub(crate) dtype: DType,
}

impl Epilogue {
    /// Only the sums.
    pub(crate) fn plain(dtype: DType) -> Self {
        Self {
            bias: None,
            residual: None,
            alpha: 1.0,
            dtype,
        }
    }
}

/// The operands of [`TrainingOps::gemm`].
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct GemmOperand<B: Backend> {
    pub(crate) a: FloatTensor<B>,
    #[extension_type]
    pub(crate) second_a: Maybe<B>,
    pub(crate) b: FloatTensor<B>,
    #[extension_type]
    pub(crate) second_b: Maybe<B>,
    #[extension_type]
    pub(crate) bias: Maybe<B>,
    #[extension_type]
    pub(crate) residual: Maybe<B>,
    pub(crate) majors: [Major; 2],
    pub(crate) alpha: f32,
    pub(crate) dtype: DType,
}

/// An adapter of a layer of a group, and where it stands among them.
#[cfg(feature = "gpu")]
#[derive(ExtensionType, Clone, Debug)]
pub(crate) struct PartOperand<B: Backend> {
    /// f32: `[r, k]`.
    pub(crate) a: FloatTensor<B>,
    /// f32: `[r, n]`.
    pub(crate) b_t: FloatTensor<B>,
    pub(crate) part: Part,
}

/// Where a layer stands in a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// See [`Linear::id`](crate::Linear::id).
    pub(crate) id: u32,
    /// The layer's rows of the weight.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// The layer's ranks, none without an adapter.
    pub(crate) rank: usize,
    pub(crate) ranks: usize,
    pub(crate) scaling: f32,
}

/// Adapters of a group in a launch, at most.
#[cfg(feature = "gpu")]
const MAX_PARTS: usize = 3;

/// The operations on a GPU.
#[cfg(feature = "gpu")]
#[backend_extension(Cube)]
pub(crate) trait TrainingOps: Backend {
    /// See [`product`].
    fn gemm(#[extension_type] operand: GemmOperand<Self>) -> FloatTensor<Self>;
    /// Writes `weight` to the rows of `to [n, k]` from row `at` on; the result is `to`.
    fn write_weight(
        to: FloatTensor<Self>,
        #[extension_type] weight: WeightOperand<Self>,
        at: usize,
    ) -> FloatTensor<Self>;
    /// See [`stack_adapters`]: of `[k, n, ranks]` in `dtype`.
    fn stack_adapters(
        #[extension_type] first: PartOperand<Self>,
        #[extension_type] second: PartOperand<Self>,
        #[extension_type] third: PartOperand<Self>,
        shape: [usize; 3],
        dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`adapter_gradients`].
    fn adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// See [`rms_norm`].
    fn training_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`rms_norm_backward`].
    fn training_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        #[extension_type] residual: Maybe<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
    /// See [`swiglu`].
    fn training_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// The sum of the squares of `x`, in parts: `[n]`.
    fn sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`adamw`]; the results are `value`, `mean` and `variance`, overwritten.
    fn adamw(
        value: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        clip: FloatTensor<Self>,
        factors: AdamWFactors,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// See [`swiglu_backward`]; the result is `gate_up`, overwritten.
    fn training_swiglu_backward(
        gate_up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// The factors of one step of AdamW (arXiv 1711.05101) for one parameter.
#[derive(Clone, Copy, Debug)]
pub struct AdamWFactors {
    /// Decay rates of the moments.
    pub beta: [f32; 2],
    /// `1 - beta`, from more exact numbers.
    pub rest: [f32; 2],
    /// Root of the second moment's bias correction.
    pub correction: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Learning rate over the first moment's bias correction.
    pub rate: f32,
    /// What the value is multiplied with: one without weight decay.
    pub decay: f32,
}

/// The type in which a training step on `device` computes: bf16 where tensor cores multiply it, f32 elsewhere.
pub(crate) fn dtype_of(device: &Device) -> DType {
    #[cfg(feature = "gpu")]
    if super::cube::features_of(device).is_some_and(|features| features.bf16_tensor_cores) {
        return DType::BF16;
    }
    let _ = device;
    DType::F32
}

#[cfg(feature = "gpu")]
fn has_kernels(x: &Tensor<2>) -> bool {
    super::cube::has_plane_operations(&x.device())
}

/// `y[i, j] = alpha · Σ a[i, k] · b[j, k] + bias[j] + residual[i, j]`.
///
/// # Shapes
///
/// `a` with `m`, `b` with `n` outer values, both of one type → `[m, n]`
pub(crate) fn product(a: Factor, b: Factor, epilogue: Epilogue) -> Tensor<2> {
    let (m, n, inner) = (a.outer(), b.outer(), a.inner());
    let _span = trace_span!("product", m, n, k = inner[0]).entered();
    assert_eq!(inner, b.inner(), "product: inner dimensions");
    assert_eq!(a.first.dtype(), b.first.dtype(), "product: types");
    #[cfg(feature = "gpu")]
    if super::cube::supports_gemm(&a.first, [m, n], inner, a.major) {
        let second = |factor: &Factor| Maybe::new(factor.second.as_ref());
        let operand = GemmOperand {
            second_a: second(&a),
            second_b: second(&b),
            majors: [a.major, b.major],
            a: a.first.into_dispatch(),
            b: b.first.into_dispatch(),
            bias: Maybe::new(epilogue.bias.as_ref()),
            residual: Maybe::new(epilogue.residual.as_ref()),
            alpha: epilogue.alpha,
            dtype: epilogue.dtype,
        };
        return Tensor::from_dispatch(<Dispatch as TrainingOps>::gemm(operand));
    }
    naive::product(a, b, epilogue)
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
    if super::cube::has_plane_operations(&weights[0].device()) {
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
/// `da [k, ranks]`, `db [n, ranks]`, f32
pub(crate) fn adapter_gradients(da: &Tensor<2>, db: &Tensor<2>, part: Part) -> [Tensor<2>; 2] {
    #[cfg(feature = "gpu")]
    if has_kernels(da) {
        let [da, db] = [da, db].map(|tensor| tensor.clone().into_dispatch());
        let (a, b_t) = <Dispatch as TrainingOps>::adapter_gradients(da, db, part);
        return [a, b_t].map(Tensor::from_dispatch);
    }
    naive::adapter_gradients(da, db, part)
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

/// `silu(gate) * up` of rows that hold a gate and then what it multiplies.
///
/// # Shapes
///
/// `gate_up [tokens, 2 * width]` → `[tokens, width]`, of the same type
pub fn swiglu(gate_up: Tensor<2>) -> Tensor<2> {
    let _span = trace_span!("swiglu").entered();
    #[cfg(feature = "gpu")]
    if has_kernels(&gate_up) {
        let y = <Dispatch as TrainingOps>::training_swiglu(gate_up.into_dispatch());
        return Tensor::from_dispatch(y);
    }
    naive::swiglu(gate_up)
}

/// The gradient of [`swiglu`]. It takes the memory of `gate_up`, which nobody else may hold.
///
/// # Shapes
///
/// `gate_up [tokens, 2 * width]`, `dy [tokens, width]` → `[tokens, 2 * width]`, all of one type
pub fn swiglu_backward(gate_up: Tensor<2>, dy: Tensor<2>) -> Tensor<2> {
    let _span = trace_span!("swiglu_backward").entered();
    #[cfg(feature = "gpu")]
    if has_kernels(&gate_up) {
        let (gate_up, dy) = (gate_up.into_dispatch(), dy.into_dispatch());
        let d = <Dispatch as TrainingOps>::training_swiglu_backward(gate_up, dy);
        return Tensor::from_dispatch(d);
    }
    naive::swiglu_backward(gate_up, dy)
}

/// The squares of the values of `x`, added up in parts.
///
/// # Shapes
///
/// `x [n]` f32 → `[parts]`
pub fn sum_of_squares(x: &Tensor<1>) -> Tensor<1> {
    #[cfg(feature = "gpu")]
    if x.dtype() == DType::F32 && super::cube::has_plane_operations(&x.device()) {
        let parts = <Dispatch as TrainingOps>::sum_of_squares(x.clone().into_dispatch());
        return Tensor::from_dispatch(parts);
    }
    inner_product(x.clone(), x.clone())
}

/// One step of AdamW: the new value, mean and variance. A kernel writes them in place, where nobody else holds the tensors.
///
/// # Shapes
///
/// `[value, mean, variance]` and `gradient` `[n]` f32; `clip [1]`, with which the gradient is multiplied first
///
/// # Panics
///
/// If the lengths differ.
pub fn adamw(
    [value, mean, variance]: [Tensor<1>; 3],
    gradient: &Tensor<1>,
    clip: &Tensor<1>,
    factors: AdamWFactors,
) -> [Tensor<1>; 3] {
    let n = value.dims();
    let lengths = [mean.dims(), variance.dims(), gradient.dims()];
    assert_eq!(lengths, [n; 3], "adamw: lengths");
    #[cfg(feature = "gpu")]
    if value.dtype() == DType::F32 && super::cube::has_plane_operations(&value.device()) {
        let [value, mean, variance] = [value, mean, variance].map(Tensor::into_dispatch);
        let gradient = gradient.clone().into_dispatch();
        let clip = clip.clone().into_dispatch();
        let (value, mean, variance) =
            <Dispatch as TrainingOps>::adamw(value, mean, variance, gradient, clip, factors);
        return [value, mean, variance].map(Tensor::from_dispatch);
    }
    naive::adamw([value, mean, variance], gradient, clip, factors)
}

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::kernels::cube::first_gpu;
    use crate::weight::Weight;

    fn random(shape: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
        let uniform = Distribution::Uniform(-1.0, 1.0);
        Tensor::<2>::random(shape, uniform, (device, DType::F32)).cast(dtype)
    }

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.cast(DType::F32).into_data().iter::<f32>().collect()
    }

    /// Compares a result with its twin's; `error` is what sums of this length may differ by.
    #[track_caller]
    fn check(name: &str, found: Tensor<2>, expected: Tensor<2>, error: f32) {
        assert_eq!(found.dims(), expected.dims(), "{name}");
        assert_eq!(found.dtype(), expected.dtype(), "{name}");
        let (found, expected) = (values(found), values(expected));
        let mut worst = (0.0, 0, 0.0, 0.0);
        for (i, (&a, &b)) in found.iter().zip(&expected).enumerate() {
            let e = (a - b).abs() / (1.0 + b.abs());
            if e.is_nan() || e > worst.0 {
                worst = (e, i, a, b);
            }
        }
        let wrong = found
            .iter()
            .zip(&expected)
            .filter(|(a, b)| !((**a - **b).abs() <= error * (1.0 + b.abs())))
            .count();
        assert_eq!(
            wrong,
            0,
            "{name}: of {} values; worst {worst:?}",
            found.len()
        );
    }

    #[test]
    fn products_equal_their_twin() {
        let device = first_gpu();
        let dtype = dtype_of(&device);
        // Rows and columns beside full tiles; one tile; many parts; narrow results.
        let shapes = [
            (128, 256, 64),
            (128, 128, 128),
            (256, 256, 512),
            (8, 8, 64),
            (200, 328, 192),
            (1024, 64, 1536),
            (72, 1544, 1024),
            (2048, 520, 2048),
            (1536, 64, 8192),
        ];
        // Where the twin itself computes, one shape tells enough.
        let num = if dtype == DType::F32 { 1 } else { shapes.len() };
        for (m, n, k) in shapes.into_iter().take(num) {
            for major_a in [Major::Inner, Major::Outer] {
                for major_b in [Major::Inner, Major::Outer] {
                    for second in [0, 64] {
                        let factor = |outer: usize, major: Major| {
                            let shape = |inner: usize| match major {
                                Major::Inner => [outer, inner],
                                Major::Outer => [inner, outer],
                            };
                            Factor {
                                first: random(shape(k), dtype, &device),
                                second: (second > 0).then(|| random(shape(second), dtype, &device)),
                                major,
                            }
                        };
                        let (a, b) = (factor(m, major_a), factor(n, major_b));
                        for dtype in [dtype, DType::F32] {
                            let name = format!(
                                "{m} x {n} x {k} + {second}, {major_a:?} {major_b:?}, {dtype:?}"
                            );
                            let plain = Epilogue {
                                alpha: 0.5,
                                ..Epilogue::plain(dtype)
                            };
                            let full = Epilogue {
                                bias: Some(random([1, n], DType::F32, &device).reshape([n])),
                                residual: Some(random([m, n], dtype, &device)),
                                ..plain.clone()
                            };
                            let is_common = major_a == Major::Inner && second == 0;
                            let epilogues = if is_common {
                                vec![plain, full]
                            } else {
                                vec![full]
                            };
                            for epilogue in epilogues {
                                let found = product(a.clone(), b.clone(), epilogue.clone());
                                let expected = naive::product(a.clone(), b.clone(), epilogue);
                                check(&name, found, expected, 0.02);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Of prompts, by the same kernels.
    #[test]
    fn layers_of_many_rows_equal_their_twins() {
        use crate::{AdapterSelection, ComputeDtype, Linear};
        let device = first_gpu();
        let dtype = dtype_of(&device);
        let (rows, k, n) = (600, 192, 328);
        let layer = |n: usize| {
            let bias = random([1, n], DType::F32, &device).reshape([n]);
            let mut layer = Linear::new(Weight::Dense(random([n, k], dtype, &device)), Some(bias));
            layer.compute = ComputeDtype::Bf16;
            layer
        };
        let x = random([rows, k], DType::F32, &device);
        let residual = random([rows, n], DType::F32, &device);
        let product = |x: &Tensor<2>, layer: &Linear, bias: bool| {
            let x = x.clone().cast(dtype).cast(DType::F32);
            let y = x.matmul(layer.weight.dequantize().transpose());
            match &layer.bias {
                Some(bias_of) if bias => y + bias_of.clone().unsqueeze::<2>(),
                _ => y,
            }
        };
        let first = layer(n);
        let found =
            crate::linear_residual(residual.clone(), x.clone(), &first, &AdapterSelection::Base);
        check("linear", found, product(&x, &first, true) + residual, 0.02);
        let layers = [layer(n), layer(64), layer(8)];
        let weight = random([1, k], DType::F32, &device).reshape([k]);
        let norm = || Norm {
            weight: &weight,
            eps: 1e-3,
        };
        let normed = naive::rms_norm(x.clone(), norm());
        let found = crate::norm_qkv(&x, norm(), layers.each_ref(), &AdapterSelection::Base);
        for (found, layer) in found.into_iter().zip(&layers) {
            check("qkv", found, product(&normed, layer, true), 0.02);
        }
        let mut gates = [layer(n), layer(n)];
        gates.iter_mut().for_each(|layer| layer.bias = None);
        let found = crate::norm_swiglu(&x, norm(), gates.each_ref(), &AdapterSelection::Base);
        let [gate, up] = gates.each_ref().map(|layer| product(&normed, layer, false));
        let expected = burn::tensor::activation::silu(gate) * up;
        let expected = expected.cast(found.dtype());
        check("swiglu", found, expected, 0.04);
    }

    #[test]
    fn weights_are_stacked_as_by_the_twin() {
        let device = first_gpu();
        let dtype = dtype_of(&device);
        // A device may pad rows of other lengths than multiples of 512 bytes.
        for k in [128, 192, 1536] {
            let weights = [
                Weight::Dense(random([24, k], DType::F32, &device)),
                Weight::Dense(random([8, k], dtype, &device)),
            ];
            let operands = || weights.iter().map(Weight::operand).collect();
            let found = stack_weights(operands(), dtype);
            check(
                "weights",
                found,
                naive::stack_weights(operands(), dtype),
                0.0,
            );
        }
    }

    #[test]
    fn norms_and_gates_equal_their_twins() {
        let device = first_gpu();
        for dtype in [DType::F32, dtype_of(&device)] {
            let error = if dtype == DType::F32 { 1e-5 } else { 0.02 };
            for (rows, dim) in [(1, 8), (7, 1536), (65, 896), (3, 1030)] {
                let [x, dy, residual] = [(); 3].map(|()| random([rows, dim], dtype, &device));
                let weight = random([1, dim], DType::F32, &device).reshape([dim]);
                let norm = || Norm {
                    weight: &weight,
                    eps: 1e-3,
                };
                let found = rms_norm(x.clone(), norm());
                check("norm", found, naive::rms_norm(x.clone(), norm()), error);
                for residual in [None, Some(residual)] {
                    let found = rms_norm_backward(x.clone(), norm(), dy.clone(), residual.clone());
                    let expected =
                        naive::rms_norm_backward(x.clone(), norm(), dy.clone(), residual);
                    check("gradient of norm", found, expected, error);
                }
                let gate_up = random([rows, 2 * dim], dtype, &device);
                let found = swiglu(gate_up.clone());
                check("swiglu", found, naive::swiglu(gate_up.clone()), error);
                let expected = naive::swiglu_backward(gate_up.clone(), dy.clone());
                let found = swiglu_backward(gate_up, dy);
                check("gradient of swiglu", found, expected, error);
            }
        }
    }

    #[test]
    fn adamw_and_sums_of_squares_equal_their_twins() {
        let device = first_gpu();
        let factors = AdamWFactors {
            beta: [0.9, 0.99],
            rest: [0.1, 0.01],
            correction: 0.7,
            eps: 1e-3,
            rate: 0.3,
            decay: 0.9,
        };
        for n in [1, 300, 70_000] {
            let vector = || random([1, n], DType::F32, &device).reshape([n]);
            let state = [vector(), vector(), vector().abs()];
            let (gradient, clip) = (vector(), vector().narrow(0, 0, 1));
            let expected = naive::adamw(state.clone(), &gradient, &clip, factors);
            let before = state[0].clone();
            let kept = values(before.clone());
            let found = adamw(state, &gradient, &clip, factors);
            for (found, expected) in found.into_iter().zip(expected) {
                check("adamw", found.unsqueeze(), expected.unsqueeze(), 1e-5);
            }
            assert_eq!(values(before), kept, "a tensor that somebody holds stays");
            let found = sum_of_squares(&gradient).sum().reshape([1, 1]);
            let expected = (gradient.clone() * gradient).sum().reshape([1, 1]);
            check("squares", found, expected, 1e-4);
        }
    }

    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        use std::time::Instant;
        let device = first_gpu();
        let wait = |y: Tensor<2>| {
            let _ = y
                .narrow(0, 0, 1)
                .narrow(1, 0, 1)
                .into_data()
                .iter::<f32>()
                .next();
        };
        let small = random([8, 8], DType::F32, &device).reshape([64]);
        let one = || random([8, 8], DType::F32, &device).reshape([64]);
        let factors = AdamWFactors {
            beta: [0.9, 0.99],
            rest: [0.1, 0.01],
            correction: 1.0,
            eps: 1e-8,
            rate: 1e-3,
            decay: 1.0,
        };
        let clip = Tensor::<1>::ones([1], (&device, DType::F32));
        let mut state = [one(), one(), one()];
        for round in 0..3 {
            let start = Instant::now();
            for _ in 0..2000 {
                state = adamw(state, &small, &clip, factors);
            }
            let asked = start.elapsed();
            wait(state[0].clone().reshape([8, 8]));
            println!(
                "launch {round}: {:.1} us asked, {:.1} us done",
                asked.as_secs_f64() * 1e6 / 2000.0,
                start.elapsed().as_secs_f64() * 1e6 / 2000.0
            );
        }
        use Major::{Inner, Outer};
        let shapes = [
            (8192, 8960, 1536, [Inner, Inner]),
            (8192, 17920, 1536, [Inner, Inner]),
            (8192, 1536, 8960, [Inner, Inner]),
            (8192, 2048, 1536, [Inner, Inner]),
            (8192, 1536, 1536, [Inner, Inner]),
            (8192, 1536, 17920, [Inner, Outer]),
            (8192, 8960, 1536, [Inner, Outer]),
            (8192, 1536, 2048, [Inner, Outer]),
            (512, 151_936, 1536, [Inner, Inner]),
            (512, 1536, 151_936, [Inner, Outer]),
            (8192, 64, 1536, [Inner, Inner]),
            (8192, 64, 8960, [Inner, Inner]),
            (8192, 64, 17920, [Inner, Outer]),
            (17920, 64, 8192, [Outer, Outer]),
            (1536, 64, 8192, [Outer, Outer]),
            (8192, 8192, 8192, [Inner, Inner]),
        ];
        for (m, n, k, majors) in shapes {
            let factor = |outer: usize, major: Major| Factor {
                first: random(
                    match major {
                        Inner => [outer, k],
                        Outer => [k, outer],
                    },
                    DType::BF16,
                    &device,
                ),
                second: None,
                major,
            };
            let (a, b) = (factor(m, majors[0]), factor(n, majors[1]));
            let dtype = if majors[0] == Outer {
                DType::F32
            } else {
                DType::BF16
            };
            let run = || product(a.clone(), b.clone(), Epilogue::plain(dtype));
            wait(run());
            let start = Instant::now();
            let times = 20;
            let mut last = None;
            for _ in 0..times {
                last = Some(run());
            }
            last.into_iter().for_each(wait);
            let each = start.elapsed().as_secs_f64() / f64::from(times);
            let flops = 2.0 * m as f64 * n as f64 * k as f64;
            println!(
                "{m} x {n} x {k} {majors:?}: {:.3} ms, {:.0} TFLOP/s",
                each * 1e3,
                flops / each / 1e12
            );
        }
    }
}
