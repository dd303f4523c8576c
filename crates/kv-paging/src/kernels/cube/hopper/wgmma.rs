//! `wgmma`, the product of a warpgroup on Hopper, and the barriers between warpgroups, which CubeCL doesn't know: their
//! instructions are written down as text.
//!
//! Sums and operands in registers have names, because an instruction in CubeCL has one result at most. Of 64 rows, a unit has
//! the rows `row` and `row + 8`, and two columns of each eight: of block `b`, the sums `4 * b` and `4 * b + 1` of the first
//! row, `4 * b + 2` and `4 * b + 3` of the second.
//!
//! Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" and "Parallel Synchronization: mbarrier".

use cubecl::prelude::*;

/// Units of a warpgroup.
pub(super) const WARPGROUP: usize = 128;
/// Rows of a product.
pub(super) const ROWS: usize = 64;
/// Bytes of a row of a panel: 64 values.
pub(super) const ROW_BYTES: usize = 128;
/// Inner values of an instruction.
const STEP: usize = 16;
/// Bytes of eight rows of a panel.
const GROUP_BYTES: usize = 8 * ROW_BYTES;

/// How an operand lies in shared memory: in panels of rows of 128 bytes, whose 16-byte parts are swizzled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Panels {
    /// Rows of a panel.
    pub(super) rows: usize,
    /// Whether rows are inner values; otherwise they are rows of the left operand, or columns of the right one.
    pub(super) is_outer: bool,
}

impl Panels {
    const fn bytes(&self) -> usize {
        self.rows * ROW_BYTES
    }

    /// How far the descriptor of inner step `step` is from that of the first.
    const fn offset(&self, step: usize) -> usize {
        let bytes = match self.is_outer {
            true => step * STEP * ROW_BYTES,
            false => step / 4 * self.bytes() + step % 4 * STEP * 2,
        };
        bytes >> 4
    }

    /// The lower half of a descriptor, without the address.
    const fn low(&self) -> usize {
        (self.bytes() >> 4) << 16
    }
}

/// What an instruction multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    /// Name of the sums.
    pub(super) sums: &'static str,
    /// Columns of the sums.
    pub(super) columns: usize,
    /// Inner values.
    pub(super) inner: usize,
    /// Whether the sums start at zero.
    pub(super) is_first: bool,
    pub(super) right: Panels,
}

impl Product {
    fn steps(&self, left: impl Fn(usize) -> (String, String)) -> String {
        let sums: Vec<String> = (0..self.columns / 2)
            .map(|i| format!("{}{i}", self.sums))
            .collect();
        let (sums, columns) = (sums.join(", "), self.columns);
        let is_outer = u8::from(self.right.is_outer);
        let mut text = String::from("wgmma.fence.sync.aligned; ");
        for step in 0..self.inner / STEP {
            let adds = match self.is_first && step == 0 {
                true => "none",
                false => "adds",
            };
            let (before, left) = left(step);
            let transposed = match before.is_empty() {
                true => format!("1, 1, {is_outer}"),
                false => format!("1, 1, 0, {is_outer}"),
            };
            text += &format!(
                "{before}add.s64 right, b, {}; wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{sums}}}, \
                 {left}, right, {adds}, {transposed}; ",
                self.right.offset(step)
            );
        }
        text + "wgmma.commit_group.sync.aligned;"
    }

    /// The left operand is in shared memory.
    fn from_memory(&self, left: Panels) -> String {
        self.steps(|step| {
            let before = format!("add.s64 left, a, {}; ", left.offset(step));
            (before, String::from("left"))
        })
    }

    /// The left operand is in registers.
    fn from_registers(&self, left: &str) -> String {
        self.steps(|step| {
            let words: Vec<String> = (0..4).map(|i| format!("{left}{}", 4 * step + i)).collect();
            (String::new(), format!("{{{}}}", words.join(", ")))
        })
    }
}

/// Declares `num` registers of f32, all zero.
#[cube]
pub(super) fn declare_sums(#[comptime] name: &'static str, #[comptime] num: usize) {
    gpu_asm!("{text}", text = const declaration(name, num, "f32", "0f00000000"), options(nomem));
}

/// Declares `num` registers of two values of 16 bits, all zero.
#[cube]
pub(super) fn declare_operands(#[comptime] name: &'static str, #[comptime] num: usize) {
    gpu_asm!("{text}", text = const declaration(name, num, "b32", "0"), options(nomem));
}

fn declaration(name: &str, num: usize, kind: &str, zero: &str) -> String {
    let zeros = (0..num).map(|i| format!(" mov.{kind} {name}{i}, {zero};"));
    format!(".reg .{kind} {name}<{num}>;{}", zeros.collect::<String>())
}

