//! A decoder layer's operations in as few launches as the plan allows.

use burn::backend::Cube;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::mat_vec::Norm;
use super::{elementwise, f32, features, linear, lora, mat_mul, mat_vec, nf4, product};
use crate::compute_dtype::ComputeDtype;
use crate::kernels::device_ops::FusedOps;
use crate::kernels::naive;
use crate::kernels::operand::{
    Adapters, LayerOperand, Maybe, Nf4Operand, NormOperand, StackOperand, WeightOperand,
};
use crate::kernels::plan::{Features, Operation, Plan};

impl FusedOps for Cube {
    fn input_dtype(x: FloatTensor<Self>, layer: LayerOperand<Self>) -> DType {
        input_dtype(&x, &[Layer::from(layer)], &device_of(&x))
    }

    fn linear(
        x: FloatTensor<Self>,
        layer: LayerOperand<Self>,
        residual: Maybe<Self>,
    ) -> FloatTensor<Self> {
        let device = device_of(&x);
        linear_with_adapters(x, layer.into(), residual.into_option(), &device)
    }

    fn norm_linears(
        x: FloatTensor<Self>,
        norm: NormOperand<Self>,
        first: LayerOperand<Self>,
        second: LayerOperand<Self>,
        third: LayerOperand<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let device = device_of(&x);
        let layers = [first, second, third].map(Layer::from);
        let joined = Joined::of(Operation::Forward, &x, &layers, &device);
        let has_stack = layers.iter().any(|layer| layer.stack.is_some());
        let rows = x.meta.shape()[0];
        let [a, b, c] = match joined {
            Some(joined) if !has_stack && joined.plan().fuses_norm(Operation::Forward, rows) => {
                joined.products(x, Some(norm.into()), layers.map(|layer| layer.bias))
            }
            Some(joined) => {
                let x = normalised(x, norm, &layers, &device);
                joined_with_adapters(x, joined, layers)
            }
            None => {
                let x = normalised(x, norm, &layers, &device);
                layers.map(|layer| linear_with_adapters(x.clone(), layer, None, &device))
            }
        };
        (a, b, c)
    }

    fn norm_swiglu(
        x: FloatTensor<Self>,
        norm: NormOperand<Self>,
        gate: LayerOperand<Self>,
        up: LayerOperand<Self>,
    ) -> FloatTensor<Self> {
        let device = device_of(&x);
        let layers = [gate, up].map(Layer::from);
        let has_bias = layers.iter().any(|layer| layer.bias.is_some());
        let joined = match has_bias {
            true => None,
            false => Joined::of(Operation::SwiGlu, &x, &layers, &device),
        };
        let has_stack = layers.iter().any(|layer| layer.stack.is_some());
        let rows = x.meta.shape()[0];
        match joined {
            Some(joined) if !has_stack && joined.plan().fuses_norm(Operation::SwiGlu, rows) => {
                joined.swiglu(x, Some(norm.into()))
            }
            Some(joined) => {
                let x = normalised(x, norm, &layers, &device);
                match has_stack {
                    true => swiglu_with_adapters(x, joined, layers, &device),
                    false => joined.swiglu(x, None),
                }
            }
            None => {
                let x = normalised(x, norm, &layers, &device);
                separate_swiglu(x, layers, &device)
            }
        }
    }
}

/// What the device of a tensor can do.
fn device_of(x: &CubeTensor) -> Features {
    Features::Gpu(features::features(x))
}

/// A layer without the wrappers of dispatch.
struct Layer {
    weight: WeightOperand<Cube>,
    bias: Option<CubeTensor>,
    stack: Option<StackOperand<Cube>>,
    compute: ComputeDtype,
}

impl Layer {
    /// How the layer's product is computed.
    fn plan(&self, operation: Operation, x: &CubeTensor, device: &Features) -> Plan {
        Plan::choose(&product(operation, x, &self.weight, self.compute), device)
    }
}

impl From<LayerOperand<Cube>> for Layer {
    fn from(layer: LayerOperand<Cube>) -> Self {
        Self {
            weight: layer.weight,
            bias: layer.bias.into_option(),
            stack: match layer.adapters {
                Adapters::None => None,
                Adapters::Stack { stack } => Some(stack),
                Adapters::One { .. } => unreachable!("one adapter is added afterwards"),
            },
            compute: layer.compute,
        }
    }
}

impl From<NormOperand<Cube>> for Norm {
    fn from(norm: NormOperand<Cube>) -> Self {
        Self {
            weight: norm.weight,
            eps: norm.eps as f32,
        }
    }
}

