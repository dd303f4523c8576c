//! Attention of one tile of queries over a range of keys, by online softmax (FlashAttention-2,
//! arXiv:2307.08691): running maximum `m`, running sum `l`, unnormalised output `o`.
//!
//! A tile's rows are the query heads of one key/value head for some consecutive queries, so each
//! key and value is loaded once for the whole group. Few rows (decode) take dot products straight
//! from the cache; many rows (prefill) transpose a block of keys and use a blocked product.

use super::gemm::{Indexed, Left, Out, Strided, dots, gemm, transpose};
use super::lanes::{Element, Kernel, Lanes};
use super::tile::{Buffer, Heads, KEY_BLOCK, KeyMap, QueryTile, scale_row, scale_rows};

/// Rows from which it pays to transpose a block of keys.
pub(super) const PACKED_ROWS: usize = 16;

/// Working memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    q: Buffer,
    keys: Buffer,
    values: Buffer,
    scores: Buffer,
    output: Buffer,
    max: Vec<f32>,
    sum: Vec<f32>,
    offsets: Vec<usize>,
    next_offsets: Vec<usize>,
}

/// Where a tile's result goes.
pub(super) enum Sink {
    /// Normalised rows to a tensor of the shape of `q`; if `lse` is not null, each row's
    /// log-sum-exp to `lse[token * heads + head]`.
    Output { out: *mut f32, lse: *mut f32 },
    /// Per row: unnormalised output, maximum and sum, `head_dim + 2` elements.
    Partial { rows: *mut f32 },
}

/// The kernel: `q` is `[tokens, heads, head_dim]`; `k` and `v` point to the rows `map` names.
pub(super) struct ForwardTile<'a, E> {
    pub(super) heads: Heads,
    pub(super) tile: QueryTile,
    pub(super) map: KeyMap<'a>,
    pub(super) q: *const f32,
    pub(super) k: *const E,
    pub(super) v: *const E,
    /// Whether blocks of keys are transposed. The products of a score are then added in another order.
    pub(super) packed: bool,
    pub(super) sink: Sink,
    pub(super) scratch: &'a mut Scratch,
}

