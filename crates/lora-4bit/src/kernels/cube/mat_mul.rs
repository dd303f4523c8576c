//! `x · wᵀ` with tensor cores, on GPUs of NVIDIA: each cube computes a tile of the result, step by step along the inner
//! dimension.
//!
//! Tiles of both factors go from global to shared memory without passing through registers, some steps ahead of the one
//! that is multiplied. A result of few tiles is also cut along the inner dimension; the cube of a tile that ends last adds
//! the parts up, in their order, so that the result doesn't depend on which one it is.

mod kernel;
mod stage;

use std::cell::RefCell;

use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use super::empty;

/// Units of a plane.
const PLANE: usize = 32;
/// Values of 16 bits in a load.
const VECTOR: usize = 8;
/// Inner values of a step: a row of a tile then fills all banks of shared memory once.
const INNER: usize = 64;
/// Vectors of a row of a tile.
const CHUNKS: usize = INNER / VECTOR;
/// Cubes for each multiprocessor that keep it busy.
const WANTED_CUBES: usize = 2;
/// Steps that are worth a cube of their own.
const MIN_STEPS: usize = 4;
/// More parts cost more to add up than they save.
const MAX_SPLITS: usize = 16;
/// Tiles that can be cut along the inner dimension: others are enough.
const MAX_SPLIT_TILES: usize = 1024;

/// The part of the result that a cube computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    columns: usize,
    /// Planes along the rows and along the columns.
    planes: [usize; 2],
    /// Steps that are in shared memory together.
    stages: usize,
}

impl Tile {
    const fn units(&self) -> usize {
        self.planes[0] * self.planes[1] * PLANE
    }

    /// Blocks of 16 rows of a plane.
    const fn row_blocks(&self) -> usize {
        self.rows / self.planes[0] / 16
    }

    /// Blocks of 8 columns of a plane.
    const fn column_blocks(&self) -> usize {
        self.columns / self.planes[1] / 8
    }

    /// Sums of a unit, in pairs.
    const fn pairs(&self) -> usize {
        self.row_blocks() * self.column_blocks() * 2
    }

    /// Bytes of shared memory.
    const fn num_bytes(&self) -> usize {
        (self.rows + self.columns) * INNER * 2 * self.stages
    }

    /// For a product with `rows` rows of `x`.
    fn of(rows: usize) -> Self {
        let (rows, columns, planes, stages) = match rows {
            0..=16 => (16, 64, [1, 4], 5),
            17..=32 => (32, 64, [1, 4], 5),
            33..=64 => (64, 64, [2, 2], 4),
            65..=320 => (64, 128, [1, 4], 4),
            _ => (128, 128, [2, 2], 3),
        };
        Self {
            rows,
            columns,
            planes,
            stages,
        }
    }
}

/// What a cube multiplies with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Weights {
    One,
    /// Results of their own, of two or three weights.
    Three,
    /// A gate and what it multiplies: `silu(x · w0ᵀ) · (x · w1ᵀ)`. Columns of a plane are half gates.
    Gated,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    tile: Tile,
    weights: Weights,
    has_bias: [bool; 3],
    has_residual: bool,
    is_split: bool,
}

/// Whether tensor cores multiply values of a type of 16 bits, with all that the kernels use besides.
pub(super) fn has_cores(x: &CubeTensor, dtype: DType) -> bool {
    let kind = match dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => return false,
    };
    let config = MmaConfig {
        a_type: ElemType::Float(kind),
        b_type: ElemType::Float(kind),
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    let (hardware, features) = (&x.client.properties().hardware, x.client.features());
    features.matmul.mma.contains(&config)
        && features.matmul.ldmatrix.contains(&ElemType::Float(kind))
        && features.copy_async
        && features.device_memory_scope
        && [hardware.plane_size_min, hardware.plane_size_max] == [PLANE as u32; 2]
}

