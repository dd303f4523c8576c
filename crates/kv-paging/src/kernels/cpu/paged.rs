//! Cuts a packed step into tiles, runs them in parallel, and merges split contexts.
//!
//! A sequence of one query is a decode. Decodes may follow each other in one sequence: then they share its block table, and one
//! tile reads the keys for all of them. Each has the result that it has alone, bit for bit: where its context is cut depends on
//! its own length only, and its scores are summed as those of a single query.

use std::ops::Range;

use rayon::prelude::*;

use super::forward::{ForwardTile, PACKED_ROWS, Scratch, Sink};
use super::lanes::Element;
use super::lanes::level::Level;
use super::shared_mut::SharedMut;
use super::tile::{Heads, KEY_BLOCK, KeyMap, QueryTile};
use crate::batch_layout::{BatchLayout, SequenceSpan};

/// Context tokens below which a decode is not split further.
const MIN_SPLIT: usize = 256;
/// Multiply-adds below which a step is not worth waking other threads.
const SERIAL_WORK: usize = 1 << 17;

/// A tile of one sequence.
struct Job {
    sequence: usize,
    tile: QueryTile,
    /// Whether blocks of keys are transposed for it.
    packed: bool,
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
            packed: job.packed,
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

/// The tiles of a step.
fn plan(heads: &Heads, layout: &BatchLayout) -> (Vec<Job>, usize) {
    let mut plan = Plan::default();
    let mut first = 0;
    while first < layout.sequences.len() {
        first += match layout.sequences[first].query_len {
            1 => {
                let num = num_decodes(layout, first);
                plan.add_decodes(heads, layout, first..first + num);
                num
            }
            _ => {
                plan.add_prompt(heads, layout, first);
                1
            }
        };
    }
    (plan.jobs, plan.num_partials)
}

/// How many sequences of one query from `first` on are neighbours in one sequence of tokens, and may share a tile.
fn num_decodes(layout: &BatchLayout, first: usize) -> usize {
    let follows = |pair: &&[SequenceSpan]| {
        let [before, after] = pair else { return false };
        after.query_len == 1
            && after.context_len == before.context_len + 1
            && layout
                .block_table(after)
                .starts_with(layout.block_table(before))
    };
    let pairs = layout.sequences[first..].windows(2);
    1 + pairs.take_while(follows).count()
}

/// Keys of a part of the context of a decode: of all of it, if it isn't split. It depends on nothing but the context, and is the
/// same for most neighbours.
fn part_len(heads: &Heads, context: usize) -> usize {
    let threads = rayon::current_num_threads();
    // One sequence keeps all threads busy; two jobs per thread even out threads that start late.
    let wanted = match threads {
        1 => 1,
        _ => (2 * threads).div_ceil(heads.kv_heads),
    };
    match wanted.min(context.div_ceil(MIN_SPLIT)) {
        0 | 1 => usize::MAX,
        parts => context.div_ceil(parts).next_multiple_of(KEY_BLOCK),
    }
}

#[derive(Default)]
struct Plan {
    jobs: Vec<Job>,
    num_partials: usize,
}

impl Plan {
    /// The tiles of a sequence with several queries.
    fn add_prompt(&mut self, heads: &Heads, layout: &BatchLayout, index: usize) {
        let sequence = &layout.sequences[index];
        let first_position = sequence.context_len - sequence.query_len;
        let tile_queries = heads.tile_queries();
        for kv_head in 0..heads.kv_heads {
            for start in (0..sequence.query_len).step_by(tile_queries) {
                let num_queries = tile_queries.min(sequence.query_len - start);
                self.jobs.push(Job {
                    sequence: index,
                    packed: num_queries * heads.group() >= PACKED_ROWS,
                    tile: QueryTile {
                        first_token: sequence.query_start + start,
                        num_queries,
                        first_position: first_position + start,
                        kv_head,
                        keys: 0..first_position + start + num_queries,
                    },
                    partial: None,
                });
            }
        }
    }

    /// The tiles of decodes that are neighbours.
    fn add_decodes(&mut self, heads: &Heads, layout: &BatchLayout, range: Range<usize>) {
        let parts = |sequence: &SequenceSpan| {
            let len = part_len(heads, sequence.context_len);
            (len, sequence.context_len.div_ceil(len))
        };
        // Only decodes whose contexts are cut at the same places have the same tiles.
        let same = |a: &SequenceSpan, b: &SequenceSpan| parts(a) == parts(b);
        let mut index = range.start;
        for decodes in layout.sequences[range].chunk_by(same) {
            for decodes in decodes.chunks(heads.tile_queries()) {
                // The last one has the longest block table.
                index += decodes.len();
                for kv_head in 0..heads.kv_heads {
                    self.add_tile(heads, decodes, index - 1, kv_head, parts(&decodes[0]));
                }
            }
        }
    }

    /// One tile of decodes, or a job for each part of their context.
    fn add_tile(
        &mut self,
        heads: &Heads,
        decodes: &[SequenceSpan],
        sequence: usize,
        kv_head: usize,
        (len, num_parts): (usize, usize),
    ) {
        let context = decodes[decodes.len() - 1].context_len;
        let tile = QueryTile {
            first_token: decodes[0].query_start,
            num_queries: decodes.len(),
            first_position: decodes[0].context_len - 1,
            kv_head,
            keys: 0..context,
        };
        for part in 0..num_parts {
            let start = part * len;
            self.jobs.push(Job {
                sequence,
                tile: QueryTile {
                    keys: start..context.min(start.saturating_add(len)),
                    ..tile.clone()
                },
                packed: heads.group() >= PACKED_ROWS,
                partial: (num_parts > 1).then_some(self.num_partials),
            });
            if num_parts > 1 {
                self.num_partials += decodes.len() * heads.group();
            }
        }
    }
}

/// Combines the partial softmaxes of decodes whose context is split.
fn merge(heads: &Heads, jobs: &[Job], partials: &[f32], out: &mut [f32]) {
    let head_dim = heads.head_dim;
    let same = |a: &Job, b: &Job| {
        a.partial.is_some()
            && b.partial.is_some()
            && a.tile.first_token == b.tile.first_token
            && a.tile.kv_head == b.tile.kv_head
    };
    for splits in jobs.chunk_by(same).filter(|jobs| jobs[0].partial.is_some()) {
        let tile = &splits[0].tile;
        for row in 0..tile.num_queries * heads.group() {
            let parts = splits.iter().map(|job| {
                let start = (job.partial.unwrap_or_default() + row) * (head_dim + 2);
                partials[start..start + head_dim + 2].split_at(head_dim)
            });
            let max = parts
                .clone()
                .fold(f32::NEG_INFINITY, |max, (_, stats)| max.max(stats[0]));
            let base = tile.offset(heads, row / heads.group());
            let out = &mut out[base + row % heads.group() * head_dim..][..head_dim];
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