impl<E: Element> Kernel for ForwardTile<'_, E> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self {
            heads,
            tile,
            map,
            scratch,
            ..
        } = self;
        let (group, head_dim) = (heads.group(), heads.head_dim);
        let rows = tile.num_queries * group;
        let q = scratch.q.get(rows * head_dim);
        let scores = scratch.scores.get(rows * KEY_BLOCK);
        let output = scratch.output.get(rows * head_dim);
        scale_rows::<L>(self.q, q, &heads, &tile);
        std::slice::from_raw_parts_mut(output, rows * head_dim).fill(0.0);
        for (stats, start) in [
            (&mut scratch.max, f32::NEG_INFINITY),
            (&mut scratch.sum, 0.0),
        ] {
            stats.clear();
            stats.resize(rows, start);
        }
        let left = |base: *const f32, row| Left { base, row, col: 1 };
        let to_scores = Out {
            base: scores,
            stride: KEY_BLOCK,
            accumulate: false,
        };
        let to_output = Out {
            base: output,
            stride: head_dim,
            accumulate: true,
        };
        let cell = [heads.kv_stride(), tile.kv_head * head_dim];
        let positions = |start: usize| start..tile.keys.end.min(start + KEY_BLOCK);
        let mut block = tile.keys.start;
        map.offsets(positions(block), cell, &mut scratch.offsets);
        while block < tile.keys.end {
            let len = positions(block).len();
            let columns = len.next_multiple_of(16);
            map.offsets(positions(block + len), cell, &mut scratch.next_offsets);
            if !self.packed {
                // Little arithmetic per byte: the values and the next keys are fetched meanwhile.
                prefetch_rows::<L, E>(self.v, &scratch.offsets, head_dim);
                prefetch_rows::<L, E>(self.k, &scratch.next_offsets, head_dim);
            }
            let offsets = scratch.offsets.as_slice();
            let k = Indexed {
                base: self.k,
                offsets,
            };
            let v = Indexed {
                base: self.v,
                offsets,
            };
            if self.packed {
                let keys = scratch.keys.get(head_dim * KEY_BLOCK);
                transpose(k, keys, KEY_BLOCK, [len, head_dim]);
                let keys = Strided::<f32> {
                    base: keys,
                    stride: KEY_BLOCK,
                };
                gemm::<L, _>(
                    left(q, head_dim),
                    keys,
                    to_scores,
                    [rows, columns, head_dim],
                );
            } else {
                dots::<L, _>(left(q, head_dim), k, to_scores, [rows, len, head_dim]);
            }
            for row in 0..rows {
                let scores = scores.add(row * KEY_BLOCK);
                let visible = tile.visible(row / group, block, len);
                std::slice::from_raw_parts_mut(scores.add(visible), columns - visible)
                    .fill(f32::NEG_INFINITY);
                let (max, sum) = (&mut scratch.max[row], &mut scratch.sum[row]);
                let output = output.add(row * head_dim);
                softmax_row::<L>(scores, columns, [max, sum], output, head_dim);
            }
            if self.packed {
                let values = scratch.values.get(KEY_BLOCK * head_dim);
                for (j, &offset) in offsets.iter().enumerate() {
                    copy_row::<L, E>(self.v.add(offset), values.add(j * head_dim), head_dim);
                }
                let values = Strided::<f32> {
                    base: values,
                    stride: head_dim,
                };
                gemm::<L, _>(
                    left(scores, KEY_BLOCK),
                    values,
                    to_output,
                    [rows, head_dim, len],
                );
            } else {
                gemm::<L, _>(left(scores, KEY_BLOCK), v, to_output, [rows, head_dim, len]);
            }
            block += len;
            std::mem::swap(&mut scratch.offsets, &mut scratch.next_offsets);
        }
        for row in 0..rows {
            let from = output.add(row * head_dim);
            let (max, sum) = (scratch.max[row], scratch.sum[row]);
            match self.sink {
                Sink::Output { out, lse } => {
                    let offset = tile.offset(&heads, row / group) + row % group * head_dim;
                    scale_row::<L>(from, out.add(offset), head_dim, 1.0 / sum);
                    if !lse.is_null() {
                        *lse.add(offset / head_dim) = max + sum.ln();
                    }
                }
                Sink::Partial { rows } => {
                    let to = rows.add(row * (head_dim + 2));
                    std::ptr::copy_nonoverlapping(from, to, head_dim);
                    *to.add(head_dim) = max;
                    *to.add(head_dim + 1) = sum;
                }
            }
        }
    }
}

/// Fetches rows of `len` elements into the cache.
#[inline(always)]
unsafe fn prefetch_rows<L: Lanes, E>(base: *const E, offsets: &[usize], len: usize) {
    const LINE: usize = 64;
    for &offset in offsets {
        for i in (0..len).step_by(LINE / size_of::<E>()) {
            L::prefetch(base.add(offset + i).cast());
        }
    }
}

#[inline(always)]
unsafe fn copy_row<L: Lanes, E: Element>(from: *const E, to: *mut f32, len: usize) {
    for i in (0..len).step_by(L::N) {
        E::load::<L>(from.add(i)).store(to.add(i));
    }
}

/// Turns a row's scores into weights relative to its new maximum and rescales its output so far.
#[inline(always)]
unsafe fn softmax_row<L: Lanes>(
    scores: *mut f32,
    columns: usize,
    [max, sum]: [&mut f32; 2],
    output: *mut f32,
    head_dim: usize,
) {
    let mut lanes_max = L::splat(*max);
    for i in (0..columns).step_by(L::N) {
        lanes_max = lanes_max.max(L::load(scores.add(i)));
    }
    let new_max = lanes_max.max_lane();
    let lanes_max = L::splat(new_max);
    let mut lanes_sum = L::splat(0.0);
    for i in (0..columns).step_by(L::N) {
        let weight = L::load(scores.add(i)).sub(lanes_max).exp();
        weight.store(scores.add(i));
        lanes_sum = lanes_sum.add(weight);
    }
    let block_sum = lanes_sum.sum();
    if new_max > *max {
        if *max > f32::NEG_INFINITY {
            let factor = (*max - new_max).exp();
            *sum *= factor;
            scale_row::<L>(output, output, head_dim, factor);
        }
        *max = new_max;
    }
    *sum += block_sum;
}
