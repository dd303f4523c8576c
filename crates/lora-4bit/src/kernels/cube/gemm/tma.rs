//! Products on Hopper with tiles of 128 × 256, or narrower ones: one warpgroup copies, two multiply.
//!
//! A cube computes one tile after the other. The first warpgroup asks the Tensor Memory Accelerator (TMA) for the operands' tiles,
//! as many steps ahead as fit in shared memory, across the ends of the results' tiles, too. The other two multiply 64 rows each. A
//! stage of shared memory has two barriers: it is full, and it may be overwritten.
//!
//! Source: PTX ISA, "Data Movement and Conversion Instructions: Tensor copy" and "Parallel Synchronization: mbarrier".

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::zspace::shape;
use cubecl_cpp::cuda::ptx::tensor_map_address;

use super::shape::{Gate, Kind, PANEL};
use super::wgmma::{self, PANEL_BYTES, ROW_BYTES};
use crate::kernels::operand::Major;
use crate::kernels::tile::INNER;

/// Rows of tiles that cubes next to each other share: what they read then comes from the cache.
const ROW_TILES: usize = 8;
/// Warpgroups that multiply.
const MULTIPLIERS: u32 = 2;
/// Units of a cube.
pub(super) const UNITS: u32 = 128 * (1 + MULTIPLIERS);
/// Registers of a unit that copies, and of one that multiplies, out of 65,536 for all.
const COPYING_REGISTERS: u32 = 40;
const MULTIPLYING_REGISTERS: u32 = 232;

/// What the accelerator knows of an operand, so that it copies `tile` of it at once: rows, and columns of 128 bytes at most.
pub(super) fn map(operand: CubeTensor, elem: ElemType, tile: [usize; 2]) -> TensorMapArg<Tiled> {
    let [rows, columns] = tile;
    let tile_size = shape![rows, columns];
    TensorMapArg::new(TiledArgs { tile_size }, operand.into_tensor_arg(), elem)
        .with_swizzle(TensorMapSwizzle::B128)
        .with_prefetch(TensorMapPrefetch::B256)
}

/// Rows and columns that are copied at once, of an operand with `outer` rows or columns of the result in a tile.
pub(super) const fn tile(major: Major, outer: usize) -> [usize; 2] {
    match major {
        Major::Inner => [outer, INNER],
        Major::Outer => [INNER, PANEL],
    }
}

/// Where a tile of the result begins, and which steps are added up for it.
#[derive(CubeType)]
struct Place {
    row: usize,
    column: usize,
    first: usize,
    end: usize,
    /// The first value of its part of the result.
    part: usize,
}

/// How the work is divided, and the sizes of the result.
#[derive(CubeType, CubeLaunch, Clone)]
pub(super) struct Work {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Steps that the first tensors of the operands have.
    pub(super) first_steps: usize,
    pub(super) steps: usize,
    /// Steps of a part.
    pub(super) split_steps: usize,
    pub(super) splits: usize,
}

#[cube]
impl Work {
    fn row_tiles(&self, #[comptime] kind: Kind) -> usize {
        self.rows.div_ceil(comptime!(kind.rows))
    }

    fn column_tiles(&self, #[comptime] kind: Kind) -> usize {
        self.columns.div_ceil(comptime!(kind.result_columns()))
    }

    fn num_tiles(&self, #[comptime] kind: Kind) -> usize {
        self.row_tiles(kind) * self.column_tiles(kind) * self.splits
    }

    fn place(&self, tile: usize, #[comptime] kind: Kind) -> Place {
        let (row_tiles, column_tiles) = (self.row_tiles(kind), self.column_tiles(kind));
        let split = tile / (row_tiles * column_tiles);
        let tile = tile % (row_tiles * column_tiles);
        let group = tile / (ROW_TILES * column_tiles);
        let in_group = tile % (ROW_TILES * column_tiles);
        let group_rows = min(row_tiles - group * ROW_TILES, ROW_TILES);
        let first = split * self.split_steps;
        Place {
            row: (group * ROW_TILES + in_group % group_rows) * comptime!(kind.rows),
            column: in_group / group_rows * comptime!(kind.result_columns()),
            first,
            end: min(first + self.split_steps, self.steps),
            part: split * self.rows * self.columns,
        }
    }
}

