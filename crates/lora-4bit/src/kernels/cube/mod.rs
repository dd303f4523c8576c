//! CubeCL backends (CUDA, ROCm, Metal, Vulkan, WebGPU).
//!
//! - `lora`: adapters, another one for each row,
//! - `mat_vec`: products with few rows of `x`, bound by reading the weight, or with exact factors,
//! - `mat_mul`: products on the tensor cores of NVIDIA's GPUs, with adapters in the same launch,
//! - `nf4`: products of few rows with weights in NF4, on tensor cores where there are some, and dequantization, which comes
//!   before all other products with these.
//!
//! Everything else runs with burn's matmul or as its naive twin.

// In kernels, an `if` of what is known when they are compiled stays apart from one that they decide.
#![allow(clippy::collapsible_if, clippy::if_same_then_else)]

mod lora;
mod mat_mul;
mod mat_vec;
mod method;
mod nf4;
mod output;

pub(super) use mat_mul::forget_counters;

use burn::backend::Cube;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::cast;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::FloatKind;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use self::method::{MAX_NF4_ROWS, Method, dense_alike, fuses_norm, nf4_alike};
use super::device::{
    DeviceLinearOps, Extra, ExtraLora, ExtraStack, LayerOperand, LoraOperand, NormOperand,
    StackOperand, WeightOperand,
};
use super::{AbsmaxOperand, ComputeDtype, LinearOps, Nf4Operand, naive};

impl LinearOps for Cube {
    fn dense_linear(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        linear(x, WeightOperand::Dense(w), None, None, compute)
    }

    fn nf4_linear(
        x: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        linear(x, WeightOperand::Nf4 { weight: w }, None, None, compute)
    }

    fn nf4_linear_t(
        dy: FloatTensor<Self>,
        w: Nf4Operand<Self>,
        _compute: ComputeDtype,
    ) -> FloatTensor<Self> {
        naive::dense_linear_t::<Self>(dy, nf4::dequantize(w, DType::F32))
    }

    fn nf4_dequantize(w: Nf4Operand<Self>) -> FloatTensor<Self> {
        nf4::dequantize(w, DType::F32)
    }
}

impl DeviceLinearOps for Cube {
    fn device_input_dtype(
        x: FloatTensor<Self>,
        w: WeightOperand<Self>,
        compute: ComputeDtype,
    ) -> DType {
        match (Method::of(&x, &w, compute), w) {
            (Method::MatMul, WeightOperand::Dense(w)) => w.dtype,
            (Method::Nf4Tiles, _) => DType::BF16,
            (Method::Dequantize, WeightOperand::Nf4 { weight })
                if compute == ComputeDtype::Bf16
                    && mat_mul::supports_shape(&x, weight.shape, DType::BF16) =>
            {
                DType::BF16
            }
            _ => DType::F32,
        }
    }

    fn device_linear(
        x: FloatTensor<Self>,
        layer: LayerOperand<Self>,
        residual: Extra<Self>,
        compute: ComputeDtype,
    ) -> Option<FloatTensor<Self>> {
        let (bias, residual) = (layer.bias.into_option(), residual.into_option());
        if let ExtraStack::Some { stack } = layer.stack {
            let stack = Some(stack);
            return match layer.weight {
                WeightOperand::Dense(w) if Method::of_dense(&x, &w, compute) == Method::MatMul => {
                    let layer = mat_mul::Layer { w, bias, stack };
                    let supported = mat_mul::supports_stacks(&x, &[&layer]);
                    supported.then(|| mat_mul::product(x, layer, residual))
                }
                _ => None,
            };
        }
        Some(linear(x, layer.weight, bias, residual, compute))
    }

    fn device_three_linears(
        x: FloatTensor<Self>,
        first: LayerOperand<Self>,
        second: LayerOperand<Self>,
        third: LayerOperand<Self>,
        norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)> {
        let layers = [first, second, third];
        let biases = layers.clone().map(|layer| layer.bias.into_option());
        let stacks = layers.clone().map(|layer| layer.stack.into_option());
        let weights = layers.map(|layer| layer.weight);
        let (norm, has_stack) = (norm.into_norm(), stacks.iter().any(Option::is_some));
        if let Some((weights, method)) = nf4_alike(&x, &weights, compute) {
            if has_stack || norm.is_some() && !fuses_norm(&x, method) {
                return None;
            }
            let [a, b, c] = match method {
                Method::Nf4Tiles => nf4::tiles::products(x, norm, weights, biases, None),
                _ => nf4::products(f32(x), norm, weights, biases, None),
            };
            return Some((a, b, c));
        }
        let (weights, method) = dense_alike(&x, weights, compute)?;
        if norm.is_some() && !fuses_norm(&x, method) {
            return None;
        }
        let [a, b, c] = match method {
            Method::MatVec if !has_stack => mat_vec::products(x, norm, weights, biases, None),
            Method::MatMul => {
                let layers = dense_layers(&x, weights, biases, stacks)?;
                mat_mul::products(x, layers, None)
            }
            _ => return None,
        };
        Some((a, b, c))
    }

