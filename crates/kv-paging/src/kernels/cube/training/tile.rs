//! Tiles of rows in shared memory, and products of them on tensor cores.
//!
//! Of a fragment of 16 rows, a unit has pairs of columns in two rows: `row` and `row + 8`, where `row` is a quarter of its
//! lane. Sums of 16 rows and 8 columns are two such pairs; those of a wider product are a sequence of them.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::frontend::barrier::copy_async;
use cubecl::prelude::*;

use crate::kernels::training::HeadShape;

/// Rows of a tile of keys, and of a tile of queries in the backward.
pub(super) const ROWS: usize = 64;
/// Elements of a vector.
pub(super) const VECTOR: usize = 8;
/// Planes of a cube, and its units.
pub(super) const PLANES: usize = 4;
pub(super) const UNITS: usize = 32 * PLANES;
/// log2(e): exponentials are powers of two.
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;

impl HeadShape {
    /// Vectors of a head.
    pub(super) const fn chunks(&self) -> usize {
        self.head_dim / VECTOR
    }

    /// Vectors of a row of queries, keys and values.
    pub(super) const fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.chunks()
    }

    /// Query heads per key/value head.
    pub(super) const fn group(&self) -> usize {
        self.heads / self.kv_heads
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

/// The fragment of 16 rows of the tile at `at`, from `row` on, and of 16 columns.
#[cube]
pub(super) fn fragment<E: Float>(
    memory: &[Vector<E, Const<8>>],
    at: usize,
    row: usize,
    core: usize,
    #[comptime] chunks: usize,
) -> Array<Vector<E, Const<2>>> {
    let lane = UNIT_POS_PLANE as usize;
    let from = at + place(row + lane % 16, core * 2 + lane / 16, chunks);
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
        &memory[from..from + 1],
        MatrixIdent::A,
        4usize,
        false,
    )
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

/// Adds the products of fragments with the rows of the tile at `at` in the same 16 columns.
/// The [`ROWS`] products of a row are columns of `sums`.
#[cube]
pub(super) fn add_row_products<E: Float>(
    left: &Sequence<Array<Vector<E, Const<2>>>>,
    memory: &[Vector<E, Const<8>>],
    at: usize,
    core: usize,
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    #[comptime] num: usize,
    #[comptime] chunks: usize,
) {
    let lane = UNIT_POS_PLANE as usize;
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for pair in 0..comptime!(ROWS / 16) {
        let row = pair * 16 + lane / 16 * 8 + lane % 8;
        let right = at + place(row, core * 2 + lane / 8 % 2, chunks);
        let loaded = instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
            &memory[right..right + 1],
            MatrixIdent::B,
            4usize,
            false,
        );
        #[unroll]
        for half in 0..2usize {
            let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
            right[0] = loaded[half * 2];
            right[1] = loaded[half * 2 + 1];
            #[unroll]
            for i in 0..num {
                let sum = &mut sums[i * comptime!(ROWS / 8) + pair * 2 + half];
                instruction.execute_inplace(&left[i], &right, sum);
            }
        }
    }
}

/// Adds the products of fragments with the columns of the tile at `at`, in its 16 rows that belong to the fragments'
/// columns. The products of a row with all columns are columns of `sums`.
#[cube]
pub(super) fn add_column_products<E: Float>(
    left: &Sequence<Array<Vector<E, Const<2>>>>,
    memory: &[Vector<E, Const<8>>],
    at: usize,
    core: usize,
    sums: &mut Sequence<Array<Vector<f32, Const<2>>>>,
    #[comptime] num: usize,
    #[comptime] chunks: usize,
) {
    let lane = UNIT_POS_PLANE as usize;
    let instruction = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for pair in 0..comptime!(chunks / 2) {
        let right = at + place(core * 16 + lane % 16, pair * 2 + lane / 16, chunks);
        let loaded = instruction.load_matrix::<Vector<E, Const<8>>, Const<2>>(
            &memory[right..right + 1],
            MatrixIdent::B,
            4usize,
            true,
        );
        #[unroll]
        for half in 0..2usize {
            let mut right = Array::<Vector<E, Const<2>>>::new(2usize);
            right[0] = loaded[half * 2];
            right[1] = loaded[half * 2 + 1];
            #[unroll]
            for i in 0..num {
                let sum = &mut sums[i * chunks + pair * 2 + half];
                instruction.execute_inplace(&left[i], &right, sum);
            }
        }
    }
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
