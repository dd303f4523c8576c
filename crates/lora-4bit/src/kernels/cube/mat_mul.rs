//! `x · wᵀ` with tensor cores, on GPUs of NVIDIA: each cube computes a tile of the result, step by step along the inner
//! dimension.
//!
//! Tiles of both operands go from global to shared memory without passing through registers, some steps ahead of the one
//! that is multiplied. A result of few tiles is also cut along the inner dimension; the cube of a tile that ends last adds
//! the parts up, in their order, so that the result doesn't depend on which one it is.

mod adapters;
mod kernel;
mod layers;
mod parts;
mod shape;
mod stage;

use std::cell::RefCell;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::{Kind, MAX_ROW_TILES, MAX_SHRINK_TILES, MAX_SPLIT_TILES, NUM_COUNTERS, Weights};
use super::super::operand::StackOperand;
use super::super::tile::{INNER, MAX_SPLITS, Tile, VECTOR};
use super::gemm;
use super::launch::empty;

/// Cubes for each multiprocessor that keep it busy.
const WANTED_CUBES: usize = 2;
/// Steps that are worth a cube of their own.
const MIN_SPLIT_STEPS: usize = 4;
/// Steps of a part of a tile of adapters: others wait for them.
const SHRINK_STEPS: usize = 4;
/// Ranks of all slots, at most: most of them are multiplied with zeros.
const MAX_RANKS: usize = 1024;

/// A layer of a product.
pub(super) struct Layer {
    /// `[n, k]`.
    pub(super) w: CubeTensor,
    pub(super) bias: Option<CubeTensor>,
    pub(super) stack: Option<StackOperand<Cube>>,
}

impl Layer {
    /// Layers of these weights, biases and adapters.
    pub(super) fn all<const N: usize>(
        weights: [CubeTensor; N],
        biases: [Option<CubeTensor>; N],
        stacks: [Option<StackOperand<Cube>>; N],
    ) -> [Self; N] {
        let mut rest = biases.into_iter().zip(stacks);
        weights.map(|w| {
            let (bias, stack) = rest.next().unwrap_or_default();
            Self { w, bias, stack }
        })
    }
}

/// Whether the kernel can add adapters to the products of weights of type `dtype`.
pub(super) fn supports_stacks<const N: usize>(
    x: &CubeTensor,
    dtype: DType,
    stacks: [&Option<StackOperand<Cube>>; N],
) -> bool {
    let row_tiles = rows(x).div_ceil(Tile::of(rows(x)).rows);
    stacks.into_iter().flatten().all(|stack| {
        stack.a.dtype == dtype
            && stack.rank * stack.num_slots <= MAX_RANKS
            && row_tiles <= MAX_ROW_TILES
    })
}

/// `x · wᵀ + bias` for up to three layers with weights of the same type and inner stride, and `+ residual` for one.
pub(super) fn products<const N: usize>(
    x: CubeTensor,
    layers: [Layer; N],
    residual: Option<CubeTensor>,
) -> [CubeTensor; N] {
    assert!((1..=3).contains(&N) && (N == 1 || residual.is_none()));
    if layers
        .iter()
        .all(|layer| layer.stack.is_none() && gemm::is_best(&x, &layer.w))
    {
        let x = in_dtype(x, layers[0].w.dtype);
        let mut residual = residual.map(into_contiguous);
        return layers.map(|Layer { w, bias, .. }| {
            let bias = bias.map(into_contiguous);
            gemm::linear(x.clone(), into_contiguous(w), bias, residual.take())
        });
    }
    let results =
        (layers.each_ref()).map(|layer| empty(&x, [rows(&x), rows(&layer.w)], DType::F32));
    let kind = if N == 1 { Weights::One } else { Weights::Three };
    launch(x, &layers, kind, residual, &results);
    results
}

/// `silu(x · gateᵀ) · (x · upᵀ)`; in bf16 if the weights are, since the next product would round it to that. Values may be too
/// large for f16.
pub(super) fn gated(x: CubeTensor, gate: Layer, up: Layer) -> CubeTensor {
    let dtype = match gate.w.dtype {
        DType::BF16 => DType::BF16,
        _ => DType::F32,
    };
    if dtype == DType::BF16
        && gate.stack.is_none()
        && up.stack.is_none()
        && gemm::is_best(&x, &gate.w)
    {
        let x = in_dtype(x, dtype);
        return gemm::gated(x, into_contiguous(gate.w), into_contiguous(up.w));
    }
    let y = empty(&x, [rows(&x), rows(&gate.w)], dtype);
    let results = [y.clone(), y.clone()];
    launch(x, &[gate, up], Weights::Gated, None, &results);
    y
}

/// `x` in rows without gaps, or in rows of one length.
fn in_dtype(x: CubeTensor, dtype: DType) -> CubeTensor {
    match x.dtype == dtype {
        true => into_contiguous(x),
        // A converted tensor may have longer rows.
        false => burn_cubecl::kernel::cast(into_contiguous(x), dtype),
    }
}

fn rows(tensor: &CubeTensor) -> usize {
    tensor.meta.shape()[0]
}

