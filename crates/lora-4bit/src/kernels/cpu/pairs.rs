//! Products with bf16 operands, for many rows: `x · wᵀ` and `dy · w` by panels of 64 columns of the result.

use std::cell::Cell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::aligned::Aligned;
use super::product::{ProductShape, there};
use super::simd::pairs::{
    INNER_STEP, PANEL_QUARTER, PackedRows, Packing, PairKernels, PairRows, Prefetch, TILE,
};
use super::simd::{Element, Kernels, Nf4Rows, Order, Output, PANEL};

/// The rows of a job are a multiple of this.
const JOB_ROWS: usize = 32;

/// Inner values of a panel: with 64 columns of bf16, 640 KiB, which a second-level cache of 1 MiB holds.
const PANEL_INNER: usize = 5 * 1024;

/// Rows of a weight that are unpacked at once for `dy · w`.
const UNPACKED_ROWS: usize = 32;

/// A weight whose pieces can be had in bf16.
pub(super) trait Source: Sync {
    /// The loops that multiply its pieces.
    fn pairs(&self) -> &PairKernels;

    /// Where those rows lie.
    fn prefetch(&self, rows: Range<usize>) -> Prefetch;

    /// The given rows and columns, in place or unpacked to `scratch`.
    fn part<'a>(
        &'a self,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Unpacked,
    ) -> PairRows;
}

/// Working memory of [`Source::part`].
#[derive(Default)]
pub(super) struct Unpacked {
    wide: Aligned<f32>,
    narrow: Aligned<bf16>,
}

impl Unpacked {
    /// Rounds what `unpack(row, to)` writes for every row.
    fn fill(
        &mut self,
        pairs: &PairKernels,
        [rows, columns]: [usize; 2],
        mut unpack: impl FnMut(usize, &mut [f32]),
    ) -> PairRows {
        let wide = self.wide.room(columns);
        let narrow = self.narrow.room(rows * columns);
        for (row, to) in narrow.chunks_exact_mut(columns).enumerate() {
            unpack(row, wide);
            // SAFETY: `pairs` fits the CPU, the row has room for as many values.
            unsafe { (pairs.narrow)(wide, to.as_mut_ptr(), INNER_STEP) };
        }
        PairRows {
            start: self.narrow.as_ptr(),
            stride: columns,
            num_rows: rows,
        }
    }
}

/// A dense weight `[_, k]`.
pub(super) struct Dense<'a, E> {
    pub(super) kernels: &'a Kernels,
    pub(super) pairs: &'a PairKernels,
    pub(super) values: &'a [E],
    pub(super) k: usize,
}

impl<'a, E: Element> Dense<'a, E> {
    /// For the loops of this CPU, which has some.
    pub(super) fn new(values: &'a [E], k: usize) -> Self {
        Self {
            kernels: Kernels::get(),
            pairs: there(PairKernels::get()),
            values,
            k,
        }
    }
}

impl<E: Element> Source for Dense<'_, E> {
    fn pairs(&self) -> &PairKernels {
        self.pairs
    }

    fn prefetch(&self, rows: Range<usize>) -> Prefetch {
        Prefetch::new(&self.values[rows.start * self.k..rows.end * self.k])
    }

    fn part<'a>(
        &'a self,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Unpacked,
    ) -> PairRows {
        let start = |row: usize| row * self.k + columns.start;
        if let Some(values) = E::as_bf16(self.values) {
            return PairRows {
                start: values[start(rows.start)..].as_ptr(),
                stride: self.k,
                num_rows: rows.len(),
            };
        }
        scratch.fill(self.pairs, [rows.len(), columns.len()], |row, to| {
            let start = start(rows.start + row);
            // SAFETY: `kernels` fits the CPU.
            unsafe { E::widen(self.kernels)(&self.values[start..start + to.len()], to) };
        })
    }
}

/// An NF4 weight `[_, k]`.
pub(super) struct Nf4<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) pairs: &'a PairKernels,
    pub(super) rows: Nf4Rows<'a>,
    pub(super) k: usize,
}

impl<'a> Nf4<'a> {
    /// For the loops of this CPU, which has some.
    pub(super) fn new(rows: Nf4Rows<'a>, k: usize) -> Self {
        Self {
            kernels: Kernels::get(),
            pairs: there(PairKernels::get()),
            rows,
            k,
        }
    }
}

