//! What changes in the prefix cache, for whoever keeps track of it from outside.

use std::sync::Arc;

use super::ids::{CacheKey, PrefixId};

/// A change of the prefix cache. Applied in order, the events give exactly the prefixes that can be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheEvent {
    /// A full block can be found from now on.
    Stored {
        /// The prefix that ends with the block.
        id: PrefixId,
        /// The prefix before it; it was stored earlier.
        parent: Option<PrefixId>,
        /// What its keys and values depend on besides the tokens.
        key: Arc<CacheKey>,
        /// The block's own tokens.
        tokens: Vec<u32>,
    },
    /// A block cannot be found any more: it is about to be overwritten, or its key was forgotten.
    Removed {
        /// The prefix that ended with it.
        id: PrefixId,
    },
    /// Nothing can be found any more.
    Cleared,
}

/// The changes since they were last taken; nothing is kept unless somebody asked for it.
#[derive(Debug, Default)]
pub(super) struct EventLog(Option<Vec<CacheEvent>>);

impl EventLog {
    /// Keeps changes from now on.
    pub(super) fn record(&mut self) {
        self.0.get_or_insert_default();
    }

    /// Adds a change.
    pub(super) fn push(&mut self, event: impl FnOnce() -> CacheEvent) {
        if let Some(events) = &mut self.0 {
            events.push(event());
        }
    }

    /// The changes since the last call.
    pub(super) fn take(&mut self) -> Vec<CacheEvent> {
        self.0.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::block_pool::{AdapterKey, BlockId, BlockPool};

    /// Parent, key and tokens.
    type Prefix = (Option<PrefixId>, Arc<CacheKey>, Vec<u32>);

    /// What somebody knows who sees nothing but the events.
    #[derive(Default)]
    struct Replica(BTreeMap<PrefixId, Prefix>);

    impl Replica {
        fn apply(&mut self, events: Vec<CacheEvent>) {
            for event in events {
                match event {
                    CacheEvent::Stored {
                        id,
                        parent,
                        key,
                        tokens,
                    } => {
                        assert!(parent.is_none_or(|parent| self.0.contains_key(&parent)));
                        let before = self.0.insert(id, (parent, key, tokens));
                        assert!(before.is_none(), "{id:?} is stored twice");
                    }
                    CacheEvent::Removed { id } => {
                        assert!(self.0.remove(&id).is_some(), "{id:?} was not stored");
                    }
                    CacheEvent::Cleared => self.0.clear(),
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        /// Computes a text of so many blocks under a key; each block has one token.
        Compute(Vec<u32>, bool),
        Finish(usize),
        Forget(bool),
        Reset,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let text = prop::collection::vec(0u32..3, 1..6);
        prop::collection::vec(
            prop_oneof![
                8 => (text, any::<bool>()).prop_map(|(text, a)| Op::Compute(text, a)),
                6 => (0usize..4).prop_map(Op::Finish),
                1 => any::<bool>().prop_map(Op::Forget),
                1 => Just(Op::Reset),
            ],
            1..60,
        )
    }

    fn compute(pool: &mut BlockPool, key: &Arc<CacheKey>, text: &[u32]) -> Option<Vec<BlockId>> {
        let found = pool.longest_prefix(key, text, 1);
        let mut held = found.blocks;
        held.iter().for_each(|&block| pool.retain(block));
        let mut parent = found.tail;
        for token in &text[held.len()..] {
            let Some(block) = pool.allocate() else {
                held.iter().rev().for_each(|&block| pool.release(block));
                return None;
            };
            let (block, id) = pool.cache(block, parent, key, &[*token]);
            held.push(block);
            parent = Some(id);
        }
        Some(held)
    }

    proptest! {
        #[test]
        fn events_tell_what_can_be_found(ops in ops()) {
            let name = "a".to_owned();
            let keys = [None, Some(AdapterKey { id: 0, name })].map(|adapter| {
                Arc::new(CacheKey { adapter, salt: None })
            });
            let mut pool = BlockPool::new(12);
            pool.record_events();
            let (mut replica, mut running) = (Replica::default(), Vec::new());
            for op in ops {
                match op {
                    Op::Compute(text, a) => {
                        running.extend(compute(&mut pool, &keys[usize::from(a)], &text));
                    }
                    Op::Finish(index) if index < running.len() => {
                        let held: Vec<BlockId> = running.remove(index);
                        held.iter().rev().for_each(|&block| pool.release(block));
                    }
                    Op::Finish(_) => {}
                    Op::Forget(a) => {
                        // A key is forgotten where nobody computes under it any more, as in the scheduler.
                        if running.is_empty() {
                            pool.forget(|key| *key == *keys[usize::from(a)]);
                        }
                    }
                    Op::Reset => {
                        if running.is_empty() {
                            pool.clear();
                        }
                    }
                }
                replica.apply(pool.take_events());
                prop_assert_eq!(replica.0.len(), pool.num_cached());
                for (id, (parent, key, tokens)) in &replica.0 {
                    let found = pool.prefixes.get(*parent, key, tokens);
                    prop_assert_eq!(found.map(|(_, id)| id), Some(*id));
                }
            }
        }
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let (mut pool, key) = (BlockPool::new(2), Arc::default());
        assert!(compute(&mut pool, &key, &[1, 2]).is_some());
        assert!(pool.take_events().is_empty());
        pool.record_events();
        pool.clear();
        assert_eq!(pool.take_events(), [CacheEvent::Cleared]);
        assert!(pool.take_events().is_empty());
    }
}