/// Whether the kernel can multiply `x` with a weight of `shape`.
pub(super) fn supports_shape(x: &CubeTensor, [n, k]: [usize; 2], dtype: DType) -> bool {
    let shared = x.client.properties().hardware.max_shared_memory_size;
    (x.dtype == DType::F32 || x.dtype == dtype)
        && has_cores(x, dtype)
        && Tile::of(x.meta.shape()[0]).num_bytes() <= shared
        && k.is_multiple_of(INNER)
        && n.is_multiple_of(2)
}

/// Whether the device has what the kernel uses, and the kernel can read these tensors.
pub(super) fn supports(x: &CubeTensor, w: &CubeTensor) -> bool {
    supports_shape(x, w.meta.shape().dims(), w.dtype)
        && !w.meta.is_tiled()
        && w.meta.strides()[1] == 1
        && w.meta.strides()[0].is_multiple_of(VECTOR)
}

/// `x · wᵀ + bias + residual`: `x [m, k]`, `w [n, k]` → `[m, n]` f32.
pub(super) fn product(
    x: CubeTensor,
    w: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    let y = empty(&x, [rows(&x), rows(&w)], DType::F32);
    launch(
        x,
        &[w],
        [bias, None, None],
        residual,
        std::slice::from_ref(&y),
    );
    y
}

/// `x · wᵀ + bias` for three weights of the same type and inner stride.
pub(super) fn three_products(
    x: CubeTensor,
    weights: [CubeTensor; 3],
    biases: [Option<CubeTensor>; 3],
) -> [CubeTensor; 3] {
    let results = weights
        .each_ref()
        .map(|w| empty(&x, [rows(&x), rows(w)], DType::F32));
    launch(x, &weights, biases, None, &results);
    results
}

/// `x · wᵀ` for two weights of the same type and inner stride.
pub(super) fn two_products(x: CubeTensor, weights: [CubeTensor; 2]) -> [CubeTensor; 2] {
    let results = weights
        .each_ref()
        .map(|w| empty(&x, [rows(&x), rows(w)], DType::F32));
    launch(x, &weights, [None, None, None], None, &results);
    results
}

/// `silu(x · gateᵀ) · (x · upᵀ)`; in bf16 if the weights are, since the next product would round it to that. Values may be too
/// large for f16.
pub(super) fn gated(x: CubeTensor, gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let dtype = match gate.dtype {
        DType::BF16 => DType::BF16,
        _ => DType::F32,
    };
    let y = empty(&x, [rows(&x), rows(&gate)], dtype);
    launch(
        x,
        &[gate, up],
        [None, None, None],
        None,
        std::slice::from_ref(&y),
    );
    y
}

fn rows(tensor: &CubeTensor) -> usize {
    tensor.meta.shape()[0]
}

