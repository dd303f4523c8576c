//! The small products of one tile: everything here runs on data in the first- or second-level
//! cache, inside one thread.

use super::lanes::{Element, Lanes};

/// Rows of the right-hand matrix: contiguous elements at `row(k)`.
pub(super) trait Rows: Copy {
    type E: Element;
    unsafe fn row(&self, k: usize) -> *const Self::E;
}

/// Rows at a fixed distance.
#[derive(Clone, Copy)]
pub(super) struct Strided<E> {
    pub(super) base: *const E,
    pub(super) stride: usize,
}

impl<E: Element> Rows for Strided<E> {
    type E = E;
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const E {
        self.base.add(k * self.stride)
    }
}

/// Rows anywhere, such as those of the cache blocks of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Indexed<'a, E> {
    pub(super) base: *const E,
    pub(super) offsets: &'a [usize],
}

impl<E: Element> Rows for Indexed<'_, E> {
    type E = E;
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const E {
        self.base.add(*self.offsets.get_unchecked(k))
    }
}

/// The left-hand matrix: element `(m, k)` at `base + m * row + k * col`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) base: *const f32,
    pub(super) row: usize,
    pub(super) col: usize,
}

/// The result: element `(m, n)` at `base + m * stride + n`.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) base: *mut f32,
    pub(super) stride: usize,
    /// Adds to the output instead of replacing it.
    pub(super) accumulate: bool,
}

/// `out = a · b` for `[m, n, k]`, `n` a multiple of the lanes.
///
/// # Safety
///
/// All rows are valid for the given sizes.
#[inline(always)]
pub(super) unsafe fn gemm<L: Lanes, R: Rows>(a: Left, b: R, out: Out, [m, n, k]: [usize; 3]) {
    let mut column = 0;
    while column + 2 * L::N <= n {
        columns::<L, R, 2>(a, b, out, [m, column, k]);
        column += 2 * L::N;
    }
    if column < n {
        columns::<L, R, 1>(a, b, out, [m, column, k]);
    }
}

#[inline(always)]
unsafe fn columns<L: Lanes, R: Rows, const V: usize>(
    a: Left,
    b: R,
    out: Out,
    [m, column, k]: [usize; 3],
) {
    let mut row = 0;
    while row + 6 <= m {
        micro::<L, R, 6, V>(a, b, out, [row, column, k]);
        row += 6;
    }
    match m - row {
        1 => micro::<L, R, 1, V>(a, b, out, [row, column, k]),
        2 => micro::<L, R, 2, V>(a, b, out, [row, column, k]),
        3 => micro::<L, R, 3, V>(a, b, out, [row, column, k]),
        4 => micro::<L, R, 4, V>(a, b, out, [row, column, k]),
        5 => micro::<L, R, 5, V>(a, b, out, [row, column, k]),
        _ => {}
    }
}

/// `M` rows by `V` vectors, held in registers over the whole of `k`.
#[inline(always)]
unsafe fn micro<L: Lanes, R: Rows, const M: usize, const V: usize>(
    a: Left,
    b: R,
    out: Out,
    [row, column, k]: [usize; 3],
) {
    let a_rows = a.base.add(row * a.row);
    let c_rows = out.base.add(row * out.stride + column);
    let mut acc = [[L::splat(0.0); V]; M];
    if out.accumulate {
        for (r, acc) in acc.iter_mut().enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = L::load(c_rows.add(r * out.stride + i * L::N));
            }
        }
    }
    for kk in 0..k {
        let b_row = b.row(kk).add(column);
        let mut b_lanes = [L::splat(0.0); V];
        for (i, lanes) in b_lanes.iter_mut().enumerate() {
            *lanes = R::E::load(b_row.add(i * L::N));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let factor = L::splat(*a_rows.add(r * a.row + kk * a.col));
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = factor.mul_add(b_lanes[i], *acc);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (i, acc) in acc.iter().enumerate() {
            acc.store(c_rows.add(r * out.stride + i * L::N));
        }
    }
}

/// `out[m][n] = a[m] · b[n]`: rows against rows, for few rows of `a`, where transposing `b` first
/// would cost more. Writes up to three columns past `n`, to a multiple of four.
///
/// # Safety
///
/// As [`gemm`]; `a` has unit columns and `n > 0`.
#[inline(always)]
pub(super) unsafe fn dots<L: Lanes, R: Rows>(a: Left, b: R, out: Out, [m, n, k]: [usize; 3]) {
    let mut column = 0;
    while column < n {
        let rows: [*const R::E; 4] = std::array::from_fn(|i| {
            // SAFETY: the index is clamped to the rows that exist.
            unsafe { b.row((column + i).min(n - 1)) }
        });
        let mut row = 0;
        while row + 4 <= m {
            dots4::<L, R, 4>(a, rows, out, [row, column, k]);
            row += 4;
        }
        match m - row {
            1 => dots4::<L, R, 1>(a, rows, out, [row, column, k]),
            2 => dots4::<L, R, 2>(a, rows, out, [row, column, k]),
            3 => dots4::<L, R, 3>(a, rows, out, [row, column, k]),
            _ => {}
        }
        column += 4;
    }
}