    fn device_gated(
        x: FloatTensor<Self>,
        gate: LayerOperand<Self>,
        up: LayerOperand<Self>,
        norm: NormOperand<Self>,
        compute: ComputeDtype,
    ) -> Option<FloatTensor<Self>> {
        let stacks = [gate.stack.into_option(), up.stack.into_option()];
        let (weights, norm) = ([gate.weight, up.weight], norm.into_norm());
        let has_stack = stacks.iter().any(Option::is_some);
        if let Some((weights, method)) = nf4_alike(&x, &weights, compute) {
            if has_stack || norm.is_some() && !fuses_norm(&x, method) {
                return None;
            }
            return Some(match method {
                Method::Nf4Tiles => nf4::tiles::gated(x, norm, weights),
                _ => nf4::gated(f32(x), norm, weights),
            });
        }
        let (weights, method) = dense_alike(&x, weights, compute)?;
        // Here a norm of its own costs less: twice as many cubes would compute it.
        if norm.is_some() {
            return None;
        }
        match method {
            Method::MatVec if !has_stack => {
                let [gate, up] = weights;
                Some(mat_vec::gated(x, gate, up))
            }
            Method::MatMul => {
                let [gate, up] = dense_layers(&x, weights, [None, None], stacks)?;
                Some(mat_mul::gated(x, gate, up))
            }
            _ => None,
        }
    }

    fn device_two_linears(
        x: FloatTensor<Self>,
        first: WeightOperand<Self>,
        second: WeightOperand<Self>,
        compute: ComputeDtype,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [a, b] = two_linears(x, [first, second], compute);
        (a, b)
    }

    fn device_add_lora(
        x: FloatTensor<Self>,
        first: LoraOperand<Self>,
        second: ExtraLora<Self>,
        third: ExtraLora<Self>,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>)> {
        let extra = |layer| match layer {
            ExtraLora::Some { layer } => Some(layer),
            ExtraLora::None => None,
        };
        let (slots, at) = (first.stack.slots.clone(), first.stack.at);
        let layers = [Some(first), extra(second), extra(third)];
        let layers: Vec<lora::Layer> = (layers.into_iter().flatten())
            .map(LoraOperand::into_layer)
            .collect();
        if !layers.iter().all(|layer| layer.is_supported(&x)) {
            return None;
        }
        lora::add(x, &layers, &slots, at);
        let y = |i: usize| layers.get(i).unwrap_or(&layers[0]).y.clone();
        Some((y(0), y(1), y(2)))
    }

    fn device_gated_lora(
        x: FloatTensor<Self>,
        gate: LoraOperand<Self>,
        up: LoraOperand<Self>,
    ) -> Option<FloatTensor<Self>> {
        let (slots, at) = (gate.stack.slots.clone(), gate.stack.at);
        let layers = [gate, up].map(LoraOperand::into_layer);
        let supported = layers.iter().all(|layer| layer.is_supported(&x));
        let dtype = x.dtype;
        supported.then(|| lora::gated(x, layers, &slots, at, dtype))
    }
}

/// Two dense or two NF4 weights at once where a kernel does that, otherwise one by one.
fn two_linears(
    x: CubeTensor,
    weights: [WeightOperand<Cube>; 2],
    compute: ComputeDtype,
) -> [CubeTensor; 2] {
    if let Some((weights, method)) = nf4_alike(&x, &weights, compute) {
        return match method {
            Method::Nf4Tiles => nf4::tiles::products(x, None, weights, [None, None], None),
            _ => nf4::products(f32(x), None, weights, [None, None], None),
        };
    }
    match dense_alike(&x, weights.clone(), compute) {
        Some((weights, Method::MatVec)) => {
            mat_vec::products(f32(x), None, weights, [None, None], None)
        }
        Some(([first, second], Method::MatMul)) => {
            let layers = [first, second].map(|w| mat_mul::Layer {
                w,
                bias: None,
                stack: None,
            });
            mat_mul::products(x, layers, None)
        }
        _ => weights.map(|weight| linear(x.clone(), weight, None, None, compute)),
    }
}

/// Layers with adapters or without, unless the kernel can't add these.
fn dense_layers<const N: usize>(
    x: &CubeTensor,
    weights: [CubeTensor; N],
    biases: [Option<CubeTensor>; N],
    stacks: [Option<StackOperand<Cube>>; N],
) -> Option<[mat_mul::Layer; N]> {
    let mut others = biases.into_iter().zip(stacks);
    let layers = weights.map(|w| {
        let (bias, stack) = others.next().unwrap_or_default();
        mat_mul::Layer { w, bias, stack }
    });
    mat_mul::supports_stacks(x, &layers.each_ref()).then_some(layers)
}

