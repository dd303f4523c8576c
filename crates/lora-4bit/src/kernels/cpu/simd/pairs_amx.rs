//! Products of tiles, on x86-64 with AMX.
//!
//! A tile register holds 16 rows of 64 bytes. Four of the eight hold sums of 32 rows and 32 columns, two hold rows of `a`
//! as they lie in memory (32 bf16 each), two hold 16 rows of a panel (16 pairs each). The instructions are written as
//! assembly, because the compiler has no stable names for them.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::pairs::{INNER_STEP, PairRows};
use super::{Output, PANEL};

/// Rows and 32-bit columns of a tile.
const TILE: usize = 16;

/// Whether the CPU has AMX for bf16 and the system lets this process use it.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // Leaf 7 exists on every CPU with AVX-512, which is checked before.
    let features = __cpuid_count(7, 0).edx;
    features & AMX_BF16 != 0 && features & AMX_TILE != 0
}

/// Linux enlarges the saved state of a process by the tiles only if it asks.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const SYS_ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the call changes nothing but this process's permission; the kernel overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Shapes of the tile registers, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Sums and rows of `a` with `rows` rows, panels with 16.
    fn new(rows: usize) -> Self {
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for register in 0..8 {
            config.row_bytes[register] = 64;
            config.rows[register] = if register < 6 { rows as u8 } else { TILE as u8 };
        }
        config
    }

    /// Loads the shapes; what the registers held is lost.
    unsafe fn load(&self) {
        // SAFETY: the caller vouches for AMX; the structure is 64 bytes and valid.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly));
        }
    }
}

/// Pair rows of a panel that are multiplied with all rows of `a` before the next ones: with 64 columns 32 KiB, which the
/// first-level cache holds.
const CHUNK_ROWS: usize = 128;

/// See [`super::pairs::PairKernels::multiply`].
///
/// # Safety
///
/// [`is_available`]; `a` has rows as long as the panel, `y` has as many rows, of [`PANEL`] columns.
pub(super) unsafe fn multiply(a: PairRows, panel: &[u32], y: Output, first: bool) {
    debug_assert!(panel.len().is_multiple_of(INNER_STEP / 2 * PANEL));
    // SAFETY: rows and columns exist.
    unsafe {
        let whole = a.num_rows / (2 * TILE) * (2 * TILE);
        if whole > 0 {
            TileConfig::new(TILE).load();
            for_each_chunk(a, panel, first, |a, chunk, first| {
                for row in (0..whole).step_by(2 * TILE) {
                    // A block is 32 columns, a panel two of them.
                    for column in (0..PANEL).step_by(2 * TILE) {
                        let a = a.part(row, 0, 2 * TILE);
                        multiply_32(a, &chunk[column..], y.at(row, column), first);
                    }
                }
            });
        }
        for row in (whole..a.num_rows).step_by(TILE) {
            let rows = usize::min(TILE, a.num_rows - row);
            TileConfig::new(rows).load();
            for column in (0..PANEL).step_by(2 * TILE) {
                let a = a.part(row, 0, rows);
                multiply_16(a, &panel[column..], y.at(row, column), first);
            }
        }
        // A thread whose tiles are in use costs more to switch.
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// Calls `multiply` with some rows of the panel at a time, the columns of `a` from there on, and whether `y` starts at 0.
unsafe fn for_each_chunk(
    a: PairRows,
    panel: &[u32],
    first: bool,
    multiply: impl Fn(PairRows, &[u32], bool),
) {
    for (i, chunk) in panel.chunks(CHUNK_ROWS * PANEL).enumerate() {
        // SAFETY: `a` has two columns for each row of the panel.
        let a = unsafe { a.part(0, 2 * i * CHUNK_ROWS, a.num_rows) };
        multiply(a, chunk, first && i == 0);
    }
}

/// 32 rows of `a` with 32 columns of a panel.
unsafe fn multiply_32(a: PairRows, panel: &[u32], y: Output, first: bool) {
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
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 64",
            "add {a1}, 64",
            "add {panel}, 4096",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{y0} + {y_stride}*1], tmm0",
            "tilestored [{y0} + {y_stride}*1 + 64], tmm1",
            "tilestored [{y1} + {y_stride}*1], tmm2",
            "tilestored [{y1} + {y_stride}*1 + 64], tmm3",
            first = in(reg) u32::from(first),
            a0 = inout(reg) a.start => _,
            a1 = inout(reg) a.start.add(TILE * a.stride) => _,
            a_stride = in(reg) 2 * a.stride,
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

/// At most 16 rows of `a`, as configured, with 32 columns of a panel.
unsafe fn multiply_16(a: PairRows, panel: &[u32], y: Output, first: bool) {
    // SAFETY: as in `multiply_32`.
    unsafe {
        asm!(
            "test {first:e}, {first:e}",
            "jz 2f",
            "tilezero tmm0",
            "tilezero tmm1",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{y} + {y_stride}*1]",
            "tileloadd tmm1, [{y} + {y_stride}*1 + 64]",
            "3:",
            "tileloadd tmm6, [{panel} + {panel_stride}*1]",
            "tileloadd tmm4, [{a} + {a_stride}*1]",
            "tileloadd tmm7, [{panel} + {panel_stride}*1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 64",
            "add {panel}, 4096",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{y} + {y_stride}*1], tmm0",
            "tilestored [{y} + {y_stride}*1 + 64], tmm1",
            first = in(reg) u32::from(first),
            a = inout(reg) a.start => _,
            a_stride = in(reg) 2 * a.stride,
            panel = inout(reg) panel.as_ptr() => _,
            panel_stride = in(reg) 4 * PANEL,
            steps = inout(reg) steps(panel) => _,
            y = in(reg) y.start,
            y_stride = in(reg) 4 * y.stride,
            options(nostack),
        );
    }
}

/// Tiles along the inner dimension of a panel that may start at a later column.
fn steps(panel: &[u32]) -> usize {
    panel.len().div_ceil(INNER_STEP / 2 * PANEL)
}
