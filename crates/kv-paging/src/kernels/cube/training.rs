//! Attention of a training step: FlashAttention-2 (arXiv:2307.08691) on the tensor cores of NVIDIA's GPUs, forward and
//! backward, and the rotation before it on every GPU.
//!
//! The backward has two kernels, so that no sum depends on the order in which cubes end: one goes through the keys of a tile
//! of queries, one through the queries of a tile of keys. Both compute the weights again, from the log-sum-exp.

mod forward;
mod keys;
mod queries;
mod rows;
mod tile;

use burn::backend::Cube;
use burn::backend::DispatchDevice;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use self::keys::RowsLaunch;
use self::queries::SavedLaunch;
use self::rows::{NormsLaunch, RangeLaunch, WIDTH};
use self::tile::{ROWS, TilesLaunch, UNITS};
use super::add_parts::add_parts;
use super::hopper;
use super::launch::{cubes, elem_type, empty};
use super::operands::AnglesLaunch;
use crate::kernels::device_ops::{Batch, HeadWeights, SavedOutput, TrainingOps};
use crate::kernels::training::heads::HeadShape;
use crate::kernels::training::parts::parts;

/// Units of a cube that goes through elements.
const ELEMENT_UNITS: usize = 256;

/// Whether a device has what the kernels on tensor cores use, and they take these heads.
pub(in crate::kernels) fn attends(device: &Device, shape: HeadShape) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    let client = device.client();
    let config = MmaConfig {
        a_type: ElemType::Float(FloatKind::BF16),
        b_type: ElemType::Float(FloatKind::BF16),
        cd_type: ElemType::Float(FloatKind::F32),
        m: 16,
        n: 8,
        k: 16,
    };
    let (hardware, features) = (&client.properties().hardware, client.features());
    let tiles = 6 * ROWS * shape.head_dim * size_of::<half::bf16>();
    let stats = 4 * ROWS * size_of::<f32>();
    matches!(shape.head_dim, 64 | 128)
        && features.matmul.mma.contains(&config)
        && features.matmul.ldmatrix.contains(&config.a_type)
        && features.copy_async
        && [hardware.plane_size_min, hardware.plane_size_max] == [32; 2]
        && hardware.max_shared_memory_size >= tiles + stats
}

/// Whether the kernels that turn heads take heads of this length.
pub(in crate::kernels) fn turns(shape: HeadShape) -> bool {
    shape.head_dim.is_multiple_of(2 * WIDTH) && shape.head_dim <= 2 * WIDTH * 128
}

/// Tiles of the documents: of queries for the forward, then of rows for both kernels of the backward, those with the most
/// work first.
pub(in crate::kernels) fn tiles(
    lengths: &[usize],
    shape: HeadShape,
    device: &Device,
) -> (Tensor<1, Int>, Batch) {
    let cut = |rows: usize| {
        let mut tiles = Vec::new();
        let mut document = 0;
        for &len in lengths {
            tiles.extend((0..len).step_by(rows).map(|first| [document, first, len]));
            document += len;
        }
        tiles
    };
    let [forward, queries, keys] = if hopper::attends(device, shape) {
        hopper::training_tiles(lengths, shape)
    } else {
        let mut tiles = [cut(forward::QUERIES), cut(ROWS), cut(ROWS)];
        tiles[0].sort_by_key(|&[_, first, _]| std::cmp::Reverse(first));
        tiles[1].sort_by_key(|&[_, first, _]| std::cmp::Reverse(first));
        tiles[2].sort_by_key(|&[_, first, len]| std::cmp::Reverse(len - first));
        tiles.map(|tiles| (tiles.len(), tiles.concat()))
    };
    let batch = Batch {
        num_tokens: lengths.iter().sum(),
        forward: forward.0,
        queries: queries.0,
        queries_at: forward.1.len(),
        keys: keys.0,
        keys_at: forward.1.len() + queries.1.len(),
    };
    let values = [forward.1, queries.1, keys.1].concat();
    let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
    let len = values.len();
    let list = Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32));
    (list, batch)
}

