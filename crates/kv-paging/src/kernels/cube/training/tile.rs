//! Tiles of rows in shared memory, and products of them on tensor cores.
//!
//! Of a fragment of 16 rows, a unit has pairs of columns in two rows: `row` and `row + 8`, where `row` is a quarter of its
//! lane. Sums of 16 rows and 8 columns are two such pairs; those of a wider product are a sequence of them.

use cubecl::cmma::MmaDefinition;
use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use crate::kernels::training::heads::HeadShape;

/// Rows of a tile of keys, and of a tile of queries in the backward.
pub(super) const ROWS: usize = crate::kernels::training::parts::ROWS;
/// Elements of a vector.
pub(super) const VECTOR: usize = 8;
/// Planes of a cube, and its units.
pub(super) const PLANES: usize = 4;
pub(super) const UNITS: usize = 32 * PLANES;

impl HeadShape {
    /// Vectors of a head.
    pub(super) const fn chunks(&self) -> usize {
        self.head_dim / VECTOR
    }

    /// Vectors of a row of queries, keys and values.
    pub(super) const fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.chunks()
    }
}

/// Tiles of rows of documents; each has the document's first row, the first position of the tile and the document's length.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Tiles {
    pub(super) list: Box<[u32]>,
    /// Where the tiles of the kernel start.
    pub(super) at: usize,
}

/// A tile of a document.
#[derive(CubeType)]
pub(super) struct Tile {
    /// Row of the document's first token.
    pub(super) document: usize,
    /// Position of the tile's first row in the document.
    pub(super) first: usize,
    /// Tokens of the document.
    pub(super) len: usize,
}

#[cube]
impl Tiles {
    pub(super) fn tile(&self, index: usize) -> Tile {
        let at = self.at + index * 3;
        Tile {
            document: self.list[at] as usize,
            first: self.list[at + 1] as usize,
            len: self.list[at + 2] as usize,
        }
    }
}

/// Where a vector of a row lies in a tile: eight rows at the same vector lie in different banks.
#[cube]
fn place(row: usize, chunk: usize, #[comptime] chunks: usize) -> usize {
    row * chunks + (chunk ^ (row % 8))
}

/// Rows of a head on their way to shared memory.
#[derive(CubeType)]
pub(super) struct RowLoad {
    /// Vector where the head starts in the document's first row.
    pub(super) at: usize,
    /// Position of the first row.
    pub(super) start: usize,
    /// Last position of the document: behind it, its row is copied again.
    pub(super) last: usize,
    /// Where the tile goes.
    pub(super) to: usize,
}

/// Starts to copy rows of a head; `stride` are the vectors of a row.
#[cube]
pub(super) fn load_rows<E: Float>(
    from: &[Vector<E, Const<8>>],
    memory: &mut [Vector<E, Const<8>>],
    load: &RowLoad,
    #[comptime] rows: usize,
    #[comptime] chunks: usize,
    #[comptime] stride: usize,
) {
    let unit = UNIT_POS as usize;
    #[unroll]
    for i in 0..comptime!(rows * chunks / UNITS) {
        let (row, chunk) = ((i * UNITS + unit) / chunks, (i * UNITS + unit) % chunks);
        let position = min(load.start + row, load.last);
        let source = load.at + position * stride + chunk;
        let to = load.to + place(row, chunk, chunks);
        copy_async(
            &from[source..source + 1],
            &mut memory[to..to + 1],
            comptime!(VECTOR as u32),
        );
    }
}

/// Where a unit reads its row of four matrices of 8 rows and 8 columns, in bytes of shared memory: in 16 rows of a tile and
/// 16 of their columns, the first of each. Other columns are reached by an exclusive or, other rows by an addition, which
/// is why an instruction needs no arithmetic of its own.
#[derive(CubeType)]
pub(super) struct Lanes {
    /// For a left operand, and for columns of a right one.
    pub(super) left: u32,
    /// For rows of a right operand.
    pub(super) right: u32,
}

impl HeadShape {
    /// Bytes of a tile.
    pub(super) const fn tile_bytes(&self) -> u32 {
        (ROWS * self.head_dim * 2) as u32
    }

    /// Bytes of 16 rows.
    pub(super) const fn core_bytes(&self) -> u32 {
        (16 * self.head_dim * 2) as u32
    }
}

/// Bytes of 16 columns.
const CORE_COLUMNS: u32 = 32;
/// Bytes of a vector.
const VECTOR_BYTES: u32 = 16;
/// The exclusive or must not leave a row: memory starts at a multiple of these bytes.
pub(super) const ALIGNMENT: usize = 256;

#[cube]
pub(super) fn lanes_of<E: Float>(
    memory: &[Vector<E, Const<8>>],
    #[comptime] shape: HeadShape,
) -> Lanes {
    let lane = UNIT_POS_PLANE;
    let chunks = comptime!(shape.chunks() as u32);
    let memory = shared_address::<E>(memory);
    let left = lane % 16 * chunks + ((lane / 16) ^ (lane % 8));
    let right = (lane / 16 * 8 + lane % 8) * chunks + ((lane / 8 % 2) ^ (lane % 8));
    Lanes {
        left: memory + left * VECTOR_BYTES,
        right: memory + right * VECTOR_BYTES,
    }
}