/// Weights that one launch multiplies with the same input: they have one format, lie in memory alike, and have one plan.
#[derive(Clone)]
enum Joined<const N: usize> {
    Dense([CubeTensor; N], Plan),
    Nf4([Nf4Operand<Cube>; N], Plan),
}

impl<const N: usize> Joined<N> {
    /// `None` if the weights differ, or their kernel takes one weight at a time.
    fn of(
        operation: Operation,
        x: &CubeTensor,
        layers: &[Layer; N],
        device: &Features,
    ) -> Option<Self> {
        let first = layers[0].plan(operation, x, device);
        let agree = |layer: &Layer| layer.plan(operation, x, device) == first;
        if !first.takes_several_weights() || !layers[1..].iter().all(agree) {
            return None;
        }
        let (mut dense, mut nf4) = (Vec::new(), Vec::new());
        for layer in layers {
            match &layer.weight {
                WeightOperand::Dense(weight) => dense.push(weight.clone()),
                WeightOperand::Nf4 { weight } => nf4.push(weight.clone()),
            }
        }
        if let Ok(weights) = <[CubeTensor; N]>::try_from(dense) {
            let alike = |w: &CubeTensor| {
                w.dtype == weights[0].dtype && w.meta.strides() == weights[0].meta.strides()
            };
            return (weights.iter().all(alike)).then(|| Self::Dense(weights, first));
        }
        let weights = <[Nf4Operand<Cube>; N]>::try_from(nf4).ok()?;
        nf4::are_alike(&weights).then(|| Self::Nf4(weights, first))
    }

    fn plan(&self) -> Plan {
        match self {
            Self::Dense(_, plan) | Self::Nf4(_, plan) => *plan,
        }
    }

    /// `norm(x) · wᵀ + bias` of each weight.
    fn products(
        self,
        x: CubeTensor,
        norm: Option<Norm>,
        biases: [Option<CubeTensor>; N],
    ) -> [CubeTensor; N] {
        match self {
            Self::Nf4(weights, Plan::GpuNf4MatMul) => {
                nf4::tiles::products(x, norm, weights, biases, None)
            }
            Self::Nf4(weights, _) => nf4::products(f32(x), norm, weights, biases, None),
            Self::Dense(weights, Plan::GpuMatMul) => {
                let stacks = [const { None }; N];
                mat_mul::products(x, mat_mul::Layer::all(weights, biases, stacks), None)
            }
            Self::Dense(weights, _) => mat_vec::products(x, norm, weights, biases, None),
        }
    }
}

impl Joined<2> {
    /// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)`.
    fn swiglu(self, x: CubeTensor, norm: Option<Norm>) -> CubeTensor {
        match self {
            Self::Nf4(weights, Plan::GpuNf4MatMul) => nf4::tiles::gated(x, norm, weights),
            Self::Nf4(weights, _) => nf4::gated(f32(x), norm, weights),
            Self::Dense(weights, Plan::GpuMatMul) => {
                let [gate, up] = mat_mul::Layer::all(weights, [None, None], [None, None]);
                mat_mul::gated(x, gate, up)
            }
            Self::Dense([gate, up], _) => mat_vec::gated(x, gate, up),
        }
    }
}

/// The type in which the kernels of all layers read their input; f32 where they differ.
fn input_dtype(x: &CubeTensor, layers: &[Layer], device: &Features) -> DType {
    let dtype_of = |layer: &Layer| {
        let product = product(Operation::Forward, x, &layer.weight, layer.compute);
        Plan::choose(&product, device).input_dtype(&product, device)
    };
    let first = dtype_of(&layers[0]);
    match layers[1..].iter().all(|layer| dtype_of(layer) == first) {
        true => first,
        false => DType::F32,
    }
}

/// The normalised input of layers, in the type that they take without a conversion.
fn normalised(
    x: CubeTensor,
    norm: NormOperand<Cube>,
    layers: &[Layer],
    device: &Features,
) -> CubeTensor {
    let dtype = input_dtype(&x, layers, device);
    elementwise::rms_norm(x, norm.weight, norm.eps, dtype)
}