/// Sets the rows from `first` on to zero.
fn clear_rows(x: &CubeTensor, first: usize) {
    let [tokens, columns] = x.meta.shape().dims();
    let num = (tokens - first) * columns;
    if num > 0 {
        // SAFETY: units stay below the number of elements.
        unsafe {
            rows::clear::launch_unchecked(
                &x.client.clone(),
                cubes(num, ELEMENT_UNITS),
                CubeDim::new_1d(ELEMENT_UNITS as u32),
                x.clone().into_buffer_arg(),
                RangeLaunch::new(first * columns, num),
                elem_type(x),
            );
        }
    }
}

impl TrainingOps for Cube {
    fn training_forward(
        qkv: FloatTensor<Self>,
        tiles: IntTensor<Self>,
        batch: Batch,
        shape: HeadShape,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let qkv = into_contiguous(qkv);
        let [tokens, _] = qkv.meta.shape().dims();
        let out = empty(&qkv, [tokens, shape.heads * shape.head_dim], qkv.dtype);
        let lse = empty(&qkv, [tokens, shape.heads], DType::F32);
        clear_rows(&out, batch.num_tokens);
        clear_rows(&lse, batch.num_tokens);
        let dtype = elem_type(&qkv);
        if hopper::supports(&qkv.client, shape) {
            hopper::attend_documents(qkv, tiles, batch.forward, [out.clone(), lse.clone()], shape);
        } else if batch.forward > 0 {
            // SAFETY: the wrapper has compared the shapes; tiles name only tokens of `qkv`.
            unsafe {
                forward::attend::launch_unchecked(
                    &qkv.client.clone(),
                    CubeCount::Static(shape.heads as u32, batch.forward as u32, 1),
                    CubeDim::new_1d(UNITS as u32),
                    qkv.into_buffer_arg(),
                    TilesLaunch::new(tiles.into_buffer_arg(), 0),
                    out.clone().into_buffer_arg(),
                    lse.clone().into_buffer_arg(),
                    1.0 / (shape.head_dim as f32).sqrt(),
                    shape,
                    dtype,
                );
            }
        }
        (out, lse)
    }