/// A sum.
#[cube]
pub(super) fn sum(#[comptime] name: &'static str, #[comptime] index: usize) -> f32 {
    let value: f32;
    gpu_asm!("mov.f32 {value}, {name}{index};", value = out(_) value, name = const name, index = const index, options(nomem));
    value
}

/// Replaces a sum by 2 to the power of `sum * factor + offset`, and returns that.
#[cube]
pub(super) fn weigh_sum(
    #[comptime] name: &'static str,
    #[comptime] index: usize,
    factor: f32,
    offset: f32,
) -> f32 {
    let value: f32;
    gpu_asm!(
        "{{ .reg .f32 power; fma.rn.f32 power, {name}{index}, {factor}, {offset};          ex2.approx.ftz.f32 {name}{index}, power; mov.f32 {value}, {name}{index}; }}",
        value = out(_) value,
        name = const name,
        index = const index,
        factor = in(_) factor,
        offset = in(_) offset,
        options(nomem)
    );
    value
}

/// Replaces a sum of `gradients` by its difference from `-delta`, times the sum of `weights`.
#[cube]
pub(super) fn differentiate(
    #[comptime] weights: &'static str,
    #[comptime] gradients: &'static str,
    #[comptime] index: usize,
    delta: f32,
) {
    gpu_asm!(
        "{{ .reg .f32 difference; add.f32 difference, {gradients}{index}, {delta}; \
         mul.f32 {gradients}{index}, difference, {weights}{index}; }}",
        weights = const weights,
        gradients = const gradients,
        index = const index,
        delta = in(_) delta,
        options(nomem)
    );
}

/// Replaces a sum by `by` unless `key` is less than `visible`.
#[cube]
pub(super) fn hide_sum(
    #[comptime] name: &'static str,
    #[comptime] index: usize,
    key: u32,
    visible: u32,
    #[comptime] by: u32,
) {
    // Values of their own: the text of a variable that changes is its address.
    let (key, visible) = (key & 0x7fff_ffffu32, visible & 0x7fff_ffffu32);
    gpu_asm!(
        "{{ .reg .pred hidden; setp.ge.u32 hidden, {key}, {visible}; @hidden mov.f32 {name}{index}, {by}; }}",
        key = in(_) key,
        visible = in(_) visible,
        name = const name,
        index = const index,
        by = const format!("0f{by:08X}"),
        options(nomem)
    );
}

/// Multiplies a sum.
#[cube]
pub(super) fn scale_sum(#[comptime] name: &'static str, #[comptime] index: usize, factor: f32) {
    gpu_asm!("mul.f32 {name}{index}, {name}{index}, {factor};", factor = in(_) factor, name = const name, index = const index, options(nomem));
}

/// Rounds two sums to an operand in registers: of 16 columns, the two blocks of eight of a row and of the row eight below.
#[cube]
pub(super) fn round_sums(
    #[comptime] from: &'static str,
    #[comptime] to: &'static str,
    #[comptime] index: usize,
) {
    gpu_asm!(
        "cvt.rn.bf16x2.f32 {to}{index}, {from}{high}, {from}{low};",
        from = const from,
        to = const to,
        index = const index,
        low = const 2 * index,
        high = const 2 * index + 1,
        options(nomem)
    );
}

/// Starts products of 64 rows, in a group of their own; both operands are in shared memory.
#[cube]
pub(super) fn multiply(
    left: u32,
    right: u32,
    #[comptime] product: Product,
    #[comptime] panels: Panels,
) {
    let a = (left & 0x3ffffu32) >> 4u32;
    let b = (right & 0x3ffffu32) >> 4u32;
    gpu_asm!(
        "{{ .reg .b32 low_a, low_b, high; .reg .b64 a, b, left, right; .reg .pred adds, none; \
         or.b32 low_a, {a}, {rows_a}; or.b32 low_b, {b}, {rows_b}; mov.b32 high, {high}; \
         mov.b64 a, {{low_a, high}}; mov.b64 b, {{low_b, high}}; \
         setp.eq.u32 adds, 0, 0; setp.ne.u32 none, 0, 0; {text} }}",
        a = in(_) a,
        b = in(_) b,
        rows_a = const panels.low(),
        rows_b = const product.right.low(),
        high = const (GROUP_BYTES >> 4) | 1 << 30,
        text = const product.from_memory(panels),
        options(explicit_mem, reads_address_space shared)
    );
}