/// Where the stages of shared memory and their barriers are, and which of them is next.
#[derive(CubeType)]
struct Ring {
    memory: u32,
    full: u32,
    empty: u32,
    stage: u32,
    phase: u32,
}

#[cube]
impl Ring {
    fn advance(&mut self, #[comptime] kind: Kind) {
        self.stage += 1u32;
        if self.stage == comptime!(kind.stages as u32) {
            self.stage = 0u32;
            self.phase ^= 1u32;
        }
    }

    fn address(&self, #[comptime] kind: Kind) -> u32 {
        self.memory + self.stage * comptime!(stage_bytes(kind))
    }
}

const fn stage_bytes(kind: Kind) -> u32 {
    ((kind.rows + kind.columns) * ROW_BYTES) as u32
}

#[cube(launch_unchecked)]
pub(super) fn gemm<W: Float, Y: Float>(
    a: &TensorMap<W, Tiled>,
    second_a: &TensorMap<W, Tiled>,
    b: &TensorMap<W, Tiled>,
    second_b: &TensorMap<W, Tiled>,
    bias: &[Vector<f32, Const<2>>],
    residual: &[Vector<Y, Const<2>>],
    y: &mut [Vector<u32, Const<4>>],
    work: Work,
    #[comptime] kind: Kind,
    #[comptime] is_wide: bool,
    #[define(W, Y)] _dtypes: [ElemType; 2],
) {
    let mut memory = Shared::<[Vector<W, Const<8>>]>::new_aligned_slice(
        comptime!(kind.stages * kind.stage_len()),
        1024usize,
    );
    let mut barriers =
        Shared::<[Vector<u32, Const<2>>]>::new_aligned_slice(comptime!(2 * kind.stages), 16usize);
    let full = wgmma::address(&mut barriers);
    let mut ring = Ring {
        memory: wgmma::address(&mut memory),
        full,
        empty: full + comptime!(8 * kind.stages as u32),
        stage: 0u32.runtime(),
        phase: 0u32.runtime(),
    };
    if UNIT_POS == 0 {
        #[unroll]
        for i in 0..comptime!(kind.stages as u32) {
            init_barrier(ring.full + i * 8, 1u32);
            init_barrier(ring.empty + i * 8, MULTIPLIERS);
        }
        gpu_asm!("fence.mbarrier_init.release.cluster;", options(explicit_mem, writes_address_space shared));
    }
    sync_cube();
    wgmma::declare_sums(kind);
    if UNIT_POS < 128 {
        gpu_asm!("setmaxnreg.dec.sync.aligned.u32 {num};", num = const COPYING_REGISTERS, options(nomem));
        if UNIT_POS == 0 {
            copy(a, second_a, b, second_b, &mut ring, &work, kind);
        }
    } else {
        gpu_asm!("setmaxnreg.inc.sync.aligned.u32 {num};", num = const MULTIPLYING_REGISTERS, options(nomem));
        let group = UNIT_POS / 128 - 1;
        let mut tile = CUBE_POS;
        while tile < work.num_tiles(kind) {
            let place = work.place(tile, kind);
            wgmma::clear_sums(kind);
            multiply(&mut ring, place.end - place.first, group, kind);
            store(
                bias,
                residual,
                y,
                &place,
                &work,
                group as usize,
                kind,
                is_wide,
            );
            tile += CUBE_COUNT;
        }
    }
}

