//! Products of many rows, with both operands read either way: forward passes, their gradients, and gradients of weights.
//!
//! `y[i, j] = Σ a[i, k] · b[j, k] + bias[j] + residual[i, j]` with operands of 16 bits and sums in f32. An operand lies in
//! memory with its inner dimension `k` along the rows ([`Major::Inner`]) or down the columns ([`Major::Outer`]). Its inner
//! dimension may go on in a second tensor: so a product and its adapter are one launch.
//!
//! Tiles come to shared memory by asynchronous copies some steps ahead. `wgmma` multiplies them on Hopper, `mma` on other
//! cards of NVIDIA with tensor cores. Large products have a kernel of their own on Hopper ([`tma`]).

mod kernel;
mod load;
mod mma;
pub(super) mod shape;
#[cfg(feature = "cuda")]
mod tma;
mod wgmma;

use burn::backend::DispatchDevice;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::*;

use self::load::OperandBuffersLaunch;
use self::shape::{Gate, Instruction, Kind};
use super::super::tile::{INNER, MAX_SPLITS, MIN_GEMM_STEPS, VECTOR};
use super::features;
use super::launch::empty;
use crate::kernels::operand::Major;
use crate::kernels::plan::fits_gemm;

/// Rows of a tile of [`Instruction::WgmmaTma`].
const WIDE_ROWS: usize = 128;
/// Rows of a gated product whose tiles are so few that their width is chosen for them.
const MAX_CHOSEN_ROWS: usize = 512;
/// What a tile costs beside the products of its columns, in columns.
const TILE_COLUMNS: usize = 32;

/// Columns of a tile of [`Instruction::WgmmaTma`]. Wide tiles read the least; narrower ones keep all multiprocessors busy where there
/// are few of them.
fn wide_columns(client: &Client, product: &Product) -> usize {
    let multiprocessors = multiprocessors(client);
    let [m, n] = product.shape;
    let row_tiles = m.div_ceil(WIDE_ROWS);
    if !product.is_gated() {
        let tiles = row_tiles * n.div_ceil(256);
        return match 2 * tiles <= multiprocessors {
            true => 128,
            false => 256,
        };
    }
    // Panels of an operand that is read the other way have 64 columns.
    if m > MAX_CHOSEN_ROWS || product.b.major != Major::Inner {
        return 256;
    }
    // Rounds of tiles, in columns of each.
    let time = |columns: usize| {
        let tiles = row_tiles * n.div_ceil(columns / 2);
        tiles.div_ceil(multiprocessors) * (columns + TILE_COLUMNS)
    };
    match time(144) < time(256) {
        true => 144,
        false => 256,
    }
}

/// Stages that fit into the shared memory of Hopper, 227 KiB, beside their barriers.
const fn wide_stages(columns: usize) -> usize {
    (220 << 10) / ((WIDE_ROWS + columns) * INNER * 2)
}

fn multiprocessors(client: &Client) -> usize {
    let hardware = &client.properties().hardware;
    hardware.num_streaming_multiprocessors.unwrap_or(64) as usize
}

impl Kind {
    fn new(client: &Client, product: &Product) -> Self {
        let columns = product.shape[1];
        let is_narrow = columns <= 64;
        let instruction = match features::has_wgmma(client) {
            true if columns > 128 || product.is_gated() => Instruction::WgmmaTma,
            true => Instruction::Wgmma,
            false => Instruction::Mma,
        };
        let (rows, columns, planes, stages) = match (instruction, is_narrow) {
            (Instruction::Wgmma, true) => (128, 64, [8, 1], 6),
            (Instruction::Wgmma, false) => (128, 128, [8, 1], 5),
            (Instruction::WgmmaTma, _) => {
                let columns = wide_columns(client, product);
                (WIDE_ROWS, columns, [8, 1], wide_stages(columns))
            }
            (Instruction::Mma, true) => (128, 64, [4, 1], 3),
            (Instruction::Mma, false) => (128, 128, [2, 2], 3),
        };
        Self {
            instruction,
            rows,
            columns,
            planes,
            stages,
            majors: [product.a.major, product.b.major],
            has_second: product.a.second.is_some(),
            gate: product.gate,
            has_bias: product.bias.is_some(),
            has_residual: product.residual.is_some(),
        }
    }
}

/// An operand of a product, its tensors on the device.
#[derive(Clone, Debug)]
pub(super) struct OperandTensors {
    /// `[outer, inner]` or `[inner, outer]`, contiguous.
    pub(super) first: CubeTensor,
    /// More of the inner dimension, or see [`Gate::Second`].
    pub(super) second: Option<CubeTensor>,
    pub(super) major: Major,
}

/// A product, see the module.
pub(super) struct Product {
    pub(super) a: OperandTensors,
    pub(super) b: OperandTensors,
    /// `[n]`, f32.
    pub(super) bias: Option<CubeTensor>,
    /// `[m, n]`, of the type of the result.
    pub(super) residual: Option<CubeTensor>,
    pub(super) gate: Gate,
    /// Rows and columns of the result.
    pub(super) shape: [usize; 2],
    /// Inner values of the first tensors, and of the second.
    pub(super) inner: [usize; 2],
    /// Of the result: f32 or the type of the operands.
    pub(super) dtype: DType,
}