/// Parts of the inner dimension of a tile.
#[derive(Clone, Copy, Debug)]
struct Splits {
    num: usize,
    /// Steps of a part; the last one may have fewer.
    steps: usize,
}

impl Splits {
    /// At most `wanted` parts of `steps`.
    fn new(steps: usize, wanted: usize) -> Self {
        let length = steps.div_ceil(wanted);
        Self {
            num: steps.div_ceil(length),
            steps: length,
        }
    }
}

/// The tiles of a launch, and their parts: each is the work of a cube.
#[derive(Clone, Copy, Debug)]
struct Grid {
    tile: Tile,
    weights: Weights,
    /// Steps of the inner dimension.
    steps: usize,
    row_tiles: usize,
    /// Tiles along the columns of the results.
    column_tiles: usize,
    splits: Splits,
    /// Tiles along the columns of `x · aᵀ`.
    shrink_tiles: usize,
    shrink_splits: Splits,
}

impl Grid {
    /// For `x` of `[m, k]`.
    fn new([m, k]: [usize; 2], layers: &[Layer], weights: Weights, multiprocessors: usize) -> Self {
        let tile = Tile::of(m);
        let (row_tiles, steps) = (m.div_ceil(tile.rows), k / INNER);
        let columns = |layer: &Layer| column_tiles(layer, tile, weights);
        let column_tiles = match weights {
            Weights::Gated => columns(&layers[0]),
            _ => layers.iter().map(columns).sum(),
        };
        let shrink_tiles: usize = layers.iter().map(|layer| shrink_tiles(layer, tile)).sum();
        let wanted = WANTED_CUBES * multiprocessors;
        let tiles = column_tiles * row_tiles;
        let most = match tiles <= MAX_SPLIT_TILES {
            true => MAX_SPLITS.min(steps / MIN_SPLIT_STEPS).max(1),
            false => 1,
        };
        let splits = Splits::new(steps, (wanted / tiles).clamp(1, most));
        let tiles = shrink_tiles * row_tiles;
        let most = match tiles <= MAX_SHRINK_TILES {
            true => steps.div_ceil(SHRINK_STEPS).min(MAX_SPLITS),
            false => 1,
        };
        Self {
            tile,
            weights,
            steps,
            row_tiles,
            column_tiles,
            splits,
            shrink_tiles,
            shrink_splits: Splits::new(steps, wanted.div_ceil(tiles.max(1)).clamp(1, most)),
        }
    }

    fn num_cubes(&self) -> usize {
        let of_results = self.column_tiles * self.splits.num;
        self.row_tiles * (of_results + self.shrink_tiles * self.shrink_splits.num)
    }

    /// Sums of all parts of the tiles of the results.
    fn parts_len(&self) -> usize {
        let tile_len = self.tile.pairs() * self.tile.units() * 2;
        match self.splits.num {
            1 => 0,
            num => self.column_tiles * self.row_tiles * num * tile_len,
        }
    }
}

/// Tiles along the columns of a layer's result.
fn column_tiles(layer: &Layer, tile: Tile, weights: Weights) -> usize {
    rows(&layer.w).div_ceil(layers::result_columns(tile, weights))
}

/// Tiles along the columns of `x · aᵀ` of a layer's adapters.
fn shrink_tiles(layer: &Layer, tile: Tile) -> usize {
    (b_steps(layer) * INNER).div_ceil(tile.columns)
}

/// Ranks of one of a layer's adapters.
fn ranks(layer: &Layer) -> usize {
    layer.stack.as_ref().map_or(0, |stack| stack.rank)
}

/// Steps of the ranks of all of a layer's adapters.
fn b_steps(layer: &Layer) -> usize {
    let stack = layer.stack.as_ref();
    stack.map_or(0, |stack| (stack.rank * stack.num_slots).div_ceil(INNER))
}

