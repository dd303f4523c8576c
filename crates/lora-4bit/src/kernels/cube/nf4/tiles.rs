//! Products with weights in NF4 on the tensor cores of NVIDIA's GPUs.
//!
//! Each plane multiplies 16 rows of the weight with up to [`MAX_ROWS`] rows of `x`. Four units hold a block of 64 codes of a
//! row, 16 each. A table turns a byte, two codes, into two values in bf16: half of a register of the tensor cores' left
//! factor. The right one is `x`, whose values lie in shared memory in the order in which the codes come. The products of a
//! block are summed up before they are scaled, so that only the 16 levels are rounded to bf16, not the weights.

mod kernel;
mod pairs;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::mat_mul::has_cores;
use super::super::output::Outputs;
use super::super::{Nf4Operand, empty};
use super::{Parts, is_double};
use crate::nf4::BLOCK_SIZE;

/// Rows of `x` at once, at most.
pub(in super::super) const MAX_ROWS: usize = 32;

/// Units of a plane.
const PLANE: usize = 32;
/// Rows of the weight of a plane.
const TILE: usize = 16;
/// Values of `x` in a load from shared memory.
const CHUNK: usize = 8;
/// Such loads of a block of codes.
const CHUNKS: usize = BLOCK_SIZE / CHUNK;
/// Copies of the table of pairs: units that read the same one may wait for each other.
const COPIES: usize = 16;
/// Planes of a cube, at most.
const MAX_PLANES: usize = 16;
/// Planes of a multiprocessor that keep it busy.
const WANTED_PLANES: usize = 34;
/// Blocks of a row that are worth a plane.
const MIN_STEPS: usize = 3;
/// Blocks of a row in flight together, at most: each of four units computes one scale.
const MAX_UNROLL: usize = 4;
/// Bytes of `x` that stay in shared memory, and that one round may take.
const MAX_RESIDENT: usize = 48 << 10;
const MAX_STAGE: usize = 96 << 10;
/// Ends of rows and what alignment leaves free.
const OTHER_SHARED: usize = 2 << 10;
/// Enough for the tables, the sums of one plane, and a block of all rows of `x`.
const MIN_SHARED: usize = 48 << 10;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Rows of `x` in shared memory.
    x_rows: usize,
    /// Planes that share 16 rows of the weight.
    planes: usize,
    /// Blocks of a row that a plane loads at once.
    unroll: usize,
    /// Blocks of the rows of `x` in shared memory.
    stage_steps: usize,
    /// Whether these are all.
    is_resident: bool,
    /// Whether there is one round.
    is_single: bool,
    /// Whether the last round goes past the end of a row.
    is_ragged: bool,
    has_bias: [bool; 3],
    has_residual: bool,
    /// Whether scales are double-quantized.
    is_double: bool,
    /// Whether the weights are a gate and what it multiplies.
    is_pair: bool,
    /// Weights with results of their own.
    num_weights: usize,
}

impl Kind {
    fn new(x: &CubeTensor, weight: &Nf4Operand<Cube>, num_rows: usize, is_pair: bool) -> Self {
        let [m, k] = x.meta.shape().dims();
        let row_steps = k / BLOCK_SIZE;
        let x_rows = match m {
            0..=4 => m.next_power_of_two(),
            _ => m.next_multiple_of(8),
        };
        let hardware = &x.client.properties().hardware;
        let processors = hardware.num_streaming_multiprocessors.unwrap_or(64) as usize;
        let wanted = WANTED_PLANES * processors / num_rows.div_ceil(TILE);
        let most = wanted.min(row_steps / MIN_STEPS).clamp(1, MAX_PLANES);
        // The power of two below.
        let mut planes = (most / 2 + 1).next_power_of_two();
        let step_bytes = x_rows * BLOCK_SIZE * 2;
        let room = |planes: usize| {
            let weights = if is_pair { 2 } else { 1 };
            let sums = planes * PLANE * x_rows.div_ceil(8) * 4;
            let taken = weights * (256 * COPIES + sums) * 4 + OTHER_SHARED;
            MAX_STAGE.min(hardware.max_shared_memory_size.saturating_sub(taken))
        };
        while planes > 1 && planes * step_bytes > room(planes) {
            planes /= 2;
        }
        let per_plane = row_steps.div_ceil(planes);
        let is_resident = row_steps * step_bytes <= MAX_RESIDENT.min(room(planes) / 2);
        let fit = match is_resident {
            true => MAX_UNROLL,
            false => MAX_UNROLL.min(room(planes) / (planes * step_bytes)).max(1),
        };
        // As few rounds as fit, all alike.
        let unroll = per_plane.div_ceil(per_plane.div_ceil(fit));
        let round_steps = planes * unroll;
        Self {
            is_single: row_steps <= round_steps,
            x_rows,
            planes,
            unroll,
            stage_steps: match is_resident {
                true => row_steps.next_multiple_of(round_steps),
                false => round_steps,
            },
            is_resident,
            is_ragged: !row_steps.is_multiple_of(round_steps),
            has_bias: [false; 3],
            has_residual: false,
            is_double: is_double(weight),
            is_pair,
            num_weights: 1,
        }
    }