/// `x · wᵀ + bias + residual` and the product of each row's adapter.
fn linear_with_adapters(
    x: CubeTensor,
    layer: Layer,
    residual: Option<CubeTensor>,
    device: &Features,
) -> CubeTensor {
    let plan = layer.plan(Operation::Forward, &x, device);
    let Layer {
        weight,
        bias,
        stack,
        compute,
    } = layer;
    if let (Plan::GpuMatMul, WeightOperand::Dense(w)) = (plan, &weight)
        && mat_mul::supports_stacks(&x, w.dtype, [&stack])
    {
        let w = w.clone();
        let [y] = mat_mul::products(x, [mat_mul::Layer { w, bias, stack }], residual);
        return y;
    }
    let Some(stack) = stack else {
        return linear(x, weight, bias, residual, compute);
    };
    let y = linear(x.clone(), weight, bias, residual, compute);
    let [y] = add_stacks(x, [y], [Some(stack)]);
    y
}

/// `x · wᵀ + bias` and the product of each row's adapter, for layers whose weights are `joined`.
fn joined_with_adapters(x: CubeTensor, joined: Joined<3>, layers: [Layer; 3]) -> [CubeTensor; 3] {
    let biases = layers.each_ref().map(|layer| layer.bias.clone());
    let stacks = layers.map(|layer| layer.stack);
    match joined {
        Joined::Dense(weights, Plan::GpuMatMul)
            if mat_mul::supports_stacks(&x, weights[0].dtype, stacks.each_ref()) =>
        {
            mat_mul::products(x, mat_mul::Layer::all(weights, biases, stacks), None)
        }
        joined => {
            let products = joined.products(x.clone(), None, biases);
            add_stacks(x, products, stacks)
        }
    }
}

/// `silu(gate) · up` of layers without biases, of which one has adapters at least.
fn swiglu_with_adapters(
    x: CubeTensor,
    joined: Joined<2>,
    layers: [Layer; 2],
    device: &Features,
) -> CubeTensor {
    let stacks = layers.each_ref().map(|layer| &layer.stack);
    match (joined, stacks) {
        (Joined::Dense(weights, Plan::GpuMatMul), stacks)
            if mat_mul::supports_stacks(&x, weights[0].dtype, stacks) =>
        {
            let stacks = stacks.map(Clone::clone);
            let [gate, up] = mat_mul::Layer::all(weights, [None, None], stacks);
            mat_mul::gated(x, gate, up)
        }
        (joined, [Some(gate_stack), Some(up_stack)])
            if lora::supports(&x, gate_stack) && lora::supports(&x, up_stack) =>
        {
            let (slots, at, dtype) = (gate_stack.slots.clone(), gate_stack.at, x.dtype);
            let [gate, up] = joined.products(x.clone(), None, [None, None]);
            let layers = [lora_layer(gate, gate_stack), lora_layer(up, up_stack)];
            lora::gated(x, layers, &slots, at, dtype)
        }
        _ => separate_swiglu(x, layers, device),
    }
}

/// `silu(gate) · up`, one launch after the other.
fn separate_swiglu(x: CubeTensor, layers: [Layer; 2], device: &Features) -> CubeTensor {
    let [gate, up] = layers.map(|layer| linear_with_adapters(x.clone(), layer, None, device));
    elementwise::swiglu(gate, up)
}

/// Adds the product of each row's adapter to base products of layers with the same input. A layer without a stack keeps its
/// product.
fn add_stacks<const N: usize>(
    x: CubeTensor,
    products: [CubeTensor; N],
    stacks: [Option<StackOperand<Cube>>; N],
) -> [CubeTensor; N] {
    let Some((slots, at)) =
        (stacks.iter().flatten().next()).map(|stack| (stack.slots.clone(), stack.at))
    else {
        return products;
    };
    let is_supported = (stacks.iter().flatten()).all(|stack| lora::supports(&x, stack));
    let mut stacks = stacks.into_iter();
    if !is_supported {
        return products.map(|y| match stacks.next().flatten() {
            Some(stack) => naive::add_stacked::<Cube>(y, x.clone(), stack),
            None => y,
        });
    }
    let both = products.iter().zip(stacks.clone());
    let layers: Vec<lora::Layer> = both
        .filter_map(|(y, stack)| Some(lora_layer(y.clone(), &stack?)))
        .collect();
    lora::add(x, &layers, &slots, at);
    let mut added = layers.into_iter().map(|layer| layer.y);
    products.map(|y| match stacks.next().flatten() {
        Some(_) => added.next().unwrap_or(y),
        None => y,
    })
}

/// A base product and the adapters to add to it, in place.
fn lora_layer(y: CubeTensor, stack: &StackOperand<Cube>) -> lora::Layer {
    lora::Layer {
        y: into_contiguous(y),
        a: stack.a.clone(),
        b: stack.b.clone(),
        rank: stack.rank,
        num_slots: stack.num_slots,
    }
}