fn launch(
    x: CubeTensor,
    layers: &[Layer],
    weights: Weights,
    residual: Option<CubeTensor>,
    results: &[CubeTensor],
) {
    let [m, k] = x.meta.shape().dims();
    if m == 0 {
        return;
    }
    let dtype = layers[0].w.dtype;
    let x = in_dtype(x, dtype);
    let client = x.client.clone();
    let multiprocessors = client.properties().hardware.num_streaming_multiprocessors;
    let multiprocessors = multiprocessors.unwrap_or(64) as usize;
    let grid = Grid::new([m, k], layers, weights, multiprocessors);
    let (tile, splits, shrink_splits) = (grid.tile, grid.splits, grid.shrink_splits);

    let has_adapters = layers.iter().any(|layer| b_steps(layer) > 0);
    let h_steps: usize = layers.iter().map(b_steps).sum();
    let num_ranks: usize = layers.iter().map(ranks).sum();
    let readers = match weights {
        Weights::Gated => grid.column_tiles,
        _ => (layers.iter())
            .filter(|layer| b_steps(layer) > 0)
            .map(|layer| column_tiles(layer, tile, weights))
            .sum(),
    };
    let parts_len = grid.parts_len();
    // Where the kernel does not read an argument, another tensor stands in for it.
    let parts = match parts_len + shrink_splits.num * m * num_ranks {
        0 => results[0].clone(),
        len => empty(&x, [len], DType::F32),
    };
    let h = match has_adapters {
        true => empty(&x, [m * h_steps * INNER], dtype),
        false => x.clone(),
    };
    let rows_of = layers.iter().find_map(|layer| layer.stack.as_ref());
    let (slots, at) = rows_of.map_or((x.clone(), 0), |stack| (stack.slots.clone(), stack.at));
    let w_stride = layers[0].w.meta.strides()[0] / VECTOR;
    let args = layers::LayersLaunch::new(
        layer_args(0, layers, &x, &grid),
        layer_args(1, layers, &x, &grid),
        layer_args(2, layers, &x, &grid),
        w_stride,
        k / VECTOR,
    );
    let adapters = layers::AdaptersLaunch::new(
        h.clone().into_buffer_arg(),
        h_steps,
        // In pairs.
        parts_len / 2,
        num_ranks,
        slots.into_buffer_arg(),
        at,
        grid.shrink_tiles,
        shrink_splits.num,
        shrink_splits.steps,
        readers,
    );
    let has_bias = std::array::from_fn(|i| layers.get(i).is_some_and(|layer| layer.bias.is_some()));
    let kind = Kind {
        tile,
        weights,
        has_bias,
        has_residual: residual.is_some(),
        is_split: splits.num > 1,
        has_adapters,
        is_seamless: has_adapters && splits.num == 1 && grid.steps >= tile.stages,
    };
    let result = |i: usize| results.get(i).unwrap_or(&results[0]).clone();
    let residual = residual.map_or_else(|| x.clone(), into_contiguous);
    let counters = arrival_counters(&x);
    let dtypes = [dtype, results[0].dtype].map(dtype_to_elem_type);
    let x_stride = x.meta.strides()[0] / VECTOR;
    // SAFETY: rows past the last one are clamped to it when read and left out when written.
    unsafe {
        kernel::mat_mul::launch_unchecked(
            &client,
            CubeCount::Static(grid.num_cubes() as u32, 1, 1),
            CubeDim::new_1d(tile.units() as u32),
            x.into_buffer_arg(),
            args,
            adapters,
            residual.into_buffer_arg(),
            result(0).into_buffer_arg(),
            result(1).into_buffer_arg(),
            result(2).into_buffer_arg(),
            h.into_buffer_arg(),
            parts.into_buffer_arg(),
            counters.into_buffer_arg(),
            m,
            x_stride,
            grid.steps,
            splits.num,
            splits.steps,
            kind,
            dtypes,
        );
    }
}

/// The arguments of layer `i`. Where the kernel does not read one, or there is no such layer, another tensor stands in for it.
fn layer_args<W: Float>(
    i: usize,
    layers: &[Layer],
    x: &CubeTensor,
    grid: &Grid,
) -> layers::LayerLaunch<W> {
    let layer = layers.get(i);
    let known = layer.unwrap_or(&layers[0]);
    let bias = layer.and_then(|layer| layer.bias.clone());
    let stack = layer.and_then(|layer| layer.stack.as_ref());
    let (a, b) = stack.map_or((x.clone(), x.clone()), |stack| {
        (stack.a.clone(), stack.b.clone())
    });
    let before = || layers.iter().take(i);
    layers::LayerLaunch::new(
        known.w.clone().into_buffer_arg(),
        bias.map_or_else(|| x.clone(), into_contiguous)
            .into_buffer_arg(),
        layer.map_or(0, |layer| rows(&layer.w)),
        layer.map_or(0, |layer| column_tiles(layer, grid.tile, grid.weights)),
        a.into_buffer_arg(),
        b.into_buffer_arg(),
        stack.map_or(1, |stack| stack.rank),
        stack.map_or(0, |stack| stack.num_slots),
        layer.map_or(0, |layer| shrink_tiles(layer, grid.tile)),
        layer.map_or(0, b_steps),
        before().map(b_steps).sum(),
        before().map(ranks).sum(),
    )
}

thread_local! {
    /// See [`arrival_counters`].
    static COUNTERS: RefCell<Vec<CubeTensor>> = const { RefCell::new(Vec::new()) };
}

/// Forgets this thread's counters: after a failed launch they may not be zero.
pub(in super::super) fn forget_counters() {
    COUNTERS.with_borrow_mut(Vec::clear);
}

/// Counters of cubes, see [`ARRIVED`](shape::ARRIVED) and what follows it, all zero between launches.
///
/// For each thread, since each may have a queue of its own on the device.
fn arrival_counters(like: &CubeTensor) -> CubeTensor {
    COUNTERS.with_borrow_mut(|all| {
        if let Some(counters) = all.iter().find(|counters| counters.device == like.device) {
            return counters.clone();
        }
        let (client, device) = (like.client.clone(), like.device.clone());
        let counters = zeros_client(client, device, Shape::new([NUM_COUNTERS]), DType::U32);
        // In a dry run nothing makes them zero.
        if !cubecl::dry_run::dry_run() {
            all.push(counters.clone());
        }
        counters
    })
}
