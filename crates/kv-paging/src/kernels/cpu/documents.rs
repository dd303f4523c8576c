//! Cuts packed documents into tiles and runs the forward and the backward in parallel.

use rayon::prelude::*;

use super::backward::{self, Delta, KeyGradient, QueryGradient, Saved};
use super::forward::{self, ForwardTile, Sink};
use super::lanes::level::Level;
use super::shared_mut::SharedMut;
use super::tile::{Heads, KEY_BLOCK, KeyMap, KeyTile, QueryTile};

/// The tiles of all documents, each with the packed row its document starts at.
fn query_tiles(heads: &Heads, lengths: &[usize]) -> Vec<(usize, QueryTile)> {
    let mut tiles = Vec::new();
    for (document, len) in documents(lengths) {
        for kv_head in 0..heads.kv_heads {
            // The last tiles see the most keys: started first, they do not end last.
            for first_position in (0..len).step_by(heads.tile_queries()).rev() {
                let num_queries = heads.tile_queries().min(len - first_position);
                let tile = QueryTile {
                    first_token: document + first_position,
                    num_queries,
                    first_position,
                    kv_head,
                    keys: 0..first_position + num_queries,
                };
                tiles.push((document, tile));
            }
        }
    }
    tiles
}

fn key_tiles(heads: &Heads, lengths: &[usize]) -> Vec<KeyTile> {
    let mut tiles = Vec::new();
    for (document, document_len) in documents(lengths) {
        for kv_head in 0..heads.kv_heads {
            for first in (0..document_len).step_by(KEY_BLOCK) {
                tiles.push(KeyTile {
                    document,
                    document_len,
                    kv_head,
                    first,
                    len: KEY_BLOCK.min(document_len - first),
                });
            }
        }
    }
    tiles
}

/// First packed row and length of each document.
fn documents(lengths: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    lengths.iter().scan(0, |start, &len| {
        *start += len;
        Some((*start - len, len))
    })
}

/// Causal attention within documents: the output, and the log-sum-exp of each row,
/// `[tokens, heads]`.
///
/// # Safety
///
/// `q` is `[tokens, heads, head_dim]`, `k` and `v` are `[tokens, kv_heads, head_dim]`, and
/// `lengths` sum to `tokens`.
pub(super) unsafe fn forward(
    heads: Heads,
    lengths: &[usize],
    [q, k, v]: [&[f32]; 3],
) -> (Vec<f32>, Vec<f32>) {
    let mut out = vec![0.0; q.len()];
    let mut lse = vec![0.0; q.len() / heads.head_dim];
    let (out_ptr, lse_ptr) = (SharedMut(out.as_mut_ptr()), SharedMut(lse.as_mut_ptr()));
    let level = Level::detect(heads.head_dim);
    query_tiles(&heads, lengths)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(forward::Scratch::default, |scratch, (document, tile)| {
            let kernel = ForwardTile {
                heads,
                packed: tile.num_queries * heads.group() >= forward::PACKED_ROWS,
                tile,
                map: KeyMap::Contiguous {
                    first_row: document,
                },
                q: q.as_ptr(),
                k: k.as_ptr(),
                v: v.as_ptr(),
                sink: Sink::Output {
                    out: out_ptr.get(),
                    lse: lse_ptr.get(),
                },
                scratch,
            };
            // SAFETY: all rows exist (contract above), and no two tiles write the same row.
            unsafe { level.run(kernel) };
        });
    (out, lse)
}

/// Gradients `dq`, `dk` and `dv` from the saved tensors, `out` of the forward and its gradient.
///
/// # Safety
///
/// As [`forward`], with `out` and `d_out` of the shape of `q` and `lse` from the forward.
pub(super) unsafe fn backward(saved: Saved<'_>, out: &[f32], lengths: &[usize]) -> [Vec<f32>; 3] {
    let heads = saved.heads;
    let head_dim = heads.head_dim;
    let level = Level::detect(head_dim);
    let mut delta = vec![0.0; out.len() / head_dim];
    const ROWS: usize = 256;
    delta
        .par_chunks_mut(ROWS)
        .enumerate()
        .for_each(|(chunk, delta)| {
            let rows = chunk * ROWS * head_dim..(chunk * ROWS + delta.len()) * head_dim;
            let (out, d_out) = (&out[rows.clone()], &saved.d_out[rows]);
            let kernel = Delta {
                head_dim,
                out,
                d_out,
                delta,
            };
            // SAFETY: `out` and `d_out` have `head_dim` elements per row of `delta`.
            unsafe { level.run(kernel) };
        });
    let saved = Saved {
        delta: &delta,
        ..saved
    };
    let mut dq = vec![0.0; saved.q.len()];
    let (mut dk, mut dv) = (vec![0.0; saved.k.len()], vec![0.0; saved.v.len()]);
    let dq_ptr = SharedMut(dq.as_mut_ptr());
    let (dk_ptr, dv_ptr) = (SharedMut(dk.as_mut_ptr()), SharedMut(dv.as_mut_ptr()));
    query_tiles(&heads, lengths)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(backward::Scratch::default, |scratch, (document, tile)| {
            let dq = dq_ptr.get();
            let kernel = QueryGradient {
                saved,
                document,
                tile,
                dq,
                scratch,
            };
            // SAFETY: all rows exist (contract above), and no two tiles write the same row.
            unsafe { level.run(kernel) };
        });
    key_tiles(&heads, lengths)
        .into_par_iter()
        .with_max_len(1)
        .for_each_init(backward::Scratch::default, |scratch, tile| {
            let (dk, dv) = (dk_ptr.get(), dv_ptr.get());
            let kernel = KeyGradient {
                saved,
                tile,
                dk,
                dv,
                scratch,
            };
            // SAFETY: as above.
            unsafe { level.run(kernel) };
        });
    [dq, dk, dv]
}
