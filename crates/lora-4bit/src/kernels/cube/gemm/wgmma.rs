//! `wgmma`, Hopper's product of four warps, which CubeCL doesn't know: its instructions are written down as text.
//!
//! The sums live in registers that the text declares by name, because an instruction in CubeCL has one result at most. The
//! instruction reads both operands from shared memory while the program goes on; a descriptor says how they lie there.
//!
//! Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".

use cubecl::prelude::*;

use super::shape::{Kind, PANEL};
use crate::kernels::operand::Major;
use crate::kernels::tile::{INNER, VECTOR};

/// Bytes of a panel, of eight of its rows, and of one.
pub(super) const PANEL_BYTES: usize = PANEL * INNER * 2;
pub(super) const ROW_BYTES: usize = INNER * 2;
const GROUP_BYTES: usize = 8 * ROW_BYTES;
/// Inner values of an instruction.
const STEP: usize = 16;

/// Declares the sums of a unit, and sets them to zero.
#[cube]
pub(super) fn declare_sums(#[comptime] kind: Kind) {
    gpu_asm!("{text}", text = const declaration(kind), options(nomem));
}

/// Sets the sums to zero again.
#[cfg(feature = "cuda")]
#[cube]
pub(super) fn clear_sums(#[comptime] kind: Kind) {
    gpu_asm!("{text}", text = const zeros(kind), options(nomem));
}

fn declaration(kind: Kind) -> String {
    format!(".reg .f32 wgmma_sum<{}>;{}", kind.columns / 2, zeros(kind))
}

fn zeros(kind: Kind) -> String {
    let zeros = (0..kind.columns / 2).map(|i| format!(" mov.f32 wgmma_sum{i}, 0f00000000;"));
    zeros.collect()
}

/// One of the sums.
#[cube]
fn sum(#[comptime] index: usize) -> f32 {
    let value: f32;
    gpu_asm!("mov.f32 {value}, wgmma_sum{index};", value = out(_) value, index = const index, options(nomem));
    value
}

/// Two neighbouring sums.
#[cube]
pub(super) fn pair(#[comptime] index: usize) -> Vector<f32, Const<2>> {
    let mut pair = Vector::<f32, Const<2>>::new(0.0);
    pair.insert(0usize, sum(index));
    pair.insert(1usize, sum(comptime!(index + 1)));
    pair
}

/// What shared memory has got by asynchronous copies is seen by `wgmma`. A barrier must follow.
#[cube]
pub(super) fn publish_copies() {
    gpu_asm!("fence.proxy.async.shared::cta;", options(explicit_mem, writes_address_space shared));
}

/// The address of shared memory.
#[cube]
pub(super) fn address<T: CubePrimitive>(memory: &mut [T]) -> u32 {
    // SAFETY: the pointer is only made an address, which instructions take that stay within `memory`.
    let pointer = unsafe { memory.as_ptr_unchecked() };
    let address: u32;
    gpu_asm!(
        "{{ .reg .u64 wide; cvta.to.shared.u64 wide, {pointer}; cvt.u32.u64 {address}, wide; }}",
        pointer = mem_inout(_) pointer,
        address = out(_) address,
        options(explicit_mem)
    );
    address
}

/// Starts the products of a step, whose tiles lie at `stage`, in a group of their own. A warpgroup has the 64 rows of its number.
#[cube]
pub(super) fn multiply(stage: u32, group: u32, #[comptime] kind: Kind) {
    let a = stage + group * comptime!(PANEL_BYTES as u32);
    let b = stage + comptime!((kind.rows * ROW_BYTES) as u32);
    // 14 bits of an address, without its last four.
    let a = (a & 0x3ffffu32) >> 4u32;
    let b = (b & 0x3ffffu32) >> 4u32;
    gpu_asm!(
        "{{ .reg .b32 low_a, low_b, high; .reg .b64 a, b, left, right; .reg .pred adds; \
         or.b32 low_a, {a}, {low}; or.b32 low_b, {b}, {low}; mov.b32 high, {high}; \
         mov.b64 a, {{low_a, high}}; mov.b64 b, {{low_b, high}}; setp.eq.u32 adds, 0, 0; {text} }}",
        a = in(_) a,
        b = in(_) b,
        low = const (PANEL_BYTES >> 4) << 16,
        high = const (GROUP_BYTES >> 4) | 1 << 30,
        text = const products(kind),
        options(explicit_mem, reads_address_space shared)
    );
}

/// The instructions of a step. The descriptors move on by 16 inner values each time.
fn products(kind: Kind) -> String {
    let columns = kind.columns;
    let sums: Vec<String> = (0..columns / 2).map(|i| format!("wgmma_sum{i}")).collect();
    let sums = sums.join(", ");
    let offset = |major: Major, i: usize| match major {
        Major::Inner => (i * STEP * 2) >> 4,
        Major::Outer => (i * STEP * ROW_BYTES) >> 4,
    };
    let transposes = kind.majors.map(|major| u8::from(major == Major::Outer));
    let mut text = String::from("wgmma.fence.sync.aligned; ");
    for i in 0..INNER / STEP {
        let [a, b] = kind.majors.map(|major| offset(major, i));
        let [ta, tb] = transposes;
        text += &format!(
            "add.s64 left, a, {a}; add.s64 right, b, {b}; \
             wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{sums}}}, left, right, adds, 1, 1, {ta}, {tb}; "
        );
    }
    text + "wgmma.commit_group.sync.aligned;"
}

/// Waits until at most `num` groups of products are under way.
#[cube]
pub(super) fn wait(#[comptime] num: usize) {
    gpu_asm!("wgmma.wait_group.sync.aligned {num};", options(explicit_mem, reads_address_space shared));
}

const _: () = assert!(VECTOR * 2 == 16);