/// Asks for the tiles of all steps of this cube, each as soon as a stage is free.
#[cube]
fn copy<W: Float>(
    a: &TensorMap<W, Tiled>,
    second_a: &TensorMap<W, Tiled>,
    b: &TensorMap<W, Tiled>,
    second_b: &TensorMap<W, Tiled>,
    ring: &mut Ring,
    work: &Work,
    #[comptime] kind: Kind,
) {
    let (first_a, second_a) = (tensor_map_address(a), tensor_map_address(second_a));
    let (first_b, second_b) = (tensor_map_address(b), tensor_map_address(second_b));
    let mut tile = CUBE_POS;
    while tile < work.num_tiles(kind) {
        let place = work.place(tile, kind);
        let mut step = place.first;
        while step < place.end {
            wait_for_phase(ring.empty + ring.stage * 8, ring.phase ^ 1);
            let full = ring.full + ring.stage * 8;
            expect_bytes(full, comptime!(stage_bytes(kind)));
            let to_a = ring.address(kind);
            let to_b = to_a + comptime!((kind.rows * ROW_BYTES) as u32);
            let is_first = step < work.first_steps;
            let from_a = select(is_first, first_a, second_a);
            let from_b = select(is_first, first_b, second_b);
            let inner = select(is_first, step, step - work.first_steps);
            let columns = comptime!(kind.result_columns());
            let (major_a, major_b) = comptime!((kind.majors[0], kind.majors[1]));
            copy_outer(from_a, to_a, full, place.row, inner, kind.rows, major_a);
            copy_outer(from_b, to_b, full, place.column, inner, columns, major_b);
            if comptime!(kind.is_gated()) {
                let to_up = to_b + comptime!((kind.result_columns() * ROW_BYTES) as u32);
                let (from_up, up) = if comptime!(kind.gate == Gate::Stacked) {
                    (from_b, work.columns + place.column)
                } else {
                    (second_b, place.column)
                };
                copy_outer(from_up, to_up, full, up, inner, columns, major_b);
            }
            ring.advance(kind);
            step += 1;
        }
        tile += CUBE_COUNT;
    }
}

/// Asks for an operand's tile of a step: `num` rows or columns of the result, from `outer` on.
#[cube]
fn copy_outer(
    map: u64,
    to: u32,
    barrier: u32,
    outer: usize,
    step: usize,
    #[comptime] num: usize,
    #[comptime] major: Major,
) {
    let inner = (step * comptime!(INNER)) as u32;
    if comptime!(major == Major::Inner) {
        copy_tile(map, to, barrier, inner, outer as u32);
    } else {
        #[unroll]
        for panel in 0..comptime!((num / PANEL) as u32) {
            let column = outer as u32 + panel * comptime!(PANEL as u32);
            let to = to + panel * comptime!(PANEL_BYTES as u32);
            copy_tile(map, to, barrier, column, inner);
        }
    }
}

/// The products of all steps of a tile, 64 rows of it for a warpgroup.
#[cube]
fn multiply(ring: &mut Ring, steps: usize, group: u32, #[comptime] kind: Kind) {
    let mut before = ring.empty;
    for step in 0..steps {
        wait_for_phase(ring.full + ring.stage * 8, ring.phase);
        wgmma::multiply(ring.address(kind), group, kind);
        wgmma::wait(1usize);
        // The products of the step before are done.
        if step > 0 && UNIT_POS % 128 == 0 {
            arrive(before);
        }
        before = ring.empty + ring.stage * 8;
        ring.advance(kind);
    }
    wgmma::wait(0usize);
    if UNIT_POS % 128 == 0 {
        arrive(before);
    }
}

