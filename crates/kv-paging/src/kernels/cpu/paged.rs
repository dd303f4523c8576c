//! Cuts a packed step into tiles, runs them in parallel, and merges split contexts.

use rayon::prelude::*;

use super::SharedMut;
use super::forward::{ForwardTile, Scratch, Sink};
use super::lanes::{Element, Level};
use super::tile::{Heads, KeyMap, QueryTile};
use crate::batch_layout::BatchLayout;

/// Context tokens below which a decode is not split further.
const MIN_SPLIT: usize = 256;
/// Multiply-adds below which a step is not worth waking other threads.
const SERIAL_WORK: usize = 1 << 17;

/// A tile of one sequence.
struct Job {
    sequence: usize,
    tile: QueryTile,
    /// Start of its rows in the buffer of partial results, if its context is split.
    partial: Option<usize>,
}

/// Attention of packed queries over block tables.
///
/// # Safety
///
/// The caller has checked that `q` has the batch's tokens and that `k` and `v`
/// (`[slots, kv_heads, head_dim]`) have all slots that the layout names.
pub(super) unsafe fn paged_attention<E: Element>(
    heads: Heads,
    layout: &BatchLayout,
    q: &[f32],
    k: &[E],
    v: &[E],
) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    let row_len = heads.head_dim + 2;
    let (jobs, num_partials) = plan(&heads, layout);
    let mut partials = vec![0.0; num_partials * row_len];
    let out_ptr = SharedMut(out.as_mut_ptr());
    let partial_ptr = SharedMut(partials.as_mut_ptr());
    let level = Level::detect(heads.head_dim);
    let run = |scratch: &mut Scratch, job: &Job| {
        let sequence = &layout.sequences[job.sequence];
        let sink = match job.partial {
            Some(row) => Sink::Partial {
                rows: partial_ptr.get().wrapping_add(row * row_len),
            },
            None => Sink::Output {
                out: out_ptr.get(),
                lse: std::ptr::null_mut(),
            },
        };
        let kernel = ForwardTile {
            heads,
            tile: job.tile.clone(),
            map: KeyMap::Paged {
                block_table: layout.block_table(sequence),
                block_size: layout.block_size,
            },
            q: q.as_ptr(),
            k: k.as_ptr(),
            v: v.as_ptr(),
            sink,
            scratch,
        };
        // SAFETY: all rows exist (contract above), and the plan gives each job its own rows of
        // the output or of the partial results.
        unsafe { level.run(kernel) };
    };
    let work = |job: &Job| job.tile.num_queries * job.tile.keys.len();
    let total = jobs.iter().map(work).sum::<usize>() * heads.group() * heads.head_dim;
    if total < SERIAL_WORK {
        let mut scratch = Scratch::default();
        jobs.iter().for_each(|job| run(&mut scratch, job));
    } else {
        jobs.par_iter()
            .with_max_len(1)
            .for_each_init(Scratch::default, run);
    }
    merge(&heads, &jobs, &partials, &mut out);
    out
}

/// The tiles of a step. Decodes are split over their context when there are fewer tiles than
/// would keep all threads busy.
fn plan(heads: &Heads, layout: &BatchLayout) -> (Vec<Job>, usize) {
    let tile_queries = heads.tile_queries();
    let tiles_of = |query_len: usize| query_len.div_ceil(tile_queries) * heads.kv_heads;
    let num_tiles: usize = layout.sequences.iter().map(|s| tiles_of(s.query_len)).sum();
    let threads = rayon::current_num_threads();
    // Two jobs per thread even out threads that start late.
    let splits = match threads {
        1 => 1,
        _ => (2 * threads).div_ceil(num_tiles.max(1)),
    };
    let mut jobs = Vec::with_capacity(num_tiles);
    let mut num_partials = 0;
    for (index, sequence) in layout.sequences.iter().enumerate() {
        let first_position = sequence.context_len - sequence.query_len;
        for kv_head in 0..heads.kv_heads {
            for start in (0..sequence.query_len).step_by(tile_queries) {
                let num_queries = tile_queries.min(sequence.query_len - start);
                let tile = QueryTile {
                    first_token: sequence.query_start + start,
                    num_queries,
                    first_position: first_position + start,
                    kv_head,
                    keys: 0..first_position + start + num_queries,
                };
                let context = tile.keys.end;
                let splits = splits.min(context.div_ceil(MIN_SPLIT));
                if sequence.query_len > 1 || splits == 1 {
                    jobs.push(Job {
                        sequence: index,
                        tile,
                        partial: None,
                    });
                    continue;
                }
                let len = context.div_ceil(splits);
                for keys in (0..context).step_by(len) {
                    let mut tile = tile.clone();
                    tile.keys = keys..context.min(keys + len);
                    jobs.push(Job {
                        sequence: index,
                        tile,
                        partial: Some(num_partials),
                    });
                    num_partials += heads.group();
                }
            }
        }
    }
    (jobs, num_partials)
}

/// Combines the partial softmaxes of each split decode.
fn merge(heads: &Heads, jobs: &[Job], partials: &[f32], out: &mut [f32]) {
    let head_dim = heads.head_dim;
    let same = |a: &Job, b: &Job| {
        a.partial.is_some()
            && b.partial.is_some()
            && a.tile.first_token == b.tile.first_token
            && a.tile.kv_head == b.tile.kv_head
    };
    for splits in jobs.chunk_by(same).filter(|jobs| jobs[0].partial.is_some()) {
        let base = splits[0].tile.offset(heads, 0);
        for row in 0..heads.group() {
            let parts = splits.iter().map(|job| {
                let start = (job.partial.unwrap_or_default() + row) * (head_dim + 2);
                partials[start..start + head_dim + 2].split_at(head_dim)
            });
            let max = parts
                .clone()
                .fold(f32::NEG_INFINITY, |max, (_, stats)| max.max(stats[0]));
            let out = &mut out[base + row * head_dim..][..head_dim];
            let mut sum = 0.0;
            for (values, stats) in parts {
                let factor = (stats[0] - max).exp();
                sum += stats[1] * factor;
                for (out, value) in out.iter_mut().zip(values) {
                    *out += value * factor;
                }
            }
            out.iter_mut().for_each(|out| *out /= sum);
        }
    }
}
