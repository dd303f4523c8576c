//! Names of blocks and of cached prefixes, and what these depend on.

/// Number of a block: its first slot in the cache tensors is `block * block_size`.
pub type BlockId = u32;

/// Names one cached prefix (all tokens up to the end of one full block). Never used twice in a pool's life, so that a
/// child can't be found through a block that has been evicted and filled with something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixId(pub(super) u64);

/// What, besides the tokens, the keys and values of a prefix depend on or are kept apart by.
///
/// Sequences share cached blocks only if their keys are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CacheKey {
    /// The LoRA adapter the tokens are computed with; `None` for the base model.
    pub adapter: Option<AdapterKey>,
    /// Separates users who must not learn from timing what others have asked (`cache_salt` in vLLM's API).
    pub salt: Option<String>,
}

/// Names an adapter: one that is loaded again under its name has another number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AdapterKey {
    /// Number of the load.
    pub id: u64,
    /// Name that requests give.
    pub name: String,
}
