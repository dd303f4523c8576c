//! What a tile is: which queries, which keys, where their rows lie, and its working memory.

use std::ops::Range;

use super::lanes::Lanes;

/// Keys per block of a tile.
pub(super) const KEY_BLOCK: usize = 64;
/// Rows a tile is cut to, at most, if the group is not larger.
pub(super) const TILE_ROWS: usize = 128;

/// Numbers of heads and elements shared by all tiles of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl Heads {
    /// Query heads per key/value head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements between tokens of `q`.
    pub(super) fn q_stride(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Elements between rows of `k` and `v`.
    pub(super) fn kv_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Factor of the scores.
    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Queries per tile.
    pub(super) fn tile_queries(&self) -> usize {
        (TILE_ROWS / self.group()).max(1)
    }
}

/// Consecutive queries of one sequence and one key/value head.
#[derive(Clone, Debug)]
pub(super) struct QueryTile {
    /// Packed row of the first query.
    pub(super) first_token: usize,
    pub(super) num_queries: usize,
    /// Position of the first query in its sequence.
    pub(super) first_position: usize,
    pub(super) kv_head: usize,
    /// Positions of the keys to attend to; the causal limit applies besides.
    pub(super) keys: Range<usize>,
}

impl QueryTile {
    /// Element of `q`, and of all tensors of its shape, at which query `t` of the tile starts;
    /// the rows of its group follow one another.
    pub(super) fn offset(&self, heads: &Heads, t: usize) -> usize {
        (self.first_token + t) * heads.q_stride() + self.kv_head * heads.group() * heads.head_dim
    }

    /// Keys in the block starting at `block` that query `t` may see, of `len`.
    #[inline(always)]
    pub(super) fn visible(&self, t: usize, block: usize, len: usize) -> usize {
        (self.first_position + t + 1).saturating_sub(block).min(len)
    }
}

/// A block of at most [`KEY_BLOCK`] keys of one document and key/value head.
#[derive(Clone, Debug)]
pub(super) struct KeyTile {
    /// Packed row of the document's first token.
    pub(super) document: usize,
    pub(super) document_len: usize,
    pub(super) kv_head: usize,
    /// Position of the first key.
    pub(super) first: usize,
    pub(super) len: usize,
}

impl KeyTile {
    /// Element of `k` and `v` at which the first key starts.
    pub(super) fn offset(&self, heads: &Heads) -> usize {
        (self.document + self.first) * heads.kv_stride() + self.kv_head * heads.head_dim
    }
}

/// Where the keys of a sequence lie.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyMap<'a> {
    /// One after another from this row.
    Contiguous { first_row: usize },
    /// In the blocks of a table.
    Paged {
        block_table: &'a [u32],
        block_size: usize,
    },
}

impl KeyMap<'_> {
    /// Offsets of the rows of `positions`: `row * stride + column`.
    pub(super) fn offsets(
        &self,
        positions: Range<usize>,
        [stride, column]: [usize; 2],
        to: &mut Vec<usize>,
    ) {
        to.clear();
        match *self {
            KeyMap::Contiguous { first_row } => {
                to.extend(positions.map(|p| (first_row + p) * stride + column));
            }
            KeyMap::Paged {
                block_table,
                block_size,
            } => {
                let mut position = positions.start;
                while position < positions.end {
                    let (block, offset) = (position / block_size, position % block_size);
                    let len = (block_size - offset).min(positions.end - position);
                    let first = block_table[block] as usize * block_size + offset;
                    to.extend((first..first + len).map(|row| row * stride + column));
                    position += len;
                }
            }
        }
    }
}

/// Working memory aligned to cache lines.
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
#[expect(dead_code, reason = "read and written through the buffer's pointer")]
struct Line([f32; 16]);

impl Buffer {
    /// At least `len` elements; what they hold is arbitrary but initialized.
    pub(super) fn get(&mut self, len: usize) -> *mut f32 {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        self.0.as_mut_ptr().cast::<f32>()
    }
}

/// Copies the tile's query rows, scaled by `1/sqrt(head_dim)`.
#[inline(always)]
pub(super) unsafe fn scale_rows<L: Lanes>(
    q: *const f32,
    to: *mut f32,
    heads: &Heads,
    tile: &QueryTile,
) {
    let len = heads.group() * heads.head_dim;
    for t in 0..tile.num_queries {
        let from = q.add(tile.offset(heads, t));
        scale_row::<L>(from, to.add(t * len), len, heads.scale());
    }
}

/// `to = from * factor`.
#[inline(always)]
pub(super) unsafe fn scale_row<L: Lanes>(from: *const f32, to: *mut f32, len: usize, factor: f32) {
    let factor = L::splat(factor);
    for i in (0..len).step_by(L::N) {
        L::load(from.add(i)).mul(factor).store(to.add(i));
    }
}
