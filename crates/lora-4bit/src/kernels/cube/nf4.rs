//! Weights in NF4: products with a few rows of `x`, and dequantization.
//!
//! A unit takes 16 codes at a time, 8 bytes of a weight. Their scale is computed where it is needed, from the codes of
//! double quantization, so that a weight stays as small as it is stored.

mod kernels;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{AbsmaxOperand, Nf4Operand, UNITS, empty, naive};
use crate::nf4::BLOCK_SIZE;

/// Codes of a load.
const CODES: usize = 16;
/// Loads of a unit that are in flight together, at most.
const MAX_LOADS: usize = 6;
/// Buffers of a kernel: five for each of three weights, eight more, and one for what CubeCL adds.
const MIN_BINDINGS: u32 = 24;
/// Levels of a code: one for each unit of a plane, so that all units read from banks of their own.
const LANES: usize = 32;
const LANES_BITS: u32 = LANES.trailing_zeros();

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Rows of `x`.
    m: usize,
    /// Rows of the weight at once: each value of `x` serves all of them.
    rows: usize,
    /// Loads of a row at once.
    unroll: usize,
    /// Planes that share a row.
    planes: usize,
    /// Whether the last loads of a row lie past its end.
    is_ragged: bool,
    has_bias: [bool; 3],
    has_residual: bool,
    /// Whether scales are double-quantized.
    is_double: bool,
    /// Whether a row is the rows of two weights.
    is_pair: bool,
    /// Weights with results of their own.
    num_weights: usize,
}

/// Tensors of a weight as the kernels read them; those that it lacks are others of its own.
#[derive(Clone)]
struct Parts {
    packed: CubeTensor,
    levels: CubeTensor,
    codes: CubeTensor,
    map: CubeTensor,
    absmax: CubeTensor,
    offset: f32,
}

impl Parts {
    fn of(weight: &Nf4Operand<Cube>) -> Self {
        let (packed, levels) = (weight.packed.clone(), weight.quant_map.clone());
        match &weight.absmax {
            AbsmaxOperand::Single(absmax) => Self {
                codes: packed.clone(),
                map: levels.clone(),
                packed,
                levels,
                absmax: absmax.clone(),
                offset: 0.0,
            },
            AbsmaxOperand::Double {
                codes,
                map,
                nested_absmax,
                offset,
            } => Self {
                packed,
                levels,
                codes: codes.clone(),
                map: map.clone(),
                absmax: nested_absmax.clone(),
                offset: *offset,
            },
        }
    }
}

fn is_double(weight: &Nf4Operand<Cube>) -> bool {
    matches!(weight.absmax, AbsmaxOperand::Double { .. })
}

/// Whether [`products`] can read a weight.
pub(super) fn supports(weight: &Nf4Operand<Cube>) -> bool {
    let [n, k] = weight.shape;
    let max_bindings = weight.packed.client.properties().hardware.max_bindings;
    weight.packed.dtype == DType::I32
        && n > 0
        && k > 0
        && k.is_multiple_of(BLOCK_SIZE)
        && max_bindings >= MIN_BINDINGS
}

/// Whether one kernel takes all weights.
pub(super) fn are_alike(weights: &[Nf4Operand<Cube>]) -> bool {
    weights.iter().all(|weight| {
        weight.shape[1] == weights[0].shape[1] && is_double(weight) == is_double(&weights[0])
    })
}

impl Kind {
    fn new(x: &CubeTensor, weight: &Nf4Operand<Cube>, num_rows: usize, is_pair: bool) -> Self {
        let [m, k] = x.meta.shape().dims();
        let lanes = x.client.properties().hardware.plane_size_max as usize;
        // Few rows are too few planes to wait for memory at once.
        let (rows, planes) = match (num_rows, k) {
            (0..=4096, 0..=4096) => (1, 1),
            (0..=4096, _) => (2, 4),
            _ => (4, 1),
        };
        let planes = usize::min(planes, UNITS as usize / lanes);
        let loads = (k / CODES).div_ceil(lanes * planes);
        let most = (MAX_LOADS / rows / if is_pair { 2 } else { 1 }).max(1);
        let unroll = loads.div_ceil(loads.div_ceil(most));
        Self {
            m,
            rows,
            unroll,
            planes,
            is_ragged: !(k / CODES).is_multiple_of(lanes * planes * unroll),
            has_bias: [false; 3],
            has_residual: false,
            is_double: is_double(weight),
            is_pair,
            num_weights: 1,
        }
    }

    /// Sums of a plane.
    fn num_sums(&self) -> usize {
        self.m * self.rows * if self.is_pair { 2 } else { 1 }
    }

    /// Rows of the weight that a cube computes.
    fn rows_per_cube(&self, x: &CubeTensor) -> usize {
        let lanes = x.client.properties().hardware.plane_size_max as usize;
        UNITS as usize / lanes / self.planes * self.rows
    }
}