    fn training_backward(
        qkv: FloatTensor<Self>,
        saved: SavedOutput<Self>,
        tiles: IntTensor<Self>,
        batch: Batch,
        shape: HeadShape,
    ) -> FloatTensor<Self> {
        let [qkv, out, lse, d_out] = [qkv, saved.out, saved.lse, saved.d_out].map(into_contiguous);
        let [tokens, row] = qkv.meta.shape().dims();
        let d_qkv = empty(&qkv, [tokens, row], qkv.dtype);
        clear_rows(&d_qkv, batch.num_tokens);
        if batch.keys == 0 {
            return d_qkv;
        }
        if hopper::supports(&qkv.client, shape) {
            hopper::differentiate([&qkv, &out, &lse, &d_out], tiles, batch, &d_qkv, shape);
            return d_qkv;
        }
        let delta = empty(&qkv, [tokens, shape.heads], DType::F32);
        let (client, dtype) = (qkv.client.clone(), elem_type(&qkv));
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        // SAFETY: the wrapper has compared the shapes; tiles name only tokens of `qkv`.
        unsafe {
            queries::query_gradients::launch_unchecked(
                &client,
                CubeCount::Static(shape.heads as u32, batch.queries as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                saved_args([&qkv, &d_out, &lse]),
                out.into_buffer_arg(),
                TilesLaunch::new(tiles.clone().into_buffer_arg(), batch.queries_at),
                delta.clone().into_buffer_arg(),
                d_qkv.clone().into_buffer_arg(),
                scale,
                shape,
                dtype,
            );
        }
        let parts = parts(batch.keys * shape.kv_heads, shape.group());
        let keys_len = 2 * shape.kv_heads * shape.head_dim;
        let queries_len = shape.heads * shape.head_dim;
        // In pairs of elements.
        let (to, rows) = match parts {
            1 => (
                d_qkv.clone(),
                RowsLaunch::new(row / 2, queries_len / 2, 0, shape.group()),
            ),
            _ => (
                empty(&qkv, [parts, batch.num_tokens, keys_len], DType::F32),
                RowsLaunch::new(
                    keys_len / 2,
                    0,
                    batch.num_tokens * keys_len / 2,
                    shape.group() / parts,
                ),
            ),
        };
        let tiles = TilesLaunch::new(tiles.into_buffer_arg(), batch.keys_at);
        // SAFETY: as above.
        unsafe {
            keys::key_gradients::launch_unchecked(
                &client,
                CubeCount::Static((shape.kv_heads * parts) as u32, batch.keys as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                saved_args([&qkv, &d_out, &lse]),
                delta.into_buffer_arg(),
                tiles,
                to.clone().into_buffer_arg(),
                rows,
                scale,
                shape,
                [dtype, elem_type(&to)],
            );
        }
        if parts > 1 {
            add_parts(to, &d_qkv, [parts, batch.num_tokens], shape);
        }
        d_qkv
    }

    fn training_turn(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        shape: HeadShape,
        direction: f32,
    ) -> FloatTensor<Self> {
        let [x, cos, sin] = [x, cos, sin].map(into_contiguous);
        // The values are part of the copy.
        let x = if x.can_mut() { x } else { x.copy() };
        let [tokens, _] = x.meta.shape().dims();
        let units = tokens * (shape.heads + shape.kv_heads) * shape.lanes();
        if units > 0 {
            // SAFETY: units of other rows do nothing.
            unsafe {
                rows::turn_in_place::launch_unchecked(
                    &x.client.clone(),
                    cubes(units, shape.units()),
                    CubeDim::new_1d(shape.units() as u32),
                    x.clone().into_buffer_arg(),
                    AnglesLaunch::new(cos.into_buffer_arg(), sin.into_buffer_arg()),
                    tokens,
                    direction,
                    shape,
                    elem_type(&x),
                );
            }
        }
        x
    }

    fn training_norm_turn(
        x: FloatTensor<Self>,
        weights: HeadWeights<Self>,
        shape: HeadShape,
    ) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let (norms, angles) = weights_args(weights);
        let y = empty(&x, x.meta.shape().clone(), x.dtype);
        let [tokens, _] = x.meta.shape().dims();
        let dtype = elem_type(&x);
        let units = tokens * shape.all() * shape.lanes();
        if units > 0 {
            // SAFETY: units behind the last row compute it too, and write nothing.
            unsafe {
                rows::turn_heads::launch_unchecked(
                    &x.client.clone(),
                    cubes(units, shape.units()),
                    CubeDim::new_1d(shape.units() as u32),
                    x.into_buffer_arg(),
                    norms,
                    angles,
                    y.clone().into_buffer_arg(),
                    tokens,
                    shape,
                    dtype,
                );
            }
        }
        y
    }

    fn training_norm_turn_back(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weights: HeadWeights<Self>,
        shape: HeadShape,
    ) -> FloatTensor<Self> {
        let [dy, x] = [dy, x].map(into_contiguous);
        let (norms, angles) = weights_args(weights);
        let dx = empty(&dy, dy.meta.shape().clone(), dy.dtype);
        let [tokens, _] = dy.meta.shape().dims();
        let dtype = elem_type(&dy);
        let units = tokens * shape.all() * shape.lanes();
        if units > 0 {
            // SAFETY: units behind the last row compute it too, and write nothing.
            unsafe {
                rows::turn_heads_back::launch_unchecked(
                    &dy.client.clone(),
                    cubes(units, shape.units()),
                    CubeDim::new_1d(shape.units() as u32),
                    dy.into_buffer_arg(),
                    x.into_buffer_arg(),
                    norms,
                    angles,
                    dx.clone().into_buffer_arg(),
                    tokens,
                    shape,
                    dtype,
                );
            }
        }
        dx
    }
}

fn saved_args<E: Float>(tensors: [&CubeTensor; 3]) -> SavedLaunch<E> {
    let [qkv, d_out, lse] = tensors.map(|tensor| tensor.clone().into_buffer_arg());
    SavedLaunch::new(qkv, d_out, lse)
}

fn weights_args(weights: HeadWeights<Cube>) -> (NormsLaunch, AnglesLaunch<Const<4>>) {
    let tensors = [weights.q, weights.k, weights.cos, weights.sin];
    let [q, k, cos, sin] = tensors.map(|x| into_contiguous(x).into_buffer_arg());
    (
        NormsLaunch::new(q, k, weights.eps),
        AnglesLaunch::new(cos, sin),
    )
}
