//! Products of tiles, on x86-64 with AMX.
//!
//! Four of the eight tiles hold sums of 32 rows and 32 columns, two hold rows of `a` (32 bf16 each), two hold 16 rows of a
//! panel (16 pairs each).

use std::arch::asm;

use super::amx::Tiles;
use super::pairs::{INNER_STEP, PackedRows, Prefetch, TILE};
use super::{Output, PANEL};

/// Pair rows of a panel that are multiplied with all rows of `a` before the next ones: with 64 columns 32 KiB, which the
/// first-level cache holds.
const CHUNK_ROWS: usize = 128;

/// Bytes of the next panel that are fetched with each step of a product.
const FETCHED_BYTES: usize = 128;

/// See [`super::pairs::PairKernels::multiply`].
///
/// # Safety
///
/// [`super::amx::is_available`]; `a` is in tiles, has rows as long as the panel and is padded to `2 * TILE` of them, as is `y`, with
/// rows of [`PANEL`] columns.
pub(super) unsafe fn multiply(
    a: PackedRows,
    panel: &[u32],
    y: Output,
    first: bool,
    next: Prefetch,
) {
    debug_assert!(panel.len().is_multiple_of(INNER_STEP / 2 * PANEL));
    // SAFETY: rows and columns exist.
    unsafe {
        let _tiles = Tiles::configure();
        let mut fetched = 0;
        for (i, chunk) in panel.chunks(CHUNK_ROWS * PANEL).enumerate() {
            for row in (0..a.num_rows).step_by(2 * TILE) {
                let a = a.part(row, 2 * i * CHUNK_ROWS, 2 * TILE);
                for (half, column) in (0..PANEL).step_by(2 * TILE).enumerate() {
                    let y = y.at(row, column);
                    // The rows of `a` that come next: one strip with each half of the columns.
                    let next_a = a.start.wrapping_add((2 + half) * a.strip);
                    let next_panel = if fetched < next.num_bytes {
                        next.start.wrapping_add(fetched)
                    } else {
                        chunk.as_ptr().cast()
                    };
                    fetched += steps(chunk) * FETCHED_BYTES;
                    let next = (next_a.cast(), next_panel);
                    multiply_tiles(a, &chunk[column..], y, first && i == 0, next);
                }
            }
        }
    }
}

/// 32 rows of `a` with 32 columns of a panel.
///
/// With each step, a tile's worth of memory is fetched from the first address of `next`, and [`FETCHED_BYTES`] from the
/// second.
unsafe fn multiply_tiles(
    a: PackedRows,
    panel: &[u32],
    y: Output,
    first: bool,
    next: (*const u8, *const u8),
) {
    // SAFETY: the caller vouches for the rows and columns, for AMX and for the configuration.
    unsafe {
        asm!(
            "test {first:e}, {first:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{y0} + {y_stride}*1]",
            "tileloadd tmm1, [{y0} + {y_stride}*1 + 64]",
            "tileloadd tmm2, [{y1} + {y_stride}*1]",
            "tileloadd tmm3, [{y1} + {y_stride}*1 + 64]",
            "3:",
            "tileloadd tmm6, [{panel} + {panel_stride}*1]",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            "tileloadd tmm7, [{panel} + {panel_stride}*1 + 64]",
            "tileloadd tmm5, [{a1} + {a_stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "prefetcht1 [{next_a}]",
            "prefetcht1 [{next_a} + 64]",
            "prefetcht1 [{next_a} + 128]",
            "prefetcht1 [{next_a} + 192]",
            "prefetcht1 [{next_a} + 256]",
            "prefetcht1 [{next_a} + 320]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next_a} + 384]",
            "prefetcht1 [{next_a} + 448]",
            "prefetcht1 [{next_a} + 512]",
            "prefetcht1 [{next_a} + 576]",
            "prefetcht1 [{next_a} + 640]",
            "prefetcht1 [{next_a} + 704]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "prefetcht1 [{next_a} + 768]",
            "prefetcht1 [{next_a} + 832]",
            "prefetcht1 [{next_a} + 896]",
            "prefetcht1 [{next_a} + 960]",
            "prefetcht1 [{next_panel}]",
            "prefetcht1 [{next_panel} + 64]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {next_a}, {a_step}",
            "add {next_panel}, {fetched}",
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {panel}, 4096",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{y0} + {y_stride}*1], tmm0",
            "tilestored [{y0} + {y_stride}*1 + 64], tmm1",
            "tilestored [{y1} + {y_stride}*1], tmm2",
            "tilestored [{y1} + {y_stride}*1 + 64], tmm3",
            first = in(reg) u32::from(first),
            a0 = inout(reg) a.start => _,
            a1 = inout(reg) a.start.add(a.strip) => _,
            a_stride = in(reg) 2 * INNER_STEP,
            a_step = const 2 * TILE * INNER_STEP,
            next_a = inout(reg) next.0 => _,
            next_panel = inout(reg) next.1 => _,
            fetched = const FETCHED_BYTES,
            panel = inout(reg) panel.as_ptr() => _,
            panel_stride = in(reg) 4 * PANEL,
            steps = inout(reg) steps(panel) => _,
            y0 = in(reg) y.start,
            y1 = in(reg) y.at(TILE, 0).start,
            y_stride = in(reg) 4 * y.stride,
            options(nostack),
        );
    }
}

/// Tiles along the inner dimension of a panel that may start at a later column.
fn steps(panel: &[u32]) -> usize {
    panel.len().div_ceil(INNER_STEP / 2 * PANEL)
}