#[inline(always)]
unsafe fn dots4<L: Lanes, R: Rows, const M: usize>(
    a: Left,
    rows: [*const R::E; 4],
    out: Out,
    [row, column, k]: [usize; 3],
) {
    let a_rows = a.base.add(row * a.row);
    let mut acc = [[L::splat(0.0); 4]; M];
    let mut kk = 0;
    while kk < k {
        let mut b_lanes = [L::splat(0.0); 4];
        for (lanes, row) in b_lanes.iter_mut().zip(rows) {
            *lanes = R::E::load(row.add(kk));
        }
        for (r, acc) in acc.iter_mut().enumerate() {
            let a_lanes = L::load(a_rows.add(r * a.row + kk));
            for (acc, b_lanes) in acc.iter_mut().zip(b_lanes) {
                *acc = a_lanes.mul_add(b_lanes, *acc);
            }
        }
        kk += L::N;
    }
    for (r, acc) in acc.into_iter().enumerate() {
        let to = out.base.add((row + r) * out.stride + column);
        to.cast::<[f32; 4]>().write_unaligned(L::sum4(acc));
    }
}

/// Copies `n` rows of `k` elements into the columns of `to`: `to[d * stride + j] = rows[j][d]`.
///
/// # Safety
///
/// All rows are valid for the given sizes.
#[inline(always)]
pub(super) unsafe fn transpose<R: Rows>(rows: R, to: *mut f32, stride: usize, [n, k]: [usize; 2]) {
    for j in 0..n {
        let row = rows.row(j);
        for d in 0..k {
            *to.add(d * stride + j) = (*row.add(d)).widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Kernel;
    use super::super::lanes::level::Level;
    use super::*;
    use half::bf16;

    /// All products of one size: `gemm` over bf16 rows, its transposed left side, and `dots`.
    struct Products<'a> {
        a: &'a [f32],
        b: &'a [bf16],
        out: [&'a mut [f32]; 3],
        size: [usize; 3],
    }

    impl Kernel for Products<'_> {
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            let [m, n, k] = self.size;
            let [plain, transposed, dot] = self.out.map(|out| Out {
                base: out.as_mut_ptr(),
                stride: n + 4,
                accumulate: true,
            });
            let rows = Strided {
                base: self.b.as_ptr(),
                stride: n,
            };
            let a = Left {
                base: self.a.as_ptr(),
                row: k,
                col: 1,
            };
            gemm::<L, _>(a, rows, plain, [m, n, k]);
            let mut columns = vec![0.0; m * k];
            transpose(
                Strided {
                    base: a.base,
                    stride: k,
                },
                columns.as_mut_ptr(),
                m,
                [m, k],
            );
            let a_columns = Left {
                base: columns.as_ptr(),
                row: 1,
                col: m,
            };
            gemm::<L, _>(a_columns, rows, transposed, [m, n, k]);
            // b transposed: its columns as rows for the dot products.
            let mut b_columns = vec![0.0; n * k];
            transpose(rows, b_columns.as_mut_ptr(), k, [k, n]);
            let offsets: Vec<usize> = (0..n).map(|j| j * k).collect();
            let base = b_columns.as_ptr();
            dots::<L, _>(
                a,
                Indexed {
                    base,
                    offsets: &offsets,
                },
                dot,
                [m, n - 3, k],
            );
        }
    }

    #[test]
    fn products_agree_with_plain_loops_on_every_level() {
        for size @ [m, n, k] in [[1, 16, 16], [7, 64, 32], [13, 48, 16], [6, 80, 128]] {
            let a: Vec<f32> = (0..m * k).map(|i| (i * 37 % 19) as f32 - 9.0).collect();
            let b: Vec<bf16> = (0..n * k)
                .map(|i| bf16::from_f32((i * 53 % 23) as f32 - 11.0))
                .collect();
            for level in Level::available(16) {
                let mut outs = [(); 3].map(|()| vec![1.0; m * (n + 4)]);
                let [x, y, z] = &mut outs;
                let out = [x.as_mut_slice(), y, z];
                // SAFETY: the level is available and all rows lie in the slices.
                unsafe {
                    level.run(Products {
                        a: &a,
                        b: &b,
                        out,
                        size,
                    })
                };
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let sum: f32 = (0..k).map(|d| a[i * k + d] * b[d * n + j].to_f32()).sum();
                    let at = i * (n + 4) + j;
                    // Small integers: exact in any order of summation. `dots` replaces.
                    assert_eq!(outs[0][at], sum + 1.0, "{level:?} {size:?} ({i}, {j})");
                    assert_eq!(outs[1][at], sum + 1.0, "{level:?} {size:?} ({i}, {j})");
                    if j < n - 3 {
                        assert_eq!(outs[2][at], sum, "{level:?} {size:?} ({i}, {j})");
                    }
                }
            }
        }
    }
}
