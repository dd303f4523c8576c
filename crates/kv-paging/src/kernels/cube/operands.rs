//! What the kernels of attention read and write, grouped by meaning.

use cubecl::prelude::*;

/// Keys and values: of the cache, or of a step's tokens.
#[derive(CubeType, CubeLaunch)]
pub(super) struct KeysValues<E: Float, N: Size> {
    /// `[rows, kv_heads, head_dim]` in vectors.
    pub(super) keys: Box<[Vector<E, N>]>,
    /// `[rows, kv_heads, head_dim]` in vectors.
    pub(super) values: Box<[Vector<E, N>]>,
}

/// Angles of a step's tokens.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Angles<N: Size> {
    /// Cosines `[tokens, head_dim / 2]` in vectors.
    pub(super) cos: Box<[Vector<f32, N>]>,
    /// Sines `[tokens, head_dim / 2]` in vectors.
    pub(super) sin: Box<[Vector<f32, N>]>,
}

/// What a step of one token per sequence brings along besides its queries.
#[derive(CubeType, CubeLaunch)]
pub(super) struct NewRows<N: Size, A: Size> {
    /// Not rotated yet.
    pub(super) rows: KeysValues<f32, N>,
    pub(super) angles: Angles<A>,
}

/// The description of a step: for each token its cache row, the number of keys it sees and where its block table starts;
/// then the block tables. A [`crate::DecodeStep`] has more fields between the two.
#[derive(CubeType, CubeLaunch)]
pub(super) struct StepList {
    pub(super) list: Box<[u32]>,
    pub(super) num_tokens: usize,
}

#[cube]
impl StepList {
    /// Cache row of a token.
    pub(super) fn slot(&self, token: usize) -> usize {
        self.list[token] as usize
    }

    /// Keys that a token sees; 0 in a row without a token.
    pub(super) fn context(&self, token: usize) -> usize {
        self.list[self.num_tokens + token] as usize
    }

    /// Where a token's block table starts.
    pub(super) fn table(&self, token: usize) -> usize {
        self.list[2 * self.num_tokens + token] as usize
    }
}

/// What the cubes of a context's parts leave for each other.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Parts<N: Size> {
    /// Weighted sums of values `[tokens, splits, heads, head_dim]` in vectors.
    pub(super) sums: Box<[Vector<f32, N>]>,
    /// Maximum of the scores and sum of the weights `[tokens, splits, heads, 2]`.
    pub(super) stats: Box<[f32]>,
    /// Cubes that have ended, `[tokens, kv_heads]`; all zero between launches.
    pub(super) arrived: Box<[Atomic<u32>]>,
}

/// The parts of a token's context for one key/value head.
#[derive(CubeType)]
pub(super) struct Splits {
    pub(super) token: usize,
    pub(super) kv_head: usize,
    /// Parts that have keys.
    pub(super) used: usize,
    /// Parts that memory is laid out for.
    pub(super) num: usize,
}