/// Starts products of 64 rows, in a group of their own; the left operand is in registers.
#[cube]
pub(super) fn multiply_registers(
    #[comptime] left: &'static str,
    right: u32,
    #[comptime] product: Product,
) {
    let b = (right & 0x3ffffu32) >> 4u32;
    gpu_asm!(
        "{{ .reg .b32 low_b, high; .reg .b64 b, right; .reg .pred adds, none; \
         or.b32 low_b, {b}, {rows_b}; mov.b32 high, {high}; mov.b64 b, {{low_b, high}}; \
         setp.eq.u32 adds, 0, 0; setp.ne.u32 none, 0, 0; {text} }}",
        b = in(_) b,
        rows_b = const product.right.low(),
        high = const (GROUP_BYTES >> 4) | 1 << 30,
        text = const product.from_registers(left),
        options(explicit_mem, reads_address_space shared)
    );
}

/// Waits until at most `num` groups of products are under way.
#[cube]
pub(super) fn wait(#[comptime] num: usize) {
    gpu_asm!("wgmma.wait_group.sync.aligned {num};", options(explicit_mem, reads_address_space shared));
}

/// What this unit has written to shared memory is seen by products. A barrier must follow.
#[cube]
pub(super) fn publish() {
    gpu_asm!("fence.proxy.async.shared::cta;", options(explicit_mem, writes_address_space shared));
}

/// The address of shared memory that instructions take.
#[cube]
pub(super) fn address<T: CubePrimitive>(memory: &mut [T]) -> u32 {
    // SAFETY: only the address is taken.
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

/// Lets `num` units arrive at a barrier before its phase ends.
#[cube]
pub(super) fn init_barrier(barrier: u32, #[comptime] num: u32) {
    gpu_asm!(
        "mbarrier.init.shared::cta.b64 [{barrier}], {num};",
        barrier = in(_) barrier,
        num = const num,
        options(explicit_mem, writes_address_space shared)
    );
}

#[cube]
pub(super) fn arrive(barrier: u32) {
    let barrier = barrier & 0x3ffffu32;
    gpu_asm!(
        "mbarrier.arrive.shared::cta.b64 _, [{barrier}];",
        barrier = in(_) barrier,
        options(explicit_mem, writes_address_space shared)
    );
}

/// Waits for the end of the phase with this parity.
#[cube]
pub(super) fn wait_for_phase(barrier: u32, parity: u32) {
    // A value of its own: the text of a variable that changes is its address.
    let parity = parity & 1u32;
    gpu_asm!(
        "{{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [{barrier}], {parity}; \
         @done bra past; bra again; past: }}",
        barrier = in(_) barrier,
        parity = in(_) parity,
        options(explicit_mem, writes_address_space shared)
    );
}

/// The barriers at which two warpgroups wait for their turns: this one and the next.
const TURNS: u32 = 4;

/// Waits for all units of this warpgroup. Barrier 0 is that of the cube.
#[cube]
pub(super) fn sync_warpgroup() {
    let barrier = UNIT_POS / comptime!(WARPGROUP as u32) + 1;
    gpu_asm!(
        "bar.sync {barrier}, {num};",
        barrier = in(_) barrier,
        num = const WARPGROUP,
        options(explicit_mem, reads_address_space shared, writes_address_space shared)
    );
}

/// Waits until the other of two warpgroups gives way, see [`give_way`]. They take turns, the first one first.
#[cube]
pub(super) fn wait_for_turn() {
    let barrier = UNIT_POS / comptime!(WARPGROUP as u32) + TURNS;
    gpu_asm!(
        "bar.sync {barrier}, {num};",
        barrier = in(_) barrier,
        num = const 2 * WARPGROUP,
        options(explicit_mem, reads_address_space shared, writes_address_space shared)
    );
}

/// Lets the other of two warpgroups go on.
#[cube]
pub(super) fn give_way() {
    let barrier = TURNS + 1 - UNIT_POS / comptime!(WARPGROUP as u32);
    gpu_asm!(
        "bar.arrive {barrier}, {num};",
        barrier = in(_) barrier,
        num = const 2 * WARPGROUP,
        options(explicit_mem, reads_address_space shared, writes_address_space shared)
    );
}

/// Gives registers back: `num` are left for each unit.
#[cube]
pub(super) fn give_registers(#[comptime] num: u32) {
    gpu_asm!("setmaxnreg.dec.sync.aligned.u32 {num};", num = const num, options(nomem));
}

/// Takes registers, up to `num` for each unit.
#[cube]
pub(super) fn take_registers(#[comptime] num: u32) {
    gpu_asm!("setmaxnreg.inc.sync.aligned.u32 {num};", num = const num, options(nomem));
}

/// 2 to the power of `x`.
#[cube]
pub(super) fn power_of_two(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("ex2.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) x, options(nomem));
    y
}
