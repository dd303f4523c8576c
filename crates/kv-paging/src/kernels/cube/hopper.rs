//! Attention of prompts and of training steps on Hopper's `wgmma`.

mod forward;
mod keys;
mod queries;
mod rows;
mod wgmma;

use std::sync::OnceLock;

use burn::backend::{Cube, DispatchDevice};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::features::Tma;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

use self::forward::tile::{CUBE_ROWS, Heads, LayoutLaunch, TILE_LEN};
use self::keys::TargetLaunch;
use self::rows::{SavedLaunch, UNITS, VECTOR};
use super::add_parts::add_parts;
use super::launch::{elem_type, empty};
use crate::batch_layout::BatchLayout;
use crate::kernels::device_ops::{Batch, Context};
use crate::kernels::training::heads::HeadShape;
use crate::kernels::training::parts::wide_parts;

/// Whether the kernels run on a device and take these heads.
pub(super) fn supports(client: &Client, shape: HeadShape) -> bool {
    let (hardware, features) = (&client.properties().hardware, client.features());
    // NVIDIA's Hopper has `wgmma`, and of its successors, which have TMA too, none. A variable takes it away, so that tests and
    // measurements on Hopper reach what other cards run.
    static IS_HIDDEN: OnceLock<bool> = OnceLock::new();
    let has_wgmma = features.tma.contains(Tma::Base)
        && features.matmul.scaled_mma.is_empty()
        && !*IS_HIDDEN.get_or_init(|| std::env::var_os("ASSUME_NO_WGMMA").is_some());
    has_wgmma
        && features.copy_async
        && client
            .properties()
            .supports_type(ElemType::Float(FloatKind::BF16))
        && matches!(shape.head_dim, 64 | 128)
        && shape.group() <= CUBE_ROWS
        && [
            forward::tile::memory_bytes(shape.head_dim),
            queries::memory_bytes(shape.head_dim),
            keys::memory_bytes(shape.head_dim),
        ]
        .into_iter()
        .all(|bytes| bytes <= hardware.max_shared_memory_size)
}

/// Whether a device has the kernels, and they take these heads.
pub(in crate::kernels) fn attends(device: &Device, shape: HeadShape) -> bool {
    let DispatchDevice::Cube(device) = device.as_dispatch() else {
        return false;
    };
    supports(&device.client(), shape)
}

/// Tiles of queries: each has its first row, its number of queries, the keys that the first one sees, and where its keys are.
pub(super) fn tiles(
    sequences: impl Iterator<Item = [usize; 4]>,
    shape: HeadShape,
) -> Vec<[usize; 4]> {
    let queries = CUBE_ROWS / shape.group();
    let mut tiles = Vec::new();
    for [row, len, context, keys] in sequences {
        let first = (0..len).step_by(queries);
        tiles.extend(first.map(|i| [row + i, queries.min(len - i), context + i, keys]));
    }
    // Tiles that see the most keys come first, so that none of them ends last.
    tiles.sort_by_key(|&[_, num, context, _]| std::cmp::Reverse(context + num));
    tiles
}

/// Tiles of documents, and their number: of the forward, and of the gradients of queries and of keys. Those of the gradients have
/// the document's first row and its length, and the first row of query heads, or the first key.
pub(super) fn training_tiles(lengths: &[usize], shape: HeadShape) -> [(usize, Vec<usize>); 3] {
    let (mut documents, mut queries, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut row = 0;
    for &len in lengths {
        documents.push([row, len, 1, row]);
        let rows = (0..len * shape.group()).step_by(rows::CUBE_ROWS);
        queries.extend(rows.map(|first| [row, len, first, 0]));
        let all = (0..len).step_by(rows::CUBE_ROWS);
        keys.extend(all.map(|first| [row, len, first, 0]));
        row += len;
    }
    // Tiles with the most work come first.
    queries.sort_by_key(|&[_, _, first, _]| std::cmp::Reverse(first));
    keys.sort_by_key(|&[_, len, first, _]| std::cmp::Reverse(len - first));
    let forward = tiles(documents.into_iter(), shape);
    [forward, queries, keys].map(|tiles| (tiles.len(), tiles.concat()))
}

/// The tiles of a step over a cache in bf16.
pub(in crate::kernels) fn tiles_of_step(
    layout: &BatchLayout,
    shape: HeadShape,
    device: &Device,
) -> Tensor<1, Int> {
    let tables = 3 * layout.slot_mapping.len();
    let sequences = layout.sequences.iter().map(|sequence| {
        let context = sequence.context_len - sequence.query_len + 1;
        let table = tables + sequence.blocks.start;
        [sequence.query_start, sequence.query_len, context, table]
    });
    let values: Vec<i32> = (tiles(sequences, shape).into_iter().flatten())
        .map(|value| value as i32)
        .collect();
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), (device, DType::I32))
}

/// Attention of `q` `[tokens, heads, head_dim]` over a cache: `[tokens, heads, head_dim]` of type `dtype`.
pub(super) fn attend(q: CubeTensor, context: Context<Cube>, dtype: DType) -> CubeTensor {
    let q = into_contiguous(q);
    let (k, v, tiles) = (context.keys, context.values, context.wide_tiles);
    let ([tokens, heads, head_dim], [_, kv_heads, _]) =
        (q.meta.shape().dims(), k.meta.shape().dims());
    let out = empty(&q, [tokens, heads, head_dim], dtype);
    let shape = HeadShape {
        heads,
        kv_heads,
        head_dim,
    };
    let chunks = head_dim / VECTOR;
    let layout = LayoutLaunch::new(heads * chunks, kv_heads * chunks, 0, 0);
    let num_tiles = tiles.meta.num_elements() / TILE_LEN;
    let lse = out.clone();
    let tensors = Tensors {
        q,
        k,
        v,
        step: context.indices,
        tiles,
        out: out.clone(),
        lse,
    };
    launch(tensors, num_tiles, layout, shape, context.block_size, false);
    out
}

