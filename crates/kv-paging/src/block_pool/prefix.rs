//! The prefix cache: which block already holds the keys and values of a given run of tokens.
//!
//! A full block is found by *everything its contents depend on*: the cached block before it, its own token ids, and
//! the [`CacheKey`] (adapter and salt). Since a block names its parent, the key of a block stands for the whole
//! prefix up to its end, like the chained block hashes of vLLM. Unlike there, the hash only selects a bucket: the
//! map compares parent, tokens and key before it answers, and parents are named by a [`PrefixId`] that is never used
//! twice. A hash collision can therefore cost time, but never hand one prompt's keys and values to another.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::events::{CacheEvent, EventLog};
use super::ids::{BlockId, CacheKey, PrefixId};

#[derive(Debug, PartialEq, Eq, Hash)]
struct Prefix {
    parent: Option<PrefixId>,
    key: Arc<CacheKey>,
    tokens: Vec<u32>,
}

/// Maps full prefixes to the one block that holds each, and back.
#[derive(Debug)]
pub(crate) struct PrefixCache<S = RandomState> {
    by_prefix: HashMap<Arc<Prefix>, (BlockId, PrefixId), S>,
    by_block: Vec<Option<Arc<Prefix>>>,
    next_id: u64,
    events: EventLog,
    /// Reused for every lookup, so that a lookup allocates nothing.
    probe: Prefix,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: u32) -> Self {
        Self::with_hasher(num_blocks, RandomState::new())
    }
}

impl<S: BuildHasher> PrefixCache<S> {
    fn with_hasher(num_blocks: u32, hasher: S) -> Self {
        Self {
            by_prefix: HashMap::with_hasher(hasher),
            by_block: (0..num_blocks).map(|_| None).collect(),
            next_id: 0,
            events: EventLog::default(),
            probe: Prefix {
                parent: None,
                key: Arc::default(),
                tokens: Vec::new(),
            },
        }
    }

    /// The block that holds `tokens` right after `parent`, computed under `key`.
    pub(crate) fn get(
        &mut self,
        parent: Option<PrefixId>,
        key: &Arc<CacheKey>,
        tokens: &[u32],
    ) -> Option<(BlockId, PrefixId)> {
        self.probe.parent = parent;
        self.probe.key.clone_from(key);
        self.probe.tokens.clear();
        self.probe.tokens.extend_from_slice(tokens);
        self.by_prefix.get(&self.probe).copied()
    }

    /// Records what `block` holds. The block must hold nothing yet, and no other block the same prefix.
    pub(crate) fn insert(
        &mut self,
        block: BlockId,
        parent: Option<PrefixId>,
        key: &Arc<CacheKey>,
        tokens: &[u32],
    ) -> PrefixId {
        let id = PrefixId(self.next_id);
        self.next_id += 1;
        let prefix = Arc::new(Prefix {
            parent,
            key: Arc::clone(key),
            tokens: tokens.to_vec(),
        });
        let before = self.by_block[block as usize].replace(Arc::clone(&prefix));
        debug_assert!(before.is_none(), "block {block} already holds a prefix");
        let before = self.by_prefix.insert(prefix, (block, id));
        debug_assert!(before.is_none(), "the prefix is already in another block");
        self.events.push(|| CacheEvent::Stored {
            id,
            parent,
            key: Arc::clone(key),
            tokens: tokens.to_vec(),
        });
        id
    }

