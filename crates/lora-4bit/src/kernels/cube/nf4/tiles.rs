//! Products with weights in NF4 on the tensor cores of NVIDIA's GPUs.
//!
//! Each plane multiplies 16 rows of the weight, or 8 of a gate and 8 of what it multiplies, with up to 32 rows of
//! `x`. Four units hold a block of 64 codes of a row, 16 each. A table turns a byte, two codes, into two values in bf16: half
//! of a register of the tensor cores' left operand. The right one is `x`, of which each unit has the values that go with its
//! codes. The products of a block are summed up before they are scaled, so that only the 16 levels are rounded
//! to bf16, not the weights.

mod batch;
mod kernel;
mod memory;
mod pairs;
mod shape;
mod stage;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use self::shape::{Kind, PLANE};
use super::super::launch::empty;
use super::super::mat_vec::{Norm, norm_args};
use super::super::output::Outputs;
use super::weight::{self, is_double};
use crate::kernels::operand::Nf4Operand;
use crate::nf4::BLOCK_SIZE;

/// Rows of `x` that one instruction takes: the planes of a cube then serve more than one group of rows.
const FEW_ROWS: usize = 8;
/// Planes of a cube, at most: with few rows of `x`, and with more.
const MAX_PLANES: usize = 32;
const MAX_PLANES_OF_MANY: usize = 16;
/// Planes of a group that wait for memory together, and blocks of a row that are worth more of them.
const FEW_PLANES: usize = 8;
const PLANE_STEPS: usize = 7;
/// Groups of rows of a cube, at most.
const MAX_GROUPS: usize = 10;
/// Planes of a multiprocessor that keep it busy.
const WANTED_PLANES: usize = 34;
/// Blocks of a row that are worth a plane.
const MIN_PLANE_STEPS: usize = 3;
/// Blocks of a row in flight together, at most: in the only round with few rows of `x`, and otherwise.
const MAX_SINGLE: usize = 8;
const MAX_UNROLL: usize = 4;
/// Bytes of `x` that stay in shared memory, and that one round may take.
const MAX_RESIDENT: usize = 48 << 10;
const MAX_STAGE: usize = 96 << 10;
/// What codes of scales stand for, ends of rows and what alignment leaves free.
const OTHER_SHARED: usize = 6 << 10;
/// Enough for tables with a copy for each unit of a plane besides.
const ROOMY_SHARED: usize = 96 << 10;

impl Kind {
    fn new(x: &CubeTensor, weight: &Nf4Operand<Cube>, num_rows: usize, is_pair: bool) -> Self {
        let [m, k] = x.meta.shape().dims();
        let row_steps = k / BLOCK_SIZE;
        let x_rows = match m {
            0..=4 => m.next_power_of_two(),
            _ => m.next_multiple_of(8),
        };
        let is_few = x_rows <= FEW_ROWS;
        let hardware = &x.client.properties().hardware;
        let processors = hardware.num_streaming_multiprocessors.unwrap_or(64) as usize;
        let mut kind = Self {
            x_rows,
            groups: 1,
            planes: 1,
            tiles: if is_pair && !is_few { 2 } else { 1 },
            unroll: 1,
            stage_steps: 1,
            is_resident: false,
            is_single: false,
            is_ragged: false,
            copies: match hardware.max_shared_memory_size {
                ROOMY_SHARED.. if is_few => PLANE,
                _ => PLANE / 2,
            },
            has_bias: [false; 3],
            has_residual: false,
            has_norm: false,
            is_double: is_double(weight),
            is_pair,
            num_weights: 1,
        };
        let num_groups = num_rows.div_ceil(kind.group_rows());
        let most = if is_few {
            // One cube keeps a multiprocessor busy, so that tables are made once; all end together.
            let waves = num_groups.div_ceil(processors * MAX_GROUPS);
            kind.groups = num_groups.div_ceil(processors * waves);
            (MAX_PLANES / kind.groups).min(FEW_PLANES.max(row_steps / PLANE_STEPS))
        } else {
            (WANTED_PLANES * processors / num_groups).min(MAX_PLANES_OF_MANY)
        };
        // As few idle planes as possible.
        let balanced = |most: usize| row_steps.div_ceil(row_steps.div_ceil(most));
        kind.planes = balanced(most.min(row_steps / MIN_PLANE_STEPS).max(1));
        let step_bytes = x_rows * BLOCK_SIZE * 2;
        while kind.planes > 1 && kind.planes * step_bytes > kind.room(x) {
            kind.planes = balanced(kind.planes - 1);
        }
        let (room, per_plane) = (kind.room(x), row_steps.div_ceil(kind.planes));
        kind.is_resident = row_steps * step_bytes <= MAX_RESIDENT.min(room / 2);
        let fit = match kind.is_resident {
            true => usize::MAX,
            false => (room / (kind.planes * step_bytes)).max(1),
        };
        kind.unroll = match per_plane <= MAX_SINGLE.min(fit) && is_few {
            true => per_plane,
            // As few rounds as fit, all alike.
            false => per_plane.div_ceil(per_plane.div_ceil(MAX_UNROLL.min(fit))),
        };
        let round_steps = kind.planes * kind.unroll;
        kind.is_single = row_steps <= round_steps;
        kind.is_ragged = !row_steps.is_multiple_of(round_steps);
        kind.stage_steps = match kind.is_resident {
            true => row_steps.next_multiple_of(round_steps),
            false => round_steps,
        };
        kind
    }