impl Source for Nf4<'_> {
    fn pairs(&self) -> &PairKernels {
        self.pairs
    }

    fn prefetch(&self, rows: Range<usize>) -> Prefetch {
        let bytes = rows.start * self.k / 2..rows.end * self.k / 2;
        Prefetch::new(&self.rows.packed[bytes])
    }

    fn part<'a>(
        &'a self,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Unpacked,
    ) -> PairRows {
        scratch.fill(self.pairs, [rows.len(), columns.len()], |row, to| {
            let start = (rows.start + row) * self.k + columns.start;
            let range = start..start + to.len();
            self.rows.unpack(range, Order::Natural, self.kernels, to);
        })
    }
}

/// `y = x · wᵀ`: `x [m, k]`, `w [n, k]`, `y [m, n]`.
pub(super) fn forward(x: &[f32], w: &impl Source, shape: ProductShape, y: *mut f32) {
    let pairs = w.pairs();
    for_each_panel(
        pairs,
        x,
        shape,
        y,
        |columns| w.prefetch(columns),
        |columns, inner, scratch, panel| {
            for (i, row) in columns.clone().step_by(PANEL_QUARTER).enumerate() {
                let rows = row..usize::min(row + PANEL_QUARTER, columns.end);
                let rows = w.part(rows, inner.clone(), scratch);
                // SAFETY: `pairs` fits the CPU; the part has these rows and columns, the panel has room for them.
                unsafe { (pairs.transpose)(rows, inner.len(), panel, i * PANEL_QUARTER) };
            }
        },
    );
}

/// `dx = dy · w`: `dy [m, n]`, `w [n, k]`, `dx [m, k]`.
pub(super) fn transposed(dy: &[f32], w: &impl Source, shape: ProductShape, dx: *mut f32) {
    let pairs = w.pairs();
    for_each_panel(
        pairs,
        dy,
        shape,
        dx,
        // Columns of a weight are many short pieces.
        |_| Prefetch::NOTHING,
        |columns, inner, scratch, panel| {
            let mut edge = [bf16::ZERO; UNPACKED_ROWS * PANEL];
            for row in inner.clone().step_by(UNPACKED_ROWS) {
                let rows = row..usize::min(row + UNPACKED_ROWS, inner.end);
                let mut rows = w.part(rows, columns.clone(), scratch);
                if columns.len() < PANEL {
                    // SAFETY: rows of the part have as many values as there are columns, those of `edge` have more.
                    unsafe {
                        for i in 0..rows.num_rows {
                            let to = edge.as_mut_ptr().add(i * PANEL);
                            let from = rows.start.add(i * rows.stride);
                            to.copy_from_nonoverlapping(from, columns.len());
                        }
                    }
                    rows.start = edge.as_ptr();
                    rows.stride = PANEL;
                }
                let first = (row - inner.start) / 2 * PANEL;
                // SAFETY: `pairs` fits the CPU; rows of the part have `PANEL` values.
                unsafe { (pairs.interleave)(rows, &mut panel[first..]) };
            }
        },
    );
}

/// Working memory of a job.
#[derive(Default)]
struct Scratch {
    unpacked: Unpacked,
    panel: Aligned<u32>,
    edge: Aligned<f32>,
}

thread_local! {
    // Taken out while in use: a thread that waits for others may run another product meanwhile.
    static SCRATCH: Cell<Scratch> = Cell::default();
    static ROUNDED: Cell<Aligned<bf16>> = Cell::default();
}