    /// Forgets what `block` holds, because it is about to be overwritten.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let prefix = self.by_block[block as usize].take();
        if let Some((_, id)) = prefix.and_then(|prefix| self.by_prefix.remove(&prefix)) {
            self.events.push(|| CacheEvent::Removed { id });
        }
    }

    /// Keeps changes from now on.
    pub(crate) fn record_events(&mut self) {
        self.events.record();
    }

    /// The changes since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<CacheEvent> {
        self.events.take()
    }

    /// Replaces the changes by `before`, after which everything was removed.
    pub(crate) fn note_cleared(&mut self, before: Vec<CacheEvent>) {
        self.events.take();
        let all = before.into_iter().chain([CacheEvent::Cleared]);
        all.for_each(|event| self.events.push(|| event));
    }

    /// Whether `block` can be found.
    pub(crate) fn contains(&self, block: BlockId) -> bool {
        self.by_block[block as usize].is_some()
    }

    /// The key under which `block` can be found.
    pub(crate) fn key_of(&self, block: BlockId) -> Option<&CacheKey> {
        (self.by_block[block as usize].as_ref()).map(|prefix| prefix.key.as_ref())
    }

    /// The number of blocks that can be found.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_prefix.len()
    }

    /// Checks that both maps agree and that every cached block's parent is cached under the same key.
    ///
    /// # Panics
    /// If not.
    pub(crate) fn check_invariants(&self) {
        let ids: HashMap<PrefixId, &Arc<CacheKey>> = (self.by_prefix.iter())
            .map(|(prefix, &(_, id))| (id, &prefix.key))
            .collect();
        assert_eq!(ids.len(), self.by_prefix.len(), "a prefix id is used twice");
        for (prefix, &(block, id)) in &self.by_prefix {
            let held = self.by_block[block as usize].as_ref();
            assert!(
                held.is_some_and(|held| Arc::ptr_eq(held, prefix)),
                "{id:?} is said to be in block {block}, which holds {held:?}"
            );
            if let Some(parent) = prefix.parent {
                let parent_key = ids.get(&parent).copied();
                assert_eq!(
                    parent_key,
                    Some(&prefix.key),
                    "{id:?} outlived its parent {parent:?}"
                );
            }
        }
        let num_held = self.by_block.iter().flatten().count();
        assert_eq!(num_held, self.by_prefix.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_pool::AdapterKey;
    use std::hash::Hasher;

    /// Every key collides.
    #[derive(Default)]
    struct Constant;
    impl Hasher for Constant {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, _bytes: &[u8]) {}
    }

    fn key(id: u64) -> Arc<CacheKey> {
        let name = "a".to_owned();
        Arc::new(CacheKey {
            adapter: Some(AdapterKey { id, name }),
            salt: None,
        })
    }

    #[test]
    fn a_hash_collision_never_gives_another_block() {
        let hasher = std::hash::BuildHasherDefault::<Constant>::default();
        let mut cache = PrefixCache::with_hasher(8, hasher);
        let (a, b) = (key(0), key(1));
        let root_a = cache.insert(0, None, &a, &[1, 2]);
        let root_b = cache.insert(1, None, &b, &[1, 2]);
        let other = cache.insert(2, None, &a, &[2, 1]);
        let child = cache.insert(3, Some(root_a), &a, &[5, 6]);

        assert_eq!(cache.get(None, &a, &[1, 2]), Some((0, root_a)));
        assert_eq!(cache.get(None, &b, &[1, 2]), Some((1, root_b)));
        assert_eq!(cache.get(Some(root_a), &a, &[5, 6]), Some((3, child)));
        assert_eq!(cache.get(Some(other), &a, &[5, 6]), None, "other parent");
        assert_eq!(cache.get(Some(root_a), &b, &[5, 6]), None, "other key");
        assert_eq!(cache.get(Some(root_a), &a, &[5, 7]), None, "other tokens");
        assert_eq!(cache.get(None, &a, &[5, 6]), None, "no parent");
        cache.check_invariants();
    }

    #[test]
    fn a_parent_computed_again_does_not_revive_old_children() {
        let mut cache = PrefixCache::new(4);
        let key = key(0);
        let root = cache.insert(0, None, &key, &[1]);
        cache.insert(1, Some(root), &key, &[2]);
        cache.remove(0);
        let again = cache.insert(0, None, &key, &[1]);
        assert_ne!(root, again);
        assert_eq!(cache.get(Some(again), &key, &[2]), None);
    }

    #[test]
    fn adapter_and_salt_separate_equal_tokens() {
        let mut cache = PrefixCache::new(4);
        let base = Arc::new(CacheKey::default());
        let salted = Arc::new(CacheKey {
            adapter: None,
            salt: Some("a".to_owned()),
        });
        cache.insert(0, None, &base, &[1]);
        assert_eq!(cache.get(None, &salted, &[1]), None);
        assert_eq!(cache.get(None, &key(0), &[1]), None);
        let equal = Arc::new(CacheKey::default());
        assert!(cache.get(None, &equal, &[1]).is_some());
    }
}