fn launch(
    x: CubeTensor,
    weights: &[CubeTensor],
    biases: [Option<CubeTensor>; 3],
    residual: Option<CubeTensor>,
    results: &[CubeTensor],
) {
    let [m, k] = x.meta.shape().dims();
    if m == 0 {
        return;
    }
    let kind = match (weights.len(), results.len()) {
        (1, _) => Weights::One,
        (2, 1) => Weights::Gated,
        _ => Weights::Three,
    };
    let tile = Tile::of(m);
    let x = match x.dtype == weights[0].dtype {
        true => into_contiguous(x),
        // A converted tensor may have longer rows.
        false => burn_cubecl::kernel::cast(into_contiguous(x), weights[0].dtype),
    };
    let client = x.client.clone();
    let result_columns = match kind {
        Weights::Gated => tile.columns / 2,
        _ => tile.columns,
    };
    let column_tiles: [usize; 3] = std::array::from_fn(|i| {
        let result = results.get(i);
        result.map_or(0, |y| y.meta.shape()[1].div_ceil(result_columns))
    });
    let (columns, row_tiles) = (column_tiles.iter().sum::<usize>(), m.div_ceil(tile.rows));
    let steps = k / INNER;
    let multiprocessors = client.properties().hardware.num_streaming_multiprocessors;
    let wanted = WANTED_CUBES * multiprocessors.unwrap_or(64) as usize;
    let most = match columns * row_tiles <= MAX_SPLIT_TILES {
        true => MAX_SPLITS.min(steps / MIN_STEPS).max(1),
        false => 1,
    };
    let splits = (wanted / (columns * row_tiles)).clamp(1, most);
    let steps_per_split = steps.div_ceil(splits);
    let splits = steps.div_ceil(steps_per_split);
    let parts = match splits {
        1 => results[0].clone(),
        _ => {
            let len = columns * row_tiles * splits * tile.pairs() * tile.units() * 2;
            empty(&x, [len], DType::F32)
        }
    };
    // Arguments that a kernel has no use for are another one.
    let weight = |i: usize| weights.get(i).unwrap_or(&weights[0]).clone();
    let result = |i: usize| results.get(i).unwrap_or(&results[0]).clone();
    let result_len = |i: usize| results.get(i).map_or(0, |y| y.meta.shape()[1]);
    let has_bias = biases.each_ref().map(Option::is_some);
    let kind = Kind {
        tile,
        weights: kind,
        has_bias,
        has_residual: residual.is_some(),
        is_split: splits > 1,
    };
    let [bias0, bias1, bias2] = biases.map(|bias| bias.map_or_else(|| x.clone(), into_contiguous));
    let residual = residual.map_or_else(|| x.clone(), into_contiguous);
    let counters = arrival_counters(&x);
    let dtypes = [weights[0].dtype, results[0].dtype].map(dtype_to_elem_type);
    let x_stride = x.meta.strides()[0] / VECTOR;
    let w_stride = weights[0].meta.strides()[0] / VECTOR;
    // SAFETY: rows past the last one are clamped to it when read and left out when written.
    unsafe {
        kernel::mat_mul::launch_unchecked(
            &client,
            CubeCount::Static(columns as u32, row_tiles as u32, splits as u32),
            CubeDim::new_1d(tile.units() as u32),
            x.into_buffer_arg(),
            weight(0).into_buffer_arg(),
            weight(1).into_buffer_arg(),
            weight(2).into_buffer_arg(),
            bias0.into_buffer_arg(),
            bias1.into_buffer_arg(),
            bias2.into_buffer_arg(),
            residual.into_buffer_arg(),
            parts.into_buffer_arg(),
            counters.into_buffer_arg(),
            result(0).into_buffer_arg(),
            result(1).into_buffer_arg(),
            result(2).into_buffer_arg(),
            m,
            result_len(0),
            result_len(1),
            result_len(2),
            column_tiles[0],
            column_tiles[1],
            x_stride,
            w_stride,
            steps,
            steps_per_split,
            kind,
            dtypes,
        );
    }
}

thread_local! {
    /// See [`arrival_counters`].
    static COUNTERS: RefCell<Vec<CubeTensor>> = const { RefCell::new(Vec::new()) };
}

/// Forgets this thread's counters: after a failed launch they may not be zero.
pub(in super::super) fn forget_counters() {
    COUNTERS.with_borrow_mut(Vec::clear);
}

/// Counts of the cubes that have ended their part of a tile, all zero between launches.
///
/// For each thread, since each may have a queue of its own on the device.
fn arrival_counters(like: &CubeTensor) -> CubeTensor {
    COUNTERS.with_borrow_mut(|all| {
        if let Some(counters) = all.iter().find(|counters| counters.device == like.device) {
            return counters.clone();
        }
        let (client, device) = (like.client.clone(), like.device.clone());
        let counters = zeros_client(client, device, Shape::new([MAX_SPLIT_TILES]), DType::U32);
        all.push(counters.clone());
        counters
    })
}