/// The address of shared memory that instructions take.
#[cube]
fn shared_address<E: Float>(memory: &[Vector<E, Const<8>>]) -> u32 {
    // SAFETY: only the address is taken.
    // SAFETY: the pointer is only made an address, which instructions take that stay within `memory`.
    let pointer = unsafe { memory.as_ptr_unchecked() };
    let address: u32;
    gpu_asm!(
        "{{.reg .u64 place; cvta.to.shared.u64 place, {pointer}; cvt.u32.u64 {address}, place;}}",
        address = out(_) address, pointer = in(_) pointer, options(nomem)
    );
    address
}

/// Four matrices, of which `address` is this unit's row.
#[cube]
fn load_matrices<E: Float>(
    address: u32,
    #[comptime] transposed: &str,
) -> Array<Vector<E, Const<2>>> {
    let loaded: Vector<u32, Const<4>>;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4{transposed}.shared::cta.b16 {loaded}, [{address}];",
        loaded = out(_) loaded, address = in(_) address,
        options(explicit_mem, reads_address_space shared)
    );
    let mut fragment = Array::<Vector<E, Const<2>>>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        fragment[i] = Vector::reinterpret(loaded.extract(i));
    }
    fragment
}

/// The fragment of 16 rows, whose first columns are at `address`, and of the 16 columns `core`.
#[cube]
pub(super) fn fragment<E: Float>(address: u32, core: usize) -> Array<Vector<E, Const<2>>> {
    load_matrices::<E>(address ^ (core as u32 * CORE_COLUMNS), "")
}

/// Sums of 16 rows and `8 * num` columns.
#[cube]
pub(super) fn zeros(#[comptime] num: usize) -> Sequence<Array<Vector<f32, Const<2>>>> {
    let mut sums = Sequence::<Array<Vector<f32, Const<2>>>>::new();
    #[unroll]
    for _ in 0..num {
        let mut sum = Array::<Vector<f32, Const<2>>>::new(2usize);
        sum[0] = Vector::new(0.0);
        sum[1] = Vector::new(0.0);
        sums.push(sum);
    }
    sums
}

/// Adds the products of fragments with the rows of a tile, whose first ones are at `address`, in the same 16 columns. The
/// [`ROWS`] products of a row are columns of `sums`.
#[cube]
pub(super) fn add_row_products<E: Float>(
    left: &Sequence<Array<Vector<E, Const<2>>>>,
    address: u32,
    core: usize,
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    #[comptime] num: usize,
    #[comptime] shape: HeadShape,
) {
    let columns = address ^ (core as u32 * CORE_COLUMNS);
    #[unroll]
    for pair in 0..comptime!(ROWS / 16) {
        let rows = columns + pair as u32 * comptime!(shape.core_bytes());
        let loaded = load_matrices::<E>(rows, "");
        #[unroll]
        for half in 0..2usize {
            let right = half_of::<E>(&loaded, half);
            #[unroll]
            for i in 0..num {
                let sum = &mut sums[i * comptime!(ROWS / 8) + pair * 2 + half];
                multiply::<E>(&left[i], &right, sum);
            }
        }
    }
}

/// Adds the products of fragments with the columns of a tile, whose first ones are at `address`, in its 16 rows that belong
/// to the fragments' columns. The products of a row with all columns are columns of `sums`.
#[cube]
pub(super) fn add_column_products<E: Float>(
    left: &Sequence<Array<Vector<E, Const<2>>>>,
    address: u32,
    core: usize,
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    #[comptime] num: usize,
    #[comptime] shape: HeadShape,
) {
    let rows = core as u32 * comptime!(shape.core_bytes());
    #[unroll]
    for pair in 0..comptime!(shape.chunks() / 2) {
        let columns = address ^ (pair as u32 * CORE_COLUMNS);
        let loaded = load_matrices::<E>(columns + rows, ".trans");
        #[unroll]
        for half in 0..2usize {
            let right = half_of::<E>(&loaded, half);
            #[unroll]
            for i in 0..num {
                let sum = &mut sums[i * comptime!(shape.chunks()) + pair * 2 + half];
                multiply::<E>(&left[i], &right, sum);
            }
        }
    }
}

/// The right operand of 8 columns, of two that were loaded.
#[cube]
fn half_of<E: Float>(
    loaded: &Array<Vector<E, Const<2>>>,
    half: usize,
) -> Array<Vector<E, Const<2>>> {
    let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
    right[0] = loaded[half * 2];
    right[1] = loaded[half * 2 + 1];
    right
}

#[cube]
fn multiply<E: Float>(
    left: &Array<Vector<E, Const<2>>>,
    right: &Array<Vector<E, Const<2>>>,
    sum: &mut Array<Vector<f32, Const<2>>>,
) {
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    instruction.execute_inplace(left, right, sum);
}

/// Rounds the sums of 16 columns, two blocks of 8, to a fragment.
#[cube]
pub(super) fn rounded<E: Float>(
    low: &Array<Vector<f32, Const<2>>>,
    high: &Array<Vector<f32, Const<2>>>,
) -> Array<Vector<E, Const<2>>> {
    let mut fragment = Array::<Vector<E, Const<2>>>::new(4usize);
    fragment[0] = Vector::cast_from(low[0]);
    fragment[1] = Vector::cast_from(low[1]);
    fragment[2] = Vector::cast_from(high[0]);
    fragment[3] = Vector::cast_from(high[1]);
    fragment
}

/// 2 to the power of `x`.
#[cube]
pub(super) fn power_of_two(x: f32) -> f32 {
    let y: f32;
    gpu_asm!("ex2.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) x, options(nomem));
    y
}