/// `x · wᵀ + bias` for up to three weights, and `+ residual` for one: `x [m, k]` f32, `w [n, k]` → `[m, n]` f32.
pub(super) fn products<const N: usize>(
    x: CubeTensor,
    weights: [Nf4Operand<Cube>; N],
    biases: [Option<CubeTensor>; N],
    residual: Option<CubeTensor>,
) -> [CubeTensor; N] {
    assert!((1..=3).contains(&N) && (N == 1 || residual.is_none()));
    let x = into_contiguous(x);
    let [m, k] = x.meta.shape().dims();
    let results: [CubeTensor; N] =
        std::array::from_fn(|i| empty(&x, [m, weights[i].shape[0]], DType::F32));
    if m == 0 {
        return results;
    }
    let rows: [usize; 3] = std::array::from_fn(|i| weights.get(i).map_or(0, |w| w.shape[0]));
    let mut kind = Kind::new(&x, &weights[0], rows.iter().sum(), false);
    kind.has_residual = residual.is_some();
    kind.num_weights = N;
    for (has_bias, bias) in kind.has_bias.iter_mut().zip(&biases) {
        *has_bias = bias.is_some();
    }
    let cubes = rows.map(|rows| rows.div_ceil(kind.rows_per_cube(&x)));
    // Arguments that a kernel has no use for are another one.
    let [w0, w1, w2] = [0, 1, 2].map(|i| Parts::of(weights.get(i).unwrap_or(&weights[0])));
    let bias = |i: usize| match biases.get(i) {
        Some(Some(bias)) => into_contiguous(bias.clone()),
        _ => x.clone(),
    };
    let result = |i: usize| results.get(i).unwrap_or(&results[0]).clone();
    let residual = residual.map_or_else(|| x.clone(), into_contiguous);
    // SAFETY: `k` codes of each row exist, and rows past the last are clamped to it.
    unsafe {
        kernels::products::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(cubes.iter().sum::<usize>() as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            x.clone().into_buffer_arg(),
            w0.packed.into_buffer_arg(),
            w0.levels.into_buffer_arg(),
            w0.codes.into_buffer_arg(),
            w0.map.into_buffer_arg(),
            w0.absmax.into_buffer_arg(),
            w1.packed.into_buffer_arg(),
            w1.levels.into_buffer_arg(),
            w1.codes.into_buffer_arg(),
            w1.map.into_buffer_arg(),
            w1.absmax.into_buffer_arg(),
            w2.packed.into_buffer_arg(),
            w2.levels.into_buffer_arg(),
            w2.codes.into_buffer_arg(),
            w2.map.into_buffer_arg(),
            w2.absmax.into_buffer_arg(),
            bias(0).into_buffer_arg(),
            bias(1).into_buffer_arg(),
            bias(2).into_buffer_arg(),
            residual.into_buffer_arg(),
            result(0).into_buffer_arg(),
            result(1).into_buffer_arg(),
            result(2).into_buffer_arg(),
            rows[0],
            rows[1],
            rows[2],
            cubes[0],
            cubes[1],
            k / CODES,
            w0.offset,
            w1.offset,
            w2.offset,
            kind,
        );
    }
    results
}

/// `silu(x · gateᵀ) · (x · upᵀ)`: `x [m, k]` f32, both weights `[n, k]` → `[m, n]` f32.
pub(super) fn gated(x: CubeTensor, [gate, up]: [Nf4Operand<Cube>; 2]) -> CubeTensor {
    let x = into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), gate.shape);
    let y = empty(&x, [m, n], DType::F32);
    if m == 0 {
        return y;
    }
    let kind = Kind::new(&x, &gate, 2 * n, true);
    let (gate, up) = (Parts::of(&gate), Parts::of(&up));
    // SAFETY: as in `products`.
    unsafe {
        kernels::gated::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(n.div_ceil(kind.rows_per_cube(&x)) as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            gate.packed.into_buffer_arg(),
            gate.levels.into_buffer_arg(),
            gate.codes.into_buffer_arg(),
            gate.map.into_buffer_arg(),
            gate.absmax.into_buffer_arg(),
            up.packed.into_buffer_arg(),
            up.levels.into_buffer_arg(),
            up.codes.into_buffer_arg(),
            up.map.into_buffer_arg(),
            up.absmax.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            n,
            k / CODES,
            gate.offset,
            up.offset,
            kind,
        );
    }
    y
}

/// The whole weight: `[n, k]` of type `dtype`.
pub(super) fn dequantize(weight: Nf4Operand<Cube>, dtype: DType) -> CubeTensor {
    let [n, k] = weight.shape;
    let len = n * k;
    if weight.packed.dtype != DType::I32 || len == 0 || !len.is_multiple_of(CODES) {
        return cast(naive::dequantize::<Cube>(weight), dtype);
    }
    let parts = Parts::of(&weight);
    let w = empty(&parts.packed, [n, k], dtype);
    let cubes = (len / CODES).div_ceil(UNITS as usize);
    // One dimension holds 65,535 cubes on some devices.
    let rows = cubes.div_ceil(65_535);
    // SAFETY: units stay below the number of loads.
    unsafe {
        kernels::dequantize::launch_unchecked(
            &w.client.clone(),
            CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            parts.packed.into_buffer_arg(),
            parts.levels.into_buffer_arg(),
            parts.codes.into_buffer_arg(),
            parts.map.into_buffer_arg(),
            parts.absmax.into_buffer_arg(),
            w.clone().into_buffer_arg(),
            len / CODES,
            parts.offset,
            is_double(&weight),
            dtype_to_elem_type(dtype),
        );
    }
    w
}
