//! Adapters of many rows at once: each row has one of a stack of adapters, or none.
//!
//! `x · aᵀ` first, some ranks of one row in each cube, then the sum of `b`'s rows times that, added to the base product.

mod kernels;
mod shape;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::Kind;
use super::launch::empty;
use super::planes::UNITS;
use crate::kernels::operand::{STACK_RANKS as RANKS, StackOperand};

/// Loads of a unit that are in flight together, at most.
const MAX_UNROLL: usize = 8;
/// Rows of `x`: as many cubes as a dimension holds everywhere.
const MAX_ROWS: usize = 65_535;

/// A base product and the stacked adapters of its layer.
pub(super) struct Layer {
    /// `[rows, out]`, f32.
    pub(super) y: CubeTensor,
    /// `[slots * rank * in]`.
    pub(super) a: CubeTensor,
    /// `[out * slots * rank]` and more.
    pub(super) b: CubeTensor,
    /// Ranks of the stack.
    pub(super) rank: usize,
    /// Slots of the stack: later ones are empty.
    pub(super) num_slots: usize,
}

/// Whether the kernels can read adapters. The device has plane operations: otherwise nothing is fused.
pub(super) fn supports(x: &CubeTensor, stack: &StackOperand<Cube>) -> bool {
    x.meta.shape()[0] <= MAX_ROWS
        && x.meta.shape()[1].is_multiple_of(8)
        && stack.rank.is_multiple_of(RANKS)
}

impl Layer {
    fn columns(&self) -> usize {
        self.y.meta.shape()[1]
    }
}

/// The arguments of a layer.
fn expansion<W: Float, N: Size>(layer: &Layer) -> kernels::ExpansionLaunch<W, N> {
    let b = layer.b.clone().into_buffer_arg();
    kernels::ExpansionLaunch::new(b, layer.columns(), layer.num_slots, layer.rank)
}

/// Values of `b` in a load.
fn vector_of_b(b: &CubeTensor) -> usize {
    let sizes = b.client.io_optimized_vector_sizes(b.dtype.size());
    let sizes = sizes.filter(|size| RANKS.is_multiple_of(*size));
    sizes.max().unwrap_or(1)
}

/// `x · aᵀ` of each row's adapter: `[layers, rows, rank]` f32, the rank being the largest of the layers.
fn shrink(x: CubeTensor, layers: &[Layer], slots: &CubeTensor, at: usize) -> (CubeTensor, usize) {
    let x = into_contiguous(x);
    let [rows, k] = x.meta.shape().dims();
    let client = x.client.clone();
    let vector = client
        .io_optimized_vector_sizes(layers[0].a.dtype.size())
        .filter(|size| k.is_multiple_of(*size))
        .max()
        .unwrap_or(1);
    let lanes = client.properties().hardware.plane_size_max as usize;
    let row_vectors = k / vector;
    let planes = if row_vectors > 512 { 4 } else { 1 };
    let planes = usize::min(planes, UNITS as usize / lanes);
    let loads = row_vectors.div_ceil(lanes * planes);
    let unroll = loads.div_ceil(loads.div_ceil(MAX_UNROLL));
    let kind = Kind {
        unroll,
        planes,
        is_ragged: !row_vectors.is_multiple_of(lanes * planes * unroll),
    };
    let ranks: [usize; 3] = std::array::from_fn(|i| layers.get(i).map_or(0, |layer| layer.rank));
    let max_rank = ranks.into_iter().max().unwrap_or(RANKS);
    let cubes = ranks.map(|ranks| ranks.div_ceil(UNITS as usize / lanes / planes));
    let h = empty(&x, [layers.len(), rows, max_rank], DType::F32);
    let layer = |i: usize| layers.get(i).unwrap_or(&layers[0]);
    let a = |i: usize| layer(i).a.clone();
    let dtypes = [x.dtype, layers[0].a.dtype].map(dtype_to_elem_type);
    // SAFETY: ranks and slots past the last are clamped to it when read; ranks are then left out when written.
    unsafe {
        kernels::shrink::launch_unchecked(
            &client,
            CubeCount::Static(cubes.iter().sum::<usize>() as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            x.into_buffer_arg(),
            a(0).into_buffer_arg(),
            a(1).into_buffer_arg(),
            a(2).into_buffer_arg(),
            slots.clone().into_buffer_arg(),
            h.clone().into_buffer_arg(),
            at,
            row_vectors,
            ranks[0],
            ranks[1],
            ranks[2],
            cubes[0],
            cubes[1],
            max_rank,
            layer(0).num_slots,
            layer(1).num_slots,
            layer(2).num_slots,
            kind,
            dtypes,
        );
    }
    (h, max_rank)
}

/// `y + x · aᵀ · b` for up to three layers, in place: `x [rows, in]`, and a slot for each row from `at` on in `slots`, or -1.
pub(super) fn add(x: CubeTensor, layers: &[Layer], slots: &CubeTensor, at: usize) {
    assert!((1..=3).contains(&layers.len()));
    let rows = x.meta.shape()[0];
    if rows == 0 {
        return;
    }
    let (h, max_rank) = shrink(x, layers, slots, at);
    let layer = |i: usize| layers.get(i).unwrap_or(&layers[0]);
    let columns = |i: usize| layers.get(i).map_or(0, Layer::columns);
    let cubes: [usize; 3] = std::array::from_fn(|i| columns(i).div_ceil(UNITS as usize));
    let vector = vector_of_b(&layers[0].b);
    // SAFETY: units stay below the number of columns, slots below those of the stack.
    unsafe {
        kernels::expand::launch_unchecked(
            &h.client.clone(),
            CubeCount::Static(cubes.iter().sum::<usize>() as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            h.into_buffer_arg(),
            expansion(layer(0)),
            expansion(layer(1)),
            expansion(layer(2)),
            layer(0).y.clone().into_buffer_arg(),
            layer(1).y.clone().into_buffer_arg(),
            layer(2).y.clone().into_buffer_arg(),
            slots.clone().into_buffer_arg(),
            at,
            cubes[0],
            cubes[1],
            max_rank,
            vector,
            dtype_to_elem_type(layers[0].b.dtype),
        );
    }
}

/// `silu(gate + x · aᵀ · b) · (up + x · aᵀ · b)`, each with its own adapter: `[rows, out]` of type `dtype`.
pub(super) fn gated(
    x: CubeTensor,
    layers: [Layer; 2],
    slots: &CubeTensor,
    at: usize,
    dtype: DType,
) -> CubeTensor {
    let [rows, out] = layers[0].y.meta.shape().dims();
    let result = empty(&x, [rows, out], dtype);
    if rows == 0 {
        return result;
    }
    let (h, max_rank) = shrink(x, &layers, slots, at);
    let columns = layers[0].columns();
    let dtypes = [layers[0].b.dtype, dtype].map(dtype_to_elem_type);
    let vector = vector_of_b(&layers[0].b);
    // SAFETY: as in `add`.
    unsafe {
        kernels::expand_gated::launch_unchecked(
            &h.client.clone(),
            CubeCount::Static(columns.div_ceil(UNITS as usize) as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS),
            vector,
            h.into_buffer_arg(),
            expansion(&layers[0]),
            expansion(&layers[1]),
            layers[0].y.clone().into_buffer_arg(),
            layers[1].y.clone().into_buffer_arg(),
            slots.clone().into_buffer_arg(),
            result.clone().into_buffer_arg(),
            at,
            max_rank,
            vector,
            dtypes,
        );
    }
    result
}