/// A unit has two rows, and two columns of each eight. Four neighbours exchange them, so that each writes 16 bytes.
#[cube]
fn store<Y: Float>(
    bias: &[Vector<f32, Const<2>>],
    residual: &[Vector<Y, Const<2>>],
    y: &mut [Vector<u32, Const<4>>],
    place: &Place,
    work: &Work,
    group: usize,
    #[comptime] kind: Kind,
    #[comptime] is_wide: bool,
) {
    let lane = (UNIT_POS % 32) as usize;
    let (quad, plane) = (lane % 4, (UNIT_POS / 32 % 4) as usize);
    let blocks = comptime!(kind.result_columns() / 8);
    #[unroll]
    for half in 0..2usize {
        let row = place.row + group * 64 + plane * 16 + lane / 4 + half * 8;
        let start = row * work.columns;
        // Blocks of eight columns whose values four neighbours write together.
        let together = comptime!(if is_wide { 2usize } else { 4usize });
        #[unroll]
        for i in 0..comptime!(blocks.div_ceil(together)) {
            let mut words = Array::<u32>::new(4usize);
            #[unroll]
            for part in 0..together {
                let block = comptime!(i * together + part);
                // The last group may have fewer blocks.
                let mut result = Vector::<f32, Const<2>>::new(0.0);
                if comptime!(block < blocks) {
                    let column = place.column + block * 8 + quad * 2;
                    result = wgmma::pair(comptime!(block * 4 + half * 2));
                    if comptime!(kind.is_gated()) {
                        let up = wgmma::pair(comptime!((blocks + block) * 4 + half * 2));
                        let one = Vector::<f32, Const<2>>::new(1.0);
                        result = result / (one + (-result).exp()) * up;
                    }
                    if row < work.rows && column < work.columns {
                        if comptime!(kind.has_bias) {
                            result += bias[column / 2];
                        }
                        if comptime!(kind.has_residual) {
                            result += Vector::cast_from(residual[(start + column) / 2]);
                        }
                    }
                }
                if comptime!(is_wide) {
                    words[part * 2] = u32::reinterpret(result.extract(0usize));
                    words[part * 2 + 1] = u32::reinterpret(result.extract(1usize));
                } else {
                    words[part] = u32::reinterpret(Vector::<Y, Const<2>>::cast_from(result));
                }
            }
            let (block, in_block) = if comptime!(is_wide) {
                exchange(&mut words, 2usize, 1u32, quad % 2 == 1);
                (i * together + quad % 2, quad / 2 * 4)
            } else {
                exchange(&mut words, 1usize, 1u32, quad % 2 == 1);
                exchange(&mut words, 2usize, 2u32, quad / 2 == 1);
                (i * together + quad, 0usize.runtime())
            };
            let column = place.column + block * 8 + in_block;
            if row < work.rows && column < work.columns && block < blocks {
                let mut vector = Vector::<u32, Const<4>>::new(0u32);
                #[unroll]
                for word in 0..4usize {
                    vector.insert(word, words[word]);
                }
                y[(place.part + start + column) / comptime!(together * 2)] = vector;
            }
        }
    }
}

/// Of each two words that are `distance` apart, the second of a unit becomes the first of its neighbour, and the other way round.
#[cube]
fn exchange(
    words: &mut Array<u32>,
    #[comptime] distance: usize,
    #[comptime] neighbour: u32,
    is_second: bool,
) {
    #[unroll]
    for i in 0..2usize {
        let first = comptime!(if distance == 1 { i * 2 } else { i });
        let second = comptime!(first + distance);
        let sent = select(is_second, words[first], words[second]);
        let got = plane_shuffle_xor(sent, neighbour);
        words[first] = select(is_second, got, words[first]);
        words[second] = select(is_second, words[second], got);
    }
}

#[cube]
fn init_barrier(barrier: u32, #[comptime] arrivals: u32) {
    gpu_asm!(
        "mbarrier.init.shared::cta.b64 [{barrier}], {arrivals};",
        barrier = in(_) barrier,
        arrivals = const arrivals,
        options(explicit_mem, writes_address_space shared)
    );
}

#[cube]
fn wait_for_phase(barrier: u32, parity: u32) {
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

/// Arrives, and lets the barrier wait for so many bytes.
#[cube]
fn expect_bytes(barrier: u32, #[comptime] bytes: u32) {
    gpu_asm!(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [{barrier}], {bytes};",
        barrier = in(_) barrier,
        bytes = const bytes,
        options(explicit_mem, writes_address_space shared)
    );
}

#[cube]
fn arrive(barrier: u32) {
    let barrier = barrier & 0x3ffffu32;
    gpu_asm!(
        "mbarrier.arrive.shared::cta.b64 _, [{barrier}];",
        barrier = in(_) barrier,
        options(explicit_mem, writes_address_space shared)
    );
}

#[cube]
fn copy_tile(map: u64, to: u32, barrier: u32, x: u32, y: u32) {
    gpu_asm!(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{to}], [{map}, {{{x}, {y}}}], [{barrier}];",
        to = in(_) to,
        map = in(_) map,
        x = in(_) x,
        y = in(_) y,
        barrier = in(_) barrier,
        options(explicit_mem, writes_address_space shared)
    );
}