    const fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Blocks of eight rows of `x`.
    const fn x_tiles(&self) -> usize {
        self.x_rows.div_ceil(8)
    }

    /// Weights that a plane multiplies.
    const fn weights(&self) -> usize {
        if self.is_pair { 2 } else { 1 }
    }

    /// Sums of a unit for each weight.
    const fn sums(&self) -> usize {
        self.x_tiles() * 4
    }

    /// Loads from one row of `x` in shared memory to the next; odd, so that eight rows lie in different banks.
    const fn stage_stride(&self) -> usize {
        self.stage_steps * CHUNKS + 1
    }
}

/// Whether the kernel can multiply `x` with a weight.
pub(in super::super) fn supports(x: &CubeTensor, weight: &Nf4Operand<Cube>) -> bool {
    let hardware = &x.client.properties().hardware;
    super::supports(weight)
        && has_cores(x, DType::BF16)
        && matches!(x.dtype, DType::F32 | DType::BF16)
        && hardware.max_shared_memory_size >= MIN_SHARED
}

/// `x · wᵀ + bias` for up to three weights, and `+ residual` for one: `x [m, k]`, `w [n, k]` → `[m, n]` f32.
pub(in super::super) fn products<const N: usize>(
    x: CubeTensor,
    weights: [Nf4Operand<Cube>; N],
    biases: [Option<CubeTensor>; N],
    residual: Option<CubeTensor>,
) -> [CubeTensor; N] {
    assert!((1..=3).contains(&N) && (N == 1 || residual.is_none()));
    let x = into_contiguous(x);
    let [m, k] = x.meta.shape().dims();
    let results = weights
        .each_ref()
        .map(|weight| empty(&x, [m, weight.shape[0]], DType::F32));
    if m == 0 {
        return results;
    }
    let num_rows = weights.iter().map(|weight| weight.shape[0]).sum();
    let mut kind = Kind::new(&x, &weights[0], num_rows, false);
    let outputs = Outputs::new(&biases, residual, &results);
    (kind.has_bias, kind.has_residual) = (outputs.has_bias, outputs.has_residual);
    kind.num_weights = N;
    let tiles = |i: usize| {
        let weight = weights.get(i);
        weight.map_or(0, |weight| weight.shape[0].div_ceil(TILE))
    };
    let [w0, w1, w2] = Parts::of_three(&weights);
    let [out0, out1, out2] = outputs.launch;
    let dtypes = [DType::BF16, x.dtype].map(dtype_to_elem_type);
    // SAFETY: `k` codes of each row exist, and rows past the last are clamped to it.
    unsafe {
        kernel::products::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static((tiles(0) + tiles(1) + tiles(2)) as u32, 1, 1),
            CubeDim::new_1d(kind.units() as u32),
            x.into_buffer_arg(),
            w0,
            w1,
            w2,
            outputs.residual,
            out0,
            out1,
            out2,
            tiles(0),
            tiles(1),
            m,
            k / BLOCK_SIZE,
            kind,
            dtypes,
        );
    }
    results
}

/// `silu(x · gateᵀ) · (x · upᵀ)`: `x [m, k]`, both weights `[n, k]` → `[m, n]` in bf16, to which the next product would
/// round it.
pub(in super::super) fn gated(x: CubeTensor, [gate, up]: [Nf4Operand<Cube>; 2]) -> CubeTensor {
    let x = into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), gate.shape);
    let y = empty(&x, [m, n], DType::BF16);
    if m == 0 {
        return y;
    }
    let kind = Kind::new(&x, &gate, n, true);
    let dtypes = [DType::BF16, x.dtype].map(dtype_to_elem_type);
    // SAFETY: as in `products`.
    unsafe {
        kernel::gated::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(n.div_ceil(TILE) as u32, 1, 1),
            CubeDim::new_1d(kind.units() as u32),
            x.into_buffer_arg(),
            Parts::of(&gate).launch(),
            Parts::of(&up).launch(),
            y.clone().into_buffer_arg(),
            n,
            m,
            k / BLOCK_SIZE,
            kind,
            dtypes,
        );
    }
    y
}
