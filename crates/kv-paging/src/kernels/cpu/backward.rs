//! The backward of causal attention within documents, by tiles (FlashAttention-2,
//! arXiv:2307.08691, algorithm 2): probabilities are recomputed from the log-sum-exp of each row.
//!
//! With `s` the scaled scores, `p = exp(s - lse)`, `dp = do · vᵀ` and `delta = Σ do ∘ o`, the
//! gradient of the scores is `ds = p ∘ (dp - delta)`; then `dv = pᵀ · do`, `dk = dsᵀ · q·scale`
//! and `dq = ds · k·scale`. One kernel goes over keys for a tile of queries and gives `dq`,
//! another over queries for a block of keys and gives `dk` and `dv`: each output row has one
//! writer, so that the result does not depend on the number of threads.

use super::gemm::{Left, Out, Strided, gemm, transpose};
use super::lanes::{Kernel, Lanes};
use super::tile::{Buffer, Heads, KEY_BLOCK, KeyTile, QueryTile, scale_row, scale_rows};

/// The saved tensors of a call and the gradient that came in. `q`, `out` and `d_out` are
/// `[tokens, heads, head_dim]`, `k` and `v` `[tokens, kv_heads, head_dim]`, `lse` and `delta`
/// `[tokens, heads]`.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub(super) heads: Heads,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) d_out: &'a [f32],
    pub(super) lse: &'a [f32],
    pub(super) delta: &'a [f32],
}

/// Working memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    q: Buffer,
    d_out: Buffer,
    keys: Buffer,
    values: Buffer,
    weights: Buffer,
    d_scores: Buffer,
    first: Buffer,
    second: Buffer,
}

/// `delta[row] = Σ do ∘ o` for rows of `head_dim` elements.
pub(super) struct Delta<'a> {
    pub(super) head_dim: usize,
    pub(super) out: &'a [f32],
    pub(super) d_out: &'a [f32],
    pub(super) delta: &'a mut [f32],
}

impl Kernel for Delta<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (row, delta) in self.delta.iter_mut().enumerate() {
            let out = self.out.as_ptr().add(row * self.head_dim);
            let d_out = self.d_out.as_ptr().add(row * self.head_dim);
            let mut sum = L::splat(0.0);
            for i in (0..self.head_dim).step_by(L::N) {
                sum = L::load(out.add(i)).mul_add(L::load(d_out.add(i)), sum);
            }
            *delta = sum.sum();
        }
    }
}

/// The keys and values of a tile, transposed to `[head_dim, KEY_BLOCK]`.
#[derive(Clone, Copy)]
struct Transposed {
    keys: *const f32,
    values: *const f32,
}

#[inline(always)]
unsafe fn transpose_tile(saved: &Saved<'_>, tile: &KeyTile, scratch: &mut Scratch) -> Transposed {
    let heads = &saved.heads;
    let len = heads.head_dim * KEY_BLOCK;
    let (keys, values) = (scratch.keys.get(len), scratch.values.get(len));
    for (from, to) in [(saved.k, keys), (saved.v, values)] {
        let rows = Strided {
            base: from.as_ptr().add(tile.offset(heads)),
            stride: heads.kv_stride(),
        };
        transpose(rows, to, KEY_BLOCK, [tile.len, heads.head_dim]);
    }
    Transposed { keys, values }
}

/// One pair of a query tile and a key block: leaves `p` in `weights` and `ds` in `d_scores`, both
/// `[rows, KEY_BLOCK]`, with zeros where a key is hidden.
#[inline(always)]
unsafe fn scores<L: Lanes>(
    saved: &Saved<'_>,
    queries: &QueryTile,
    keys: &KeyTile,
    transposed: Transposed,
    [q, d_out, weights, d_scores]: [*mut f32; 4],
) {
    let heads = &saved.heads;
    let (group, head_dim) = (heads.group(), heads.head_dim);
    let rows = queries.num_queries * group;
    let columns = keys.len.next_multiple_of(16);
    for (left, right, base) in [
        (q, transposed.keys, weights),
        (d_out, transposed.values, d_scores),
    ] {
        let left = Left {
            base: left,
            row: head_dim,
            col: 1,
        };
        let right = Strided::<f32> {
            base: right,
            stride: KEY_BLOCK,
        };
        let out = Out {
            base,
            stride: KEY_BLOCK,
            accumulate: false,
        };
        gemm::<L, _>(left, right, out, [rows, columns, head_dim]);
    }
    for row in 0..rows {
        let stat = queries.offset(heads, row / group) / head_dim + row % group;
        let lse = L::splat(saved.lse[stat]);
        let delta = L::splat(saved.delta[stat]);
        let weights = weights.add(row * KEY_BLOCK);
        let d_scores = d_scores.add(row * KEY_BLOCK);
        for i in (0..columns).step_by(L::N) {
            let weight = L::load(weights.add(i)).sub(lse).exp();
            weight.store(weights.add(i));
            let d_score = L::load(d_scores.add(i)).sub(delta).mul(weight);
            d_score.store(d_scores.add(i));
        }
        let visible = queries.visible(row / group, keys.first, keys.len);
        for hidden in [weights, d_scores] {
            std::slice::from_raw_parts_mut(hidden.add(visible), columns - visible).fill(0.0);
        }
    }
}

