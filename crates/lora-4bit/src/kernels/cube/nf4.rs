//! Weights in NF4: products with a few rows of `x`, and dequantization.
//!
//! A unit takes 16 codes at a time, 8 bytes of a weight. Scales are computed where they are needed, from the codes of double
//! quantization, so that a weight stays as small as it is stored.

mod kernels;
mod memory;
mod shape;
pub(super) mod tiles;
mod weight;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::{Kind, LOADS_PER_BLOCK};
use self::weight::is_double;
use super::super::naive;
use super::super::operand::Nf4Operand;
use super::super::plan::{CODES, NF4_MAT_VEC_SHARED};
use super::copy::write_rows;
use super::launch::empty;
use super::mat_vec::{Norm, norm_args};
use super::output::Outputs;
use super::planes::UNITS;

/// Loads of a unit that are in flight together, at most.
const MAX_LOADS: usize = 12;
/// Loads of a row at once, at most: each unit computes the scale of one block.
const MAX_UNROLL: usize = LOADS_PER_BLOCK;
/// Bytes of `x` in shared memory, at most.
const MAX_STAGE: usize = 32 << 10;

/// Whether one kernel takes all weights.
pub(super) fn are_alike(weights: &[Nf4Operand<Cube>]) -> bool {
    weights.iter().all(|weight| {
        weight.shape[1] == weights[0].shape[1] && is_double(weight) == is_double(&weights[0])
    })
}

impl Kind {
    fn new(x: &CubeTensor, weight: &Nf4Operand<Cube>, num_rows: usize, is_pair: bool) -> Self {
        let [m, k] = x.meta.shape().dims();
        let hardware = &x.client.properties().hardware;
        let lanes = hardware.plane_size_max as usize;
        let row_loads = k / CODES;
        // Few rows are too few planes to wait for memory at once.
        let (rows, planes) = match num_rows {
            0..=4096 if row_loads <= lanes * MAX_UNROLL => (1, 1),
            0..=4096 => (2, 2),
            _ => (2, 1),
        };
        let mut planes = usize::min(planes, UNITS as usize / lanes);
        let stage = MAX_STAGE.min(
            hardware
                .max_shared_memory_size
                .saturating_sub(NF4_MAT_VEC_SHARED),
        );
        let segment = 4 * CODES * m * lanes;
        while planes > 1 && segment * planes > stage {
            planes /= 2;
        }
        let fit = stage / (segment * planes);
        let most = (MAX_LOADS / rows / if is_pair { 2 } else { 1 }).min(MAX_UNROLL);
        let loads = row_loads.div_ceil(lanes * planes);
        // As few rounds as fit, all alike.
        let unroll = loads.div_ceil(loads.div_ceil(most.min(fit).max(1)));
        Self {
            m,
            rows,
            unroll,
            planes,
            lanes,
            is_ragged: !row_loads.is_multiple_of(lanes * planes * unroll),
            has_bias: [false; 3],
            has_residual: false,
            has_norm: false,
            is_double: is_double(weight),
            is_pair,
            num_weights: 1,
        }
    }
}

/// `norm(x) · wᵀ + bias` for up to three weights, and `+ residual` for one: `x [m, k]` f32, `w [n, k]` → `[m, n]` f32.
pub(super) fn products<const N: usize>(
    x: CubeTensor,
    norm: Option<Norm>,
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
    let num_rows = weights.iter().map(|weight| weight.shape[0]).sum();
    let mut kind = Kind::new(&x, &weights[0], num_rows, false);
    let outputs = Outputs::new(&biases, residual, &results);
    (kind.has_bias, kind.has_residual) = (outputs.has_bias, outputs.has_residual);
    (kind.has_norm, kind.num_weights) = (norm.is_some(), N);
    let (norm, eps) = norm_args(&x, norm);
    let cubes = |i: usize| {
        let weight = weights.get(i);
        weight.map_or(0, |weight| weight.shape[0].div_ceil(kind.rows_per_cube()))
    };
    let [w0, w1, w2] = weight::launch_three(&weights);
    let [out0, out1, out2] = outputs.launch;
    // SAFETY: `k` codes of each row exist, and rows past the last are clamped to it.
    unsafe {
        kernels::products::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static((cubes(0) + cubes(1) + cubes(2)) as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            norm.into_buffer_arg(),
            w0,
            w1,
            w2,
            outputs.residual,
            out0,
            out1,
            out2,
            cubes(0),
            cubes(1),
            k / CODES,
            eps,
            kind,
        );
    }
    results
}

/// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)`: `x [m, k]` f32, both weights `[n, k]` → `[m, n]` f32.
pub(super) fn gated(
    x: CubeTensor,
    norm: Option<Norm>,
    [gate, up]: [Nf4Operand<Cube>; 2],
) -> CubeTensor {
    let x = into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), gate.shape);
    let y = empty(&x, [m, n], DType::F32);
    if m == 0 {
        return y;
    }
    let mut kind = Kind::new(&x, &gate, 2 * n, true);
    kind.has_norm = norm.is_some();
    let (norm, eps) = norm_args(&x, norm);
    // SAFETY: as in `products`.
    unsafe {
        kernels::gated::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(n.div_ceil(kind.rows_per_cube()) as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            x.into_buffer_arg(),
            norm.into_buffer_arg(),
            weight::launch(&gate),
            weight::launch(&up),
            y.clone().into_buffer_arg(),
            n,
            k / CODES,
            eps,
            kind,
        );
    }
    y
}

/// The whole weight: `[n, k]` of type `dtype`.
pub(super) fn dequantize(weight: Nf4Operand<Cube>, dtype: DType) -> CubeTensor {
    let [n, k] = weight.shape;
    if !is_in_words(&weight) {
        return cast(naive::dequantize::<Cube>(weight), dtype);
    }
    let w = empty(&weight.packed, [n, k], dtype);
    dequantize_into(weight, w, 0)
}

/// Whether the kernels take the weight: its bytes are in words, and its length is a multiple of a load.
fn is_in_words(weight: &Nf4Operand<Cube>) -> bool {
    let len = weight.shape[0] * weight.shape[1];
    weight.packed.dtype == DType::I32 && len > 0 && len.is_multiple_of(CODES)
}

/// Writes the whole weight to the rows of `to [rows, k]` from row `at` on; the result is `to`.
pub(super) fn dequantize_into(weight: Nf4Operand<Cube>, to: CubeTensor, at: usize) -> CubeTensor {
    let [n, k] = weight.shape;
    let len = n * k;
    if !is_in_words(&weight) || !(at * k).is_multiple_of(4) {
        let from = naive::dequantize::<Cube>(weight);
        return write_rows(to, into_contiguous(from), at);
    }
    let dtype = to.dtype;
    let cubes = (len / CODES).div_ceil(UNITS as usize);
    // One dimension holds 65,535 cubes on some devices.
    let rows = cubes.div_ceil(65_535);
    // SAFETY: units stay below the number of loads; the caller has made room for the rows.
    unsafe {
        weight::dequantize::launch_unchecked(
            &to.client.clone(),
            CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            weight::launch(&weight),
            to.clone().into_buffer_arg(),
            len / CODES,
            at * k / 4,
            is_double(&weight),
            dtype_to_elem_type(dtype),
        );
    }
    to
}