/// Whether the kernel computes gated products, see [`supports_gemm`].
pub(in super::super) fn supports_gates(device: &Device) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => {
            cfg!(feature = "cuda") && features::has_wgmma(&device.client())
        }
        _ => false,
    }
}

/// Whether the kernel takes operands like `a`.
pub(in super::super) fn supports_gemm(
    a: &Tensor<2>,
    shape: [usize; 2],
    inner: [usize; 2],
    major_a: Major,
) -> bool {
    match a.device().as_dispatch() {
        DispatchDevice::Cube(device) => {
            let features = features::of_client(&device.client());
            fits_gemm(&features, a.dtype(), shape, inner, major_a)
        }
        _ => false,
    }
}

impl Product {
    fn is_gated(&self) -> bool {
        self.gate != Gate::None
    }

    /// `[m, n]`.
    pub(super) fn run(self) -> CubeTensor {
        let [m, n] = self.shape;
        let like = self.a.first.clone();
        let client = like.client.clone();
        let kind = Kind::new(&client, &self);
        let (row_tiles, column_tiles) = (m.div_ceil(kind.rows), n.div_ceil(kind.result_columns()));
        let steps = (self.inner[0] + self.inner[1]) / INNER;
        let tiles = row_tiles * column_tiles;
        let multiprocessors = multiprocessors(&client);
        let wanted = match kind.is_gated() {
            true => 1,
            false => (multiprocessors / tiles.max(1)).clamp(1, MAX_SPLITS),
        };
        let wanted = wanted.min(steps / MIN_GEMM_STEPS).max(1);
        let split_steps = steps.div_ceil(wanted);
        let splits = steps.div_ceil(split_steps);
        let (y, dtype) = match splits {
            1 => (empty(&like, [m, n], self.dtype), self.dtype),
            _ => (empty(&like, [splits, m * n], DType::F32), DType::F32),
        };
        if tiles == 0 {
            return y;
        }
        let dtypes = [like.dtype, dtype].map(dtype_to_elem_type);
        // Parts get bias and residual when they are added up.
        let (mut kind, mut terms) = (kind, [self.bias, self.residual]);
        let mut later = [const { None }; 2];
        if splits > 1 {
            (kind.has_bias, kind.has_residual) = (false, false);
            std::mem::swap(&mut terms, &mut later);
        }
        let [bias, residual] = terms;
        let bias = bias.unwrap_or_else(|| like.clone());
        let residual = residual.unwrap_or_else(|| y.clone());
        #[cfg(feature = "cuda")]
        if kind.instruction == Instruction::WgmmaTma {
            let work =
                tma::WorkLaunch::new(m, n, self.inner[0] / INNER, steps, split_steps, splits);
            let second = |operand: &OperandTensors| {
                let second = operand.second.as_ref();
                second.unwrap_or(&operand.first).clone()
            };
            let (second_a, second_b) = (second(&self.a), second(&self.b));
            let tiles_of = [
                tma::tile(kind.majors[0], kind.rows),
                tma::tile(kind.majors[1], kind.result_columns()),
            ];
            let cubes = (tiles * splits).min(multiprocessors);
            // SAFETY: the accelerator fills what is past the last row or column with zeros, and that is not written; the inner
            // dimension is a multiple of a step.
            unsafe {
                tma::gemm::launch_unchecked(
                    &client,
                    CubeCount::Static(cubes as u32, 1, 1),
                    CubeDim::new_1d(tma::UNITS),
                    tma::map(self.a.first, dtypes[0], tiles_of[0]),
                    tma::map(second_a, dtypes[0], tiles_of[0]),
                    tma::map(self.b.first, dtypes[0], tiles_of[1]),
                    tma::map(second_b, dtypes[0], tiles_of[1]),
                    bias.into_buffer_arg(),
                    residual.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    work,
                    kind,
                    dtype == DType::F32,
                    dtypes,
                );
            }
            return match splits {
                1 => y,
                _ => sum_parts(y, later, [m, n], self.dtype),
            };
        }
        let operand = |operand: OperandTensors, outer: usize| {
            let stride = |tensor: &CubeTensor| tensor.meta.strides()[0] / VECTOR;
            let first_stride = stride(&operand.first);
            let second = operand.second.unwrap_or_else(|| operand.first.clone());
            let second_stride = stride(&second);
            OperandBuffersLaunch::new(
                operand.first.into_buffer_arg(),
                second.into_buffer_arg(),
                first_stride,
                second_stride,
                outer,
            )
        };
        // SAFETY: rows and columns past the last are clamped to it when read and left out when written; the inner dimension is
        // a multiple of a step.
        unsafe {
            kernel::gemm::launch_unchecked(
                &client,
                CubeCount::Static(tiles as u32, splits as u32, 1),
                CubeDim::new_1d(kind.units() as u32),
                operand(self.a, m),
                operand(self.b, n),
                bias.into_buffer_arg(),
                residual.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                self.inner[0] / INNER,
                steps,
                split_steps,
                kind,
                dtypes,
            );
        }
        match splits {
            1 => y,
            _ => sum_parts(y, later, [m, n], self.dtype),
        }
    }
}