/// Copies the tile's rows of `q`, scaled, and of `d_out`.
#[inline(always)]
unsafe fn load_queries<L: Lanes>(saved: &Saved<'_>, tile: &QueryTile, [q, d_out]: [*mut f32; 2]) {
    scale_rows::<L>(saved.q.as_ptr(), q, &saved.heads, tile);
    let len = saved.heads.group() * saved.heads.head_dim;
    for t in 0..tile.num_queries {
        let from = saved.d_out.as_ptr().add(tile.offset(&saved.heads, t));
        std::ptr::copy_nonoverlapping(from, d_out.add(t * len), len);
    }
}

/// `dq` of one tile of queries.
pub(super) struct QueryGradient<'a> {
    pub(super) saved: Saved<'a>,
    /// Packed row of the document's first token.
    pub(super) document: usize,
    pub(super) tile: QueryTile,
    pub(super) dq: *mut f32,
    pub(super) scratch: &'a mut Scratch,
}

impl Kernel for QueryGradient<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self {
            saved,
            tile,
            scratch,
            ..
        } = self;
        let heads = &saved.heads;
        let (group, head_dim) = (heads.group(), heads.head_dim);
        let rows = tile.num_queries * group;
        let buffers = [
            scratch.q.get(rows * head_dim),
            scratch.d_out.get(rows * head_dim),
            scratch.weights.get(rows * KEY_BLOCK),
            scratch.d_scores.get(rows * KEY_BLOCK),
        ];
        let [q, d_out, _, d_scores] = buffers;
        let gradient = scratch.first.get(rows * head_dim);
        std::slice::from_raw_parts_mut(gradient, rows * head_dim).fill(0.0);
        load_queries::<L>(&saved, &tile, [q, d_out]);
        for first in tile.keys.clone().step_by(KEY_BLOCK) {
            let keys = KeyTile {
                document: self.document,
                document_len: tile.keys.end,
                kv_head: tile.kv_head,
                first,
                len: KEY_BLOCK.min(tile.keys.end - first),
            };
            let transposed = transpose_tile(&saved, &keys, scratch);
            scores::<L>(&saved, &tile, &keys, transposed, buffers);
            let right = Strided {
                base: saved.k.as_ptr().add(keys.offset(heads)),
                stride: heads.kv_stride(),
            };
            let left = Left {
                base: d_scores,
                row: KEY_BLOCK,
                col: 1,
            };
            let out = Out {
                base: gradient,
                stride: head_dim,
                accumulate: true,
            };
            gemm::<L, _>(left, right, out, [rows, head_dim, keys.len]);
        }
        for t in 0..tile.num_queries {
            let to = self.dq.add(tile.offset(heads, t));
            let from = gradient.add(t * group * head_dim);
            scale_row::<L>(from, to, group * head_dim, heads.scale());
        }
    }
}

/// `dk` and `dv` of one block of keys.
pub(super) struct KeyGradient<'a> {
    pub(super) saved: Saved<'a>,
    pub(super) tile: KeyTile,
    pub(super) dk: *mut f32,
    pub(super) dv: *mut f32,
    pub(super) scratch: &'a mut Scratch,
}

impl Kernel for KeyGradient<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self {
            saved,
            tile,
            scratch,
            ..
        } = self;
        let heads = &saved.heads;
        let (group, head_dim) = (heads.group(), heads.head_dim);
        let max_rows = heads.tile_queries() * group;
        let buffers = [
            scratch.q.get(max_rows * head_dim),
            scratch.d_out.get(max_rows * head_dim),
            scratch.weights.get(max_rows * KEY_BLOCK),
            scratch.d_scores.get(max_rows * KEY_BLOCK),
        ];
        let [q, d_out, weights, d_scores] = buffers;
        let (dk, dv) = (
            scratch.first.get(KEY_BLOCK * head_dim),
            scratch.second.get(KEY_BLOCK * head_dim),
        );
        for gradient in [dk, dv] {
            std::slice::from_raw_parts_mut(gradient, KEY_BLOCK * head_dim).fill(0.0);
        }
        let transposed = transpose_tile(&saved, &tile, scratch);
        for position in (tile.first..tile.document_len).step_by(heads.tile_queries()) {
            let queries = QueryTile {
                first_token: tile.document + position,
                num_queries: heads.tile_queries().min(tile.document_len - position),
                first_position: position,
                kv_head: tile.kv_head,
                keys: tile.first..tile.first + tile.len,
            };
            let rows = queries.num_queries * group;
            load_queries::<L>(&saved, &queries, [q, d_out]);
            scores::<L>(&saved, &queries, &tile, transposed, buffers);
            for (left, right, base) in [(weights, d_out, dv), (d_scores, q, dk)] {
                // The transpose of [rows, KEY_BLOCK].
                let left = Left {
                    base: left,
                    row: 1,
                    col: KEY_BLOCK,
                };
                let right = Strided::<f32> {
                    base: right,
                    stride: head_dim,
                };
                let out = Out {
                    base,
                    stride: head_dim,
                    accumulate: true,
                };
                gemm::<L, _>(left, right, out, [tile.len, head_dim, rows]);
            }
        }
        for (from, to) in [(dk, self.dk), (dv, self.dv)] {
            for j in 0..tile.len {
                let to = to.add(tile.offset(heads) + j * heads.kv_stride());
                std::ptr::copy_nonoverlapping(from.add(j * head_dim), to, head_dim);
            }
        }
    }
}
