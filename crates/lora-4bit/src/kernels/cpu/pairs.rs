//! Products with bf16 factors, for many rows: `x · wᵀ` and `dy · w` by panels of 64 columns of the result.
//!
//! With parts, a factor is the sum of two bf16, and the product that of all parts but the two smaller ones: `x · w ≈
//! x₁ · w₁ + x₂ · w₁ + x₁ · w₂`. A bf16 weight has one part.

use std::cell::Cell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::ProductShape;
use super::nf4::Nf4Matrix;
use super::simd::pairs::{INNER_STEP, PANEL_QUARTER, PairKernels, PairRows, Part};
use super::simd::{Element, Kernels, Order, Output, PANEL};

/// Fewer rows don't pay for rearranging the weight.
pub(super) const MIN_ROWS: usize = 32;

/// Inner values of a panel: with 64 columns of bf16, 640 KiB, which a second-level cache of 1 MiB holds.
const PANEL_INNER: usize = 5 * 1024;

/// Rows of a weight that are unpacked at once for `dy · w`.
const UNPACKED_ROWS: usize = 32;

/// Of how many bf16 a factor is the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    One,
    Two,
}

/// A weight whose pieces can be had in bf16.
pub(super) trait Source: Sync {
    /// Whether all values are bf16, so that nothing is left of them in [`Part::Rest`].
    fn is_exact(&self) -> bool;

    /// One part of the given rows and columns, in place or unpacked to `scratch`.
    fn part<'a>(
        &'a self,
        part: Part,
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
        (pairs, part): (&PairKernels, Part),
        [rows, columns]: [usize; 2],
        mut unpack: impl FnMut(usize, &mut [f32]),
    ) -> PairRows {
        self.wide.resize(columns, 0.0);
        self.narrow.resize(rows * columns, bf16::ZERO);
        for (row, to) in self.narrow.chunks_exact_mut(columns).enumerate() {
            unpack(row, &mut self.wide);
            // SAFETY: `pairs` fits the CPU.
            unsafe { pairs.part(part, &mut self.wide, to) };
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
    fn is_exact(&self) -> bool {
        E::as_bf16(self.values).is_some()
    }

    fn part<'a>(
        &'a self,
        part: Part,
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
        scratch.fill(
            (self.pairs, part),
            [rows.len(), columns.len()],
            |row, to| {
                let start = start(rows.start + row);
                // SAFETY: `kernels` fits the CPU.
                unsafe { E::widen(self.kernels)(&self.values[start..start + to.len()], to) };
            },
        )
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
    fn is_exact(&self) -> bool {
        false
    }

    fn part<'a>(
        &'a self,
        part: Part,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Unpacked,
    ) -> PairRows {
        scratch.fill(
            (self.pairs, part),
            [rows.len(), columns.len()],
            |row, to| {
                let start = (rows.start + row) * self.k + columns.start;
                let range = start..start + to.len();
                self.matrix.unpack(range, Order::Natural, self.kernels, to);
            },
        )
    }
}

/// `y = x · wᵀ`: `x [m, k]`, `w [n, k]`, `y [m, n]`.
pub(super) fn forward(
    (pairs, parts): (&PairKernels, Parts),
    x: &[f32],
    w: &impl Source,
    shape: ProductShape,
    y: *mut f32,
) {
    let parts = (parts, w.is_exact());
    for_each_panel(
        (pairs, parts),
        x,
        shape,
        y,
        |part, columns, inner, scratch, panel| {
            for (i, row) in columns.clone().step_by(PANEL_QUARTER).enumerate() {
                let rows = row..usize::min(row + PANEL_QUARTER, columns.end);
                let rows = w.part(part, rows, inner.clone(), scratch);
                // SAFETY: `pairs` fits the CPU; the part has these rows and columns, the panel has room for them.
                unsafe { (pairs.transpose)(rows, inner.len(), panel, i * PANEL_QUARTER) };
            }
        },
    );
}

/// `dx = dy · w`: `dy [m, n]`, `w [n, k]`, `dx [m, k]`.
pub(super) fn transposed(
    (pairs, parts): (&PairKernels, Parts),
    dy: &[f32],
    w: &impl Source,
    shape: ProductShape,
    dx: *mut f32,
) {
    let parts = (parts, w.is_exact());
    for_each_panel(
        (pairs, parts),
        dy,
        shape,
        dx,
        |part, columns, inner, scratch, panel| {
            let mut edge = [bf16::ZERO; UNPACKED_ROWS * PANEL];
            for row in inner.clone().step_by(UNPACKED_ROWS) {
                let rows = row..usize::min(row + UNPACKED_ROWS, inner.end);
                let mut rows = w.part(part, rows, columns.clone(), scratch);
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
/// `fill(part, columns, inner, unpacked, panel)` writes a piece of `b` as a panel, whose padding is zeros already.
fn for_each_panel(
    (pairs, (parts, b_is_exact)): (&PairKernels, (Parts, bool)),
    a: &[f32],
    shape: ProductShape,
    y: *mut f32,
    fill: impl Fn(Part, Range<usize>, Range<usize>, &mut Unpacked, &mut [u32]) + Sync,
) {
    let ProductShape { m, inner, columns } = shape;
    let output = Output {
        start: y,
        stride: columns,
    };
    let stride = inner.next_multiple_of(INNER_STEP);
    let mut rounded = ROUNDED.take();
    let mut rest = Vec::new();
    round((pairs, Part::Nearest), a, [inner, stride], &mut rounded);
    if parts == Parts::Two {
        round((pairs, Part::Rest), a, [inner, stride], &mut rest);
    }
    let rows = |values: &[bf16]| PairRows {
        start: values.as_ptr(),
        stride,
        num_rows: m,
    };
    let (a, a_rest) = (rows(&rounded), rows(&rest));

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
            // SAFETY: `pairs` fits the CPU; `to` has these rows and `PANEL` columns, which are this job's only. Rows of
            // `a` are padded as the panel is.
            let multiply = |a: PairRows, panel: &[u32], first| unsafe {
                (pairs.multiply)(a.part(first_row, part.start, num_rows), panel, to, first);
            };
            let columns = || panel_columns.clone();
            fill(Part::Nearest, columns(), part.clone(), unpacked, panel);
            multiply(a, panel, part.start == 0);
            if parts == Parts::Two {
                multiply(a_rest, panel, false);
                if !b_is_exact {
                    fill(Part::Rest, columns(), part.clone(), unpacked, panel);
                    multiply(a, panel, false);
                }
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

/// One part of `a [_, inner]`, in rows of `stride`, the rest of which are zeros.
fn round(
    (pairs, part): (&PairKernels, Part),
    a: &[f32],
    [inner, stride]: [usize; 2],
    to: &mut Vec<bf16>,
) {
    let len = a.len() / inner * stride;
    if to.len() < len {
        to.resize(len, bf16::ZERO);
    }
    let rows = a.par_chunks_exact(inner).with_min_len(16);
    rows.zip(to.par_chunks_exact_mut(stride))
        .for_each_init(Vec::new, |copy, (from, to)| {
            let (values, padding) = to.split_at_mut(inner);
            padding.fill(bf16::ZERO);
            // SAFETY: `pairs` fits the CPU; both have `inner` values.
            unsafe {
                if part == Part::Nearest {
                    return (pairs.narrow)(from, values);
                }
                copy.clear();
                copy.extend_from_slice(from);
                pairs.part(part, copy, values);
            }
        });
}