impl ExtraStack<Cube> {
    fn into_option(self) -> Option<StackOperand<Cube>> {
        match self {
            Self::None => None,
            Self::Some { stack } => Some(stack),
        }
    }
}

impl LoraOperand<Cube> {
    fn into_layer(self) -> lora::Layer {
        lora::Layer {
            // It is written in place.
            y: burn_cubecl::kernel::into_contiguous(self.y),
            a: self.stack.a,
            b: self.stack.b,
            rank: self.stack.rank,
            num_slots: self.stack.num_slots,
        }
    }
}

/// A tensor in f32.
fn f32(x: CubeTensor) -> CubeTensor {
    match x.dtype {
        DType::F32 => x,
        // A converted tensor may have longer rows.
        _ => burn_cubecl::kernel::into_contiguous(cast(x, DType::F32)),
    }
}

impl NormOperand<Cube> {
    fn into_norm(self) -> Option<mat_vec::Norm> {
        let weight = self.weight.into_option()?;
        let eps = self.eps as f32;
        Some(mat_vec::Norm { weight, eps })
    }
}

/// `x · wᵀ + bias + residual`.
fn linear(
    x: CubeTensor,
    w: WeightOperand<Cube>,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
    compute: ComputeDtype,
) -> CubeTensor {
    let method = Method::of(&x, &w, compute);
    let w = match w {
        WeightOperand::Dense(w) => w,
        WeightOperand::Nf4 { weight } if method == Method::Nf4Tiles => {
            let [y] = nf4::tiles::products(x, None, [weight], [bias], residual);
            return y;
        }
        WeightOperand::Nf4 { weight } if method == Method::Nf4MatVec => {
            let [y] = nf4::products(f32(x), None, [weight], [bias], residual);
            return y;
        }
        WeightOperand::Nf4 { weight } => {
            let dtype = match compute {
                ComputeDtype::Bf16 if x.client.properties().supports_type(FloatKind::BF16) => {
                    DType::BF16
                }
                _ => DType::F32,
            };
            let w = WeightOperand::Dense(nf4::dequantize(weight, dtype));
            return linear(x, w, bias, residual, compute);
        }
    };
    match method {
        Method::MatVec => {
            let [y] = mat_vec::products(f32(x), None, [w], [bias], residual);
            y
        }
        Method::MatMul => {
            let stack = None;
            mat_mul::product(x, mat_mul::Layer { w, bias, stack }, residual)
        }
        _ => {
            let y = burn_product(x, w, compute);
            let n = y.meta.shape()[1];
            let bias = bias.map(|bias| Cube::float_reshape(bias, Shape::new([1, n])));
            bias.into_iter().chain(residual).fold(y, Cube::float_add)
        }
    }
}

/// `x · wᵀ` in f32, by Burn's own kernels.
fn burn_product(x: CubeTensor, w: CubeTensor, compute: ComputeDtype) -> CubeTensor {
    if compute != ComputeDtype::Bf16 || w.dtype == DType::F32 {
        return naive::dense_linear::<Cube>(f32(x), w);
    }
    let x = cast(x, w.dtype);
    let w = Cube::float_transpose(w);
    match matmul(x, w, None, MatmulStrategy::default(), DType::F32) {
        Ok(y) => y,
        Err(error) => unreachable!("Burn's tuned product takes every shape: {error:?}"),
    }
}

/// A tensor on the same device whose values are not set yet.
fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Whether units of a plane (a warp) can add up their values.
///
/// CubeCL doesn't use these operations on a CPU's Vulkan device (Mesa's lavapipe), although they work there. The tests run
/// on it, so that a variable can say otherwise.
fn has_plane_operations(x: &CubeTensor) -> bool {
    x.client.features().plane.contains(Plane::Ops)
        || std::env::var_os("ASSUME_PLANE_OPERATIONS").is_some()
}

/// Units of a cube (threads of a block) in the products with few rows.
const UNITS: u32 = 128;

/// Shared memory that [`sum_of_planes`] takes for `num` values. A plane has at least four units.
const fn num_shared_sums(num: usize) -> usize {
    UNITS as usize / 4 * num
}

/// Adds up `num` values over `planes` neighbouring planes of a cube of [`UNITS`], for all of their units. Between planes
/// they travel through `parts`, see [`num_shared_sums`].
#[cube]
fn sum_of_planes(
    values: &mut Array<f32>,
    parts: &mut Shared<[f32]>,
    #[comptime] num: usize,
    #[comptime] planes: usize,
) {
    if comptime!(planes > 1) {
        let plane = (UNIT_POS / PLANE_DIM) as usize;
        let first = plane - plane % planes;
        if UNIT_POS_PLANE == 0 {
            #[unroll]
            for i in 0..num {
                parts[plane * num + i] = values[i];
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..num {
            let mut sum = 0.0f32;
            #[unroll]
            for other in 0..planes {
                sum += parts[(first + other) * num + i];
            }
            values[i] = sum;
        }
        // Nobody writes its next values before all have read these.
        sync_cube();
    }
}
