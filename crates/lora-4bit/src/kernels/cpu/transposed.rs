//! `dy · w`: panels of 64 columns of `w`, split over threads.

use rayon::prelude::*;

use super::product::ProductShape;
use super::simd::{Element, Kernels, Nf4Rows, Order, Output, PANEL, Rows};

/// Rows of `w` in a panel: 64 KiB in f32.
const PANEL_ROWS: usize = 256;

/// Rows of `dy` that a job has at least, if there are so many: fewer wouldn't pay for unpacking the panel.
const MIN_JOB_ROWS: usize = 48;

/// `dx = dy · w`: `dy [m, n]`, `w [n, k]`, `dx [m, k]`.
pub(super) fn dense<E: Element>(
    kernels: &Kernels,
    dy: &[f32],
    w: &[E],
    shape: ProductShape,
    dx: *mut f32,
) {
    let k = shape.columns;
    for_each_panel(kernels, dy, shape, dx, |row, column, to| {
        let start = row * k + column;
        let from = &w[start..start + to.len()];
        // SAFETY: `kernels` fits the CPU; both slices have the same length.
        unsafe { E::widen(kernels)(from, to) }
    });
}

/// `dx = dy · w` with `w` in NF4: `dy [m, n]`, `w [n, k]`, `dx [m, k]`.
pub(super) fn nf4(
    kernels: &Kernels,
    dy: &[f32],
    w: Nf4Rows<'_>,
    shape: ProductShape,
    dx: *mut f32,
) {
    let k = shape.columns;
    for_each_panel(kernels, dy, shape, dx, |row, column, to| {
        let start = row * k + column;
        w.unpack(start..start + to.len(), Order::Natural, kernels, to);
    });
}

/// Multiplies `dy` with every panel. `unpack(row, column, to)` writes a piece of a row of `w`.
fn for_each_panel(
    kernels: &Kernels,
    dy: &[f32],
    shape: ProductShape,
    dx: *mut f32,
    unpack: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let ProductShape { m, inner, columns } = shape;
    let output = Output {
        start: dx,
        stride: columns,
    };
    let num_panels = columns.div_ceil(PANEL);
    let wanted_jobs = 4 * rayon::current_num_threads();
    let job_rows = m
        .div_ceil(wanted_jobs.div_ceil(num_panels))
        .next_multiple_of(6)
        .max(MIN_JOB_ROWS);
    let jobs = num_panels * m.div_ceil(job_rows);

    let run = |(panel, edge): &mut (Vec<f32>, Vec<f32>), job: usize| {
        let column = job % num_panels * PANEL;
        let width = usize::min(PANEL, columns - column);
        let first_row = job / num_panels * job_rows;
        let num_rows = usize::min(job_rows, m - first_row);
        // A panel that is cut off by the edge is computed in full width in a buffer.
        let to = if width == PANEL {
            // SAFETY: the job's rows and columns are inside `dx`.
            unsafe { output.at(first_row, column) }
        } else {
            edge.resize(num_rows * PANEL, 0.0);
            Output {
                start: edge.as_mut_ptr(),
                stride: PANEL,
            }
        };
        for row in (0..inner).step_by(PANEL_ROWS) {
            let rows = usize::min(PANEL_ROWS, inner - row);
            panel.clear();
            panel.resize(rows * PANEL, 0.0);
            for (i, to) in panel.chunks_exact_mut(PANEL).enumerate() {
                unpack(row + i, column, &mut to[..width]);
            }
            let dy = Rows {
                values: &dy[first_row * inner + row..],
                stride: inner,
                num_rows,
            };
            // SAFETY: `kernels` fits the CPU; `to` has these rows and `PANEL` columns, which are this job's only.
            unsafe {
                let panel = Rows {
                    values: panel,
                    stride: PANEL,
                    num_rows: rows,
                };
                (kernels.outer)(dy, panel, to, row == 0);
            }
        }
        if width < PANEL {
            for (i, edge) in edge.chunks_exact(PANEL).take(num_rows).enumerate() {
                // SAFETY: the job's rows and columns are inside `dx`.
                unsafe {
                    let to = output.at(first_row + i, column);
                    to.start.copy_from_nonoverlapping(edge.as_ptr(), width);
                }
            }
        }
    };
    (0..jobs)
        .into_par_iter()
        .for_each_init(Default::default, run);
}
