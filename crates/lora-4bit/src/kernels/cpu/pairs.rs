//! Products with bf16 factors, for many rows: `x · wᵀ` and `dy · w` by panels of 64 columns of the result.

use std::cell::Cell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::ProductShape;
use super::nf4::Nf4Matrix;
use super::simd::pairs::{INNER_STEP, PANEL_QUARTER, PairKernels, PairRows};
use super::simd::{Element, Kernels, Order, Output, PANEL};

/// Fewer rows don't pay for rearranging the weight.
pub(super) const MIN_ROWS: usize = 32;

/// Inner values of a panel: with 64 columns of bf16, 640 KiB, which a second-level cache of 1 MiB holds.
const PANEL_INNER: usize = 5 * 1024;

/// Rows of a weight that are unpacked at once for `dy · w`.
const UNPACKED_ROWS: usize = 32;

/// A weight whose parts can be had in bf16.
pub(super) trait Source: Sync {
    /// The given rows and columns, in place or unpacked to `scratch`. Values are rounded to bf16.
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
    wide: Vec<f32>,
    narrow: Vec<bf16>,
}

impl Unpacked {
    /// Rounds what `unpack(row, to)` writes for every row.
    fn fill(
        &mut self,
        pairs: &PairKernels,
        rows: usize,
        columns: usize,
        mut unpack: impl FnMut(usize, &mut [f32]),
    ) -> PairRows {
        self.wide.resize(columns, 0.0);
        self.narrow.resize(rows * columns, bf16::ZERO);
        for (row, to) in self.narrow.chunks_exact_mut(columns).enumerate() {
            unpack(row, &mut self.wide);
            // SAFETY: `pairs` fits the CPU.
            unsafe { (pairs.narrow)(&self.wide, to) };
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

impl<E: Element> Source for Dense<'_, E> {
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
        scratch.fill(self.pairs, rows.len(), columns.len(), |row, to| {
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
    pub(super) matrix: &'a Nf4Matrix<'a>,
    pub(super) k: usize,
}

impl Source for Nf4<'_> {
    fn part<'a>(
        &'a self,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Unpacked,
    ) -> PairRows {
        scratch.fill(self.pairs, rows.len(), columns.len(), |row, to| {
            let start = (rows.start + row) * self.k + columns.start;
            let range = start..start + to.len();
            self.matrix.unpack(range, Order::Natural, self.kernels, to);
        })
    }
}

/// `y = x · wᵀ`: `x [m, k]`, `w [n, k]`, `y [m, n]`.
pub(super) fn forward(
    pairs: &PairKernels,
    x: &[f32],
    w: &impl Source,
    shape: ProductShape,
    y: *mut f32,
) {
    for_each_panel(pairs, x, shape, y, |columns, inner, scratch, panel| {
        for (i, row) in columns.clone().step_by(PANEL_QUARTER).enumerate() {
            let rows = row..usize::min(row + PANEL_QUARTER, columns.end);
            let part = w.part(rows, inner.clone(), scratch);
            // SAFETY: `pairs` fits the CPU; the part has these rows and columns, the panel has room for them.
            unsafe { (pairs.transpose)(part, inner.len(), panel, i * PANEL_QUARTER) };
        }
    });
}

/// `dx = dy · w`: `dy [m, n]`, `w [n, k]`, `dx [m, k]`.
pub(super) fn transposed(
    pairs: &PairKernels,
    dy: &[f32],
    w: &impl Source,
    shape: ProductShape,
    dx: *mut f32,
) {
    for_each_panel(pairs, dy, shape, dx, |columns, inner, scratch, panel| {
        let mut edge = [bf16::ZERO; UNPACKED_ROWS * PANEL];
        for row in inner.clone().step_by(UNPACKED_ROWS) {
            let rows = row..usize::min(row + UNPACKED_ROWS, inner.end);
            let mut part = w.part(rows, columns.clone(), scratch);
            if columns.len() < PANEL {
                // SAFETY: rows of the part have as many values as there are columns, those of `edge` have more.
                unsafe {
                    for i in 0..part.num_rows {
                        let to = edge.as_mut_ptr().add(i * PANEL);
                        let from = part.start.add(i * part.stride);
                        to.copy_from_nonoverlapping(from, columns.len());
                    }
                }
                part.start = edge.as_ptr();
                part.stride = PANEL;
            }
            let first = (row - inner.start) / 2 * PANEL;
            // SAFETY: `pairs` fits the CPU; rows of the part have `PANEL` values.
            unsafe { (pairs.interleave)(part, &mut panel[first..]) };
        }
    });
}

/// Working memory of a job.
#[derive(Default)]
struct Scratch {
    unpacked: Unpacked,
    panel: Vec<u32>,
    edge: Vec<f32>,
}

thread_local! {
    // Taken out while in use: a thread that waits for others may run another product meanwhile.
    static SCRATCH: Cell<Scratch> = Cell::default();
    static ROUNDED: Cell<Vec<bf16>> = Cell::default();
}

/// `y = a · b` for `a [m, inner]`, by panels of `b [inner, columns]`, split over threads.
///
/// `fill(columns, inner, unpacked, panel)` writes a part of `b` as a panel, whose padding is zeros already.
fn for_each_panel(
    pairs: &PairKernels,
    a: &[f32],
    shape: ProductShape,
    y: *mut f32,
    fill: impl Fn(Range<usize>, Range<usize>, &mut Unpacked, &mut [u32]) + Sync,
) {
    let ProductShape { m, inner, columns } = shape;
    let output = Output {
        start: y,
        stride: columns,
    };
    let stride = inner.next_multiple_of(INNER_STEP);
    let mut rounded = ROUNDED.take();
    round(pairs, a, inner, stride, &mut rounded);
    let a = PairRows {
        start: rounded.as_ptr(),
        stride,
        num_rows: m,
    };

    let num_panels = columns.div_ceil(PANEL);
    // Where there are few panels, threads share the rows of each.
    let splits = (2 * rayon::current_num_threads()).div_ceil(num_panels);
    let job_rows = m.div_ceil(splits).max(MIN_ROWS);
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
        let num_rows = usize::min(job_rows, m - first_row);
        let is_whole = panel_columns.len() == PANEL;
        // A panel that is cut off by the edge is computed in full width in a buffer.
        let to = if is_whole {
            // SAFETY: the job's rows and columns are inside the result.
            unsafe { output.at(first_row, start) }
        } else {
            edge.resize(num_rows * PANEL, 0.0);
            Output {
                start: edge.as_mut_ptr(),
                stride: PANEL,
            }
        };
        for part in (0..inner).step_by(PANEL_INNER) {
            let part = part..usize::min(part + PANEL_INNER, inner);
            panel.resize(part.len().next_multiple_of(INNER_STEP) / 2 * PANEL, 0);
            // The padding of the inner dimension; the rest is overwritten.
            panel[part.len() / 2 * PANEL..].fill(0);
            fill(panel_columns.clone(), part.clone(), unpacked, panel);
            // SAFETY: `pairs` fits the CPU; `to` has these rows and `PANEL` columns, which are this job's only. Rows of
            // `a` are padded as the panel is.
            unsafe {
                let a = a.part(first_row, part.start, num_rows);
                (pairs.multiply)(a, panel, to, part.start == 0);
            }
        }
        if !is_whole {
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

/// Rounds `a [_, inner]` to rows of `stride`, the rest of which are zeros.
fn round(pairs: &PairKernels, a: &[f32], inner: usize, stride: usize, to: &mut Vec<bf16>) {
    let len = a.len() / inner * stride;
    if to.len() < len {
        to.resize(len, bf16::ZERO);
    }
    let rows = a.par_chunks_exact(inner).with_min_len(16);
    rows.zip(to.par_chunks_exact_mut(stride))
        .for_each(|(from, to)| {
            let (values, padding) = to.split_at_mut(inner);
            // SAFETY: `pairs` fits the CPU; both have `inner` values.
            unsafe { (pairs.narrow)(from, values) };
            padding.fill(bf16::ZERO);
        });
}