/// Rows from which the kernel is faster than the one of [`mat_mul`](super::mat_mul) for products without adapters: with any
/// weight, and with a large one.
const MIN_ROWS: usize = 512;
const MIN_ROWS_OF_LARGE: usize = 96;
/// Values of a large weight: its products have enough work for all multiprocessors.
const LARGE: usize = 8 << 20;

/// Whether `wgmma` multiplies `x` with weights `[n, k]` like `w` best.
pub(super) fn is_best(x: &CubeTensor, w: &CubeTensor) -> bool {
    let ([m, k], [n, _]): ([usize; 2], [usize; 2]) = (x.meta.shape().dims(), w.meta.shape().dims());
    let min_rows = match n * k < LARGE {
        true => MIN_ROWS,
        false => MIN_ROWS_OF_LARGE,
    };
    m >= min_rows
        && features::has_wgmma(&x.client)
        && fits_gemm(
            &features::features(x),
            w.dtype,
            [m, n],
            [k, 0],
            Major::Inner,
        )
}

/// `x · wᵀ + bias + residual`, in f32; both operands have one type.
pub(super) fn linear(
    x: CubeTensor,
    w: CubeTensor,
    bias: Option<CubeTensor>,
    residual: Option<CubeTensor>,
) -> CubeTensor {
    let operand = |first| OperandTensors {
        first,
        second: None,
        major: Major::Inner,
    };
    let ([m, k], [n, _]): ([usize; 2], [usize; 2]) = (x.meta.shape().dims(), w.meta.shape().dims());
    let product = Product {
        a: operand(x),
        b: operand(w),
        bias,
        residual,
        gate: Gate::None,
        shape: [m, n],
        inner: [k, 0],
        dtype: DType::F32,
    };
    product.run()
}

/// `dy · w` in f32, of operands in the type of `w`.
pub(super) fn linear_t(dy: CubeTensor, w: CubeTensor) -> CubeTensor {
    let ([m, n], [_, k]): ([usize; 2], [usize; 2]) =
        (dy.meta.shape().dims(), w.meta.shape().dims());
    let dy = match dy.dtype == w.dtype {
        true => dy,
        false => cast(dy, w.dtype),
    };
    let operand = |first: CubeTensor, major| OperandTensors {
        first: into_contiguous(first),
        second: None,
        major,
    };
    let product = Product {
        a: operand(dy, Major::Inner),
        b: operand(w, Major::Outer),
        bias: None,
        residual: None,
        gate: Gate::None,
        shape: [m, k],
        inner: [n, 0],
        dtype: DType::F32,
    };
    product.run()
}

/// `silu(x · gateᵀ) · (x · upᵀ)`, of the type of the operands.
pub(super) fn gated(x: CubeTensor, gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let ([m, k], [n, _]): ([usize; 2], [usize; 2]) =
        (x.meta.shape().dims(), gate.meta.shape().dims());
    let dtype = x.dtype;
    let product = Product {
        a: OperandTensors {
            first: x,
            second: None,
            major: Major::Inner,
        },
        b: OperandTensors {
            first: gate,
            second: Some(up),
            major: Major::Inner,
        },
        bias: None,
        residual: None,
        gate: Gate::Second,
        shape: [m, n],
        inner: [k, 0],
        dtype,
    };
    product.run()
}

/// The sum of the first dimension, in its order, and of the bias and the residual: `[parts, m * n]` f32 to `[m, n]` of type
/// `dtype`.
fn sum_parts(
    parts: CubeTensor,
    [bias, residual]: [Option<CubeTensor>; 2],
    [m, n]: [usize; 2],
    dtype: DType,
) -> CubeTensor {
    let y = empty(&parts, [m, n], dtype);
    let has_terms = [bias.is_some(), residual.is_some()];
    // Where the kernel does not read an argument, another tensor stands in for it.
    let (bias, residual) = (
        bias.unwrap_or_else(|| parts.clone()),
        residual.unwrap_or_else(|| y.clone()),
    );
    let num_parts = parts.meta.shape()[0];
    let vectors = m * n / 2;
    let cubes = vectors.div_ceil(256);
    let rows = cubes.div_ceil(65_535);
    // SAFETY: units stay below the number of vectors.
    unsafe {
        kernel::sum_parts::launch_unchecked(
            &y.client.clone(),
            CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1),
            CubeDim::new_1d(256),
            parts.into_buffer_arg(),
            bias.into_buffer_arg(),
            residual.into_buffer_arg(),
            y.clone().into_buffer_arg(),
            vectors,
            n / 2,
            num_parts,
            has_terms,
            dtype_to_elem_type(dtype),
        );
    }
    y
}