/// `y = a · b` for `a [m, inner]`, by panels of `b [inner, columns]`, split over threads.
///
/// `next(columns)` is the memory that a panel is made of, for fetching it early.
/// `fill(columns, inner, unpacked, panel)` writes a piece of `b` as a panel, whose padding is zeros already.
fn for_each_panel(
    pairs: &PairKernels,
    a: &[f32],
    shape: ProductShape,
    y: *mut f32,
    next: impl Fn(Range<usize>) -> Prefetch + Sync,
    fill: impl Fn(Range<usize>, Range<usize>, &mut Unpacked, &mut [u32]) + Sync,
) {
    let ProductShape { m, inner, columns } = shape;
    let output = Output {
        start: y,
        stride: columns,
    };
    let stride = inner.next_multiple_of(INNER_STEP);
    let mut rounded = ROUNDED.take();
    let a = pack(pairs, a, [m, inner, stride], &mut rounded);

    let num_panels = columns.div_ceil(PANEL);
    // Where there are few panels, threads share the rows of each.
    let splits = (2 * rayon::current_num_threads()).div_ceil(num_panels);
    let job_rows = m.div_ceil(splits).next_multiple_of(JOB_ROWS);
    let jobs = num_panels * m.div_ceil(job_rows);
    let run = |job: usize| {
        let mut scratch = SCRATCH.take();
        let Scratch {
            unpacked,
            panel,
            edge,
        } = &mut scratch;
        let start = job % num_panels * PANEL;
        let panel_columns = start..usize::min(start + PANEL, columns);
        let first_row = job / num_panels * job_rows;
        // Most often the same thread makes the next one.
        let next_columns =
            usize::min(start + PANEL, columns)..usize::min(start + 2 * PANEL, columns);
        let next_panel = next(next_columns);
        let num_rows = usize::min(job_rows, m - first_row);
        let is_whole = panel_columns.len() == PANEL;
        // A panel that is cut off by the edge is computed in full width in a buffer. So is one of tiles: their rows would
        // be far apart in the result, and there are more of them.
        let in_place = is_whole && pairs.packing == Packing::Rows;
        let to = if in_place {
            // SAFETY: the job's rows and columns are inside the result.
            unsafe { output.at(first_row, start) }
        } else {
            let edge = edge.room(num_rows.next_multiple_of(2 * TILE) * PANEL);
            Output {
                start: edge.as_mut_ptr(),
                stride: PANEL,
            }
        };
        for part in (0..inner).step_by(PANEL_INNER) {
            let part = part..usize::min(part + PANEL_INNER, inner);
            let panel = panel.room(part.len().next_multiple_of(INNER_STEP) / 2 * PANEL);
            // The padding of the inner dimension; the rest is overwritten.
            panel[part.len() / 2 * PANEL..].fill(0);
            let is_last = part.end == inner;
            let next = if is_last {
                next_panel
            } else {
                Prefetch::NOTHING
            };
            let start = part.start;
            fill(panel_columns.clone(), part, unpacked, panel);
            // SAFETY: `pairs` fits the CPU; `to` has these rows and `PANEL` columns, which are this job's only. Rows of
            // `a` are padded as the panel is.
            unsafe {
                let a = a.part(first_row, start, num_rows);
                (pairs.multiply)(a, panel, to, start == 0, next);
            }
        }
        if !in_place {
            for (i, edge) in edge.chunks_exact(PANEL).take(num_rows).enumerate() {
                // SAFETY: the job's rows and columns are inside the result.
                unsafe {
                    let to = output.at(first_row + i, start);
                    to.start
                        .copy_from_nonoverlapping(edge.as_ptr(), panel_columns.len());
                }
            }
        }
        SCRATCH.set(scratch);
    };
    (0..jobs).into_par_iter().with_max_len(1).for_each(run);
    ROUNDED.set(rounded);
}

/// `a [m, inner]` rounded, in rows of `stride` values, the rest of which are zeros.
fn pack(
    pairs: &PairKernels,
    a: &[f32],
    [m, inner, stride]: [usize; 3],
    to: &mut Aligned<bf16>,
) -> PackedRows {
    let len = m.next_multiple_of(2 * TILE) * stride;
    let to = to.room(len);
    let packed = PackedRows::new(pairs.packing, to.as_ptr(), stride, m);
    let strips = to.par_chunks_exact_mut(packed.strip);
    strips.enumerate().for_each(|(i, strip)| {
        let rows = a.chunks_exact(inner).skip(i * TILE).take(TILE);
        if rows.len() < TILE || inner < stride {
            strip.fill(bf16::ZERO);
        }
        for (row, values) in rows.enumerate() {
            let to = strip[row * packed.stride..].as_mut_ptr();
            // SAFETY: `pairs` fits the CPU; the strip has `inner` values for this row.
            unsafe { (pairs.narrow)(values, to, packed.step) };
        }
    });
    packed
}