    /// Bytes of shared memory that `x` may take.
    fn room(&self, x: &CubeTensor) -> usize {
        let hardware = &x.client.properties().hardware;
        let tables = if self.is_pair { 2 } else { 1 } * 256 * self.copies;
        let sums = self.units() * self.sums();
        let taken = (tables + sums + self.num_squares()) * 4 + OTHER_SHARED;
        MAX_STAGE.min(hardware.max_shared_memory_size.saturating_sub(taken))
    }
}

/// `norm(x) · wᵀ + bias` for up to three weights, and `+ residual` for one: `x [m, k]`, f32 if it is normalised, `w [n, k]` →
/// `[m, n]` f32.
pub(in super::super) fn products<const N: usize>(
    x: CubeTensor,
    norm: Option<Norm>,
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
    (kind.has_norm, kind.num_weights) = (norm.is_some(), N);
    let (norm, eps) = norm_args(&x, norm);
    let cubes = |i: usize| {
        let weight = weights.get(i);
        weight.map_or(0, |weight| weight.shape[0].div_ceil(kind.cube_rows()))
    };
    let [w0, w1, w2] = weight::launch_three(&weights);
    let [out0, out1, out2] = outputs.launch;
    let dtypes = [DType::BF16, x.dtype].map(dtype_to_elem_type);
    // SAFETY: `k` codes of each row exist, and rows past the last are clamped to it.
    unsafe {
        kernel::products::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static((cubes(0) + cubes(1) + cubes(2)) as u32, 1, 1),
            CubeDim::new_1d(kind.units() as u32),
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
            m,
            k / BLOCK_SIZE,
            eps,
            kind,
            dtypes,
        );
    }
    results
}

/// `silu(norm(x) · gateᵀ) · (norm(x) · upᵀ)`: `x [m, k]`, f32 if it is normalised, both weights `[n, k]` → `[m, n]` in bf16, to
/// which the next product would round it.
pub(in super::super) fn gated(
    x: CubeTensor,
    norm: Option<Norm>,
    [gate, up]: [Nf4Operand<Cube>; 2],
) -> CubeTensor {
    let x = into_contiguous(x);
    let ([m, k], [n, _]) = (x.meta.shape().dims(), gate.shape);
    let y = empty(&x, [m, n], DType::BF16);
    if m == 0 {
        return y;
    }
    let mut kind = Kind::new(&x, &gate, n, true);
    kind.has_norm = norm.is_some();
    let (norm, eps) = norm_args(&x, norm);
    let dtypes = [DType::BF16, x.dtype].map(dtype_to_elem_type);
    // SAFETY: as in `products`.
    unsafe {
        kernel::gated::launch_unchecked(
            &x.client.clone(),
            CubeCount::Static(n.div_ceil(kind.cube_rows()) as u32, 1, 1),
            CubeDim::new_1d(kind.units() as u32),
            x.into_buffer_arg(),
            norm.into_buffer_arg(),
            weight::launch(&gate),
            weight::launch(&up),
            y.clone().into_buffer_arg(),
            n,
            m,
            k / BLOCK_SIZE,
            eps,
            kind,
            dtypes,
        );
    }
    y
}