/// The forward of a training step: see [`TrainingOps`](crate::kernels::device_ops::TrainingOps).
pub(super) fn attend_documents(
    qkv: CubeTensor,
    tiles: CubeTensor,
    num_tiles: usize,
    [out, lse]: [CubeTensor; 2],
    shape: HeadShape,
) {
    let chunks = shape.head_dim / VECTOR;
    let row = (shape.heads + 2 * shape.kv_heads) * chunks;
    let (keys_at, values_at) = (
        shape.heads * chunks,
        (shape.heads + shape.kv_heads) * chunks,
    );
    let layout = LayoutLaunch::new(row, row, keys_at, values_at);
    let tensors = Tensors {
        q: qkv.clone(),
        k: qkv.clone(),
        v: qkv,
        step: tiles.clone(),
        tiles,
        out,
        lse,
    };
    launch(tensors, num_tiles, layout, shape, 0, true);
}

/// The backward of a training step: see [`TrainingOps`](crate::kernels::device_ops::TrainingOps).
pub(super) fn differentiate(
    [qkv, out, lse, d_out]: [&CubeTensor; 4],
    tiles: CubeTensor,
    batch: Batch,
    d_qkv: &CubeTensor,
    shape: HeadShape,
) {
    let (client, dtype) = (qkv.client.clone(), elem_type(qkv));
    let [tokens, row] = qkv.meta.shape().dims();
    let delta = empty(qkv, [tokens, shape.heads], DType::F32);
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    let read = [qkv, d_out, lse];
    // SAFETY: the wrapper has compared the shapes; tiles name only tokens of `qkv`.
    unsafe {
        queries::query_gradients::launch_unchecked(
            &client,
            CubeCount::Static(shape.kv_heads as u32, batch.queries as u32, 1),
            CubeDim::new_1d(UNITS),
            saved_args(read),
            out.clone().into_buffer_arg(),
            tiles.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            d_qkv.clone().into_buffer_arg(),
            batch.queries_at,
            scale,
            shape,
            dtype,
        );
    }
    let parts = wide_parts(batch.keys * shape.kv_heads);
    let keys_len = 2 * shape.kv_heads * shape.head_dim;
    let queries_len = shape.heads * shape.head_dim;
    // In pairs of elements.
    let (to, target) = match parts {
        1 => (
            d_qkv.clone(),
            TargetLaunch::new(row / 2, queries_len / 2, 0, 1),
        ),
        _ => (
            empty(qkv, [parts, batch.num_tokens, keys_len], DType::F32),
            TargetLaunch::new(keys_len / 2, 0, batch.num_tokens * keys_len / 2, parts),
        ),
    };
    // SAFETY: as above.
    unsafe {
        keys::key_gradients::launch_unchecked(
            &client,
            CubeCount::Static((shape.kv_heads * parts) as u32, batch.keys as u32, 1),
            CubeDim::new_1d(UNITS),
            saved_args(read),
            delta.into_buffer_arg(),
            tiles.into_buffer_arg(),
            to.clone().into_buffer_arg(),
            batch.keys_at,
            target,
            scale,
            shape,
            [dtype, elem_type(&to)],
        );
    }
    if parts > 1 {
        add_parts(to, d_qkv, [parts, batch.num_tokens], shape);
    }
}

fn saved_args<E: Float>(tensors: [&CubeTensor; 3]) -> SavedLaunch<E> {
    let [qkv, d_out, lse] = tensors.map(|tensor| tensor.clone().into_buffer_arg());
    SavedLaunch::new(qkv, d_out, lse)
}

struct Tensors {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    step: CubeTensor,
    tiles: CubeTensor,
    out: CubeTensor,
    lse: CubeTensor,
}

fn launch(
    tensors: Tensors,
    num_tiles: usize,
    layout: LayoutLaunch,
    shape: HeadShape,
    block_size: usize,
    has_lse: bool,
) {
    if num_tiles == 0 {
        return;
    }
    let heads = Heads {
        shape,
        block_size,
        has_lse,
    };
    let dtypes = [&tensors.k, &tensors.q, &tensors.out].map(elem_type);
    // SAFETY: the wrapper has compared the shapes; a batch names only slots that exist, and its tiles only its tokens.
    unsafe {
        forward::attend::launch_unchecked(
            &tensors.q.client.clone(),
            CubeCount::Static(shape.kv_heads as u32, num_tiles as u32, 1),
            CubeDim::new_1d(UNITS),
            tensors.q.into_buffer_arg(),
            tensors.k.into_buffer_arg(),
            tensors.v.into_buffer_arg(),
            tensors.step.into_buffer_arg(),
            tensors.tiles.into_buffer_arg(),
            tensors.out.into_buffer_arg(),
            tensors.lse.into_buffer_arg(),
            layout,
            1.0 / (shape.head_dim as f32).sqrt(),
            heads,
            dtypes,
        );
    }
}
