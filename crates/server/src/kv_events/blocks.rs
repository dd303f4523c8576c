//! Names of blocks that are the same in every process: a hash of all tokens up to the end of the block.

use std::collections::HashMap;

use kv_paging::{CacheEvent, CacheKey, PrefixId};
use sha2::{Digest as _, Sha256};

/// A change of the prefix cache, as a subscriber sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Stored(Stored),
    Removed { hashes: Vec<u64> },
    Cleared,
}

/// Blocks that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) hashes: Vec<u64>,
    pub(super) parent: Option<u64>,
    pub(super) tokens: Vec<u32>,
    pub(super) block_size: usize,
    pub(super) lora_id: Option<u64>,
    pub(super) lora_name: Option<String>,
    pub(super) salt: Option<String>,
}

/// The names of the blocks that are stored now.
#[derive(Debug)]
pub(super) struct Blocks {
    block_size: usize,
    hashes: HashMap<PrefixId, u64>,
}

impl Blocks {
    pub(super) fn new(block_size: usize) -> Self {
        Self {
            block_size,
            hashes: HashMap::new(),
        }
    }

    /// The same changes with names. Blocks that are stored one after the other are one event.
    pub(super) fn name(&mut self, changes: Vec<CacheEvent>) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::with_capacity(changes.len());
        let mut last: Option<PrefixId> = None;
        for change in changes {
            let before = last.take();
            match change {
                CacheEvent::Stored {
                    id,
                    parent,
                    key,
                    tokens,
                } => {
                    let of_parent = parent.and_then(|parent| self.hashes.get(&parent).copied());
                    let hash = hash(of_parent, &key, &tokens);
                    self.hashes.insert(id, hash);
                    last = Some(id);
                    match events.last_mut() {
                        Some(Event::Stored(stored)) if parent.is_some() && parent == before => {
                            stored.hashes.push(hash);
                            stored.tokens.extend(tokens);
                        }
                        _ => events.push(Event::Stored(self.stored(hash, of_parent, &key, tokens))),
                    }
                }
                CacheEvent::Removed { id } => {
                    let Some(hash) = self.hashes.remove(&id) else {
                        continue;
                    };
                    match events.last_mut() {
                        Some(Event::Removed { hashes }) => hashes.push(hash),
                        _ => events.push(Event::Removed { hashes: vec![hash] }),
                    }
                }
                CacheEvent::Cleared => {
                    self.hashes.clear();
                    events.push(Event::Cleared);
                }
            }
        }
        events
    }

    fn stored(&self, hash: u64, parent: Option<u64>, key: &CacheKey, tokens: Vec<u32>) -> Stored {
        let adapter = key.adapter.as_ref();
        Stored {
            hashes: vec![hash],
            parent,
            tokens,
            block_size: self.block_size,
            lora_id: adapter.map(|adapter| adapter.id),
            lora_name: adapter.map(|adapter| adapter.name.clone()),
            salt: key.salt.clone(),
        }
    }
}

/// The name of the block that holds `tokens` after the block `parent`.
fn hash(parent: Option<u64>, key: &CacheKey, tokens: &[u32]) -> u64 {
    let mut hasher = Sha256::new();
    let texts = [
        key.adapter.as_ref().map(|adapter| adapter.name.as_str()),
        key.salt.as_deref(),
    ];
    hasher.update([u8::from(parent.is_some())]);
    hasher.update(parent.unwrap_or_default().to_be_bytes());
    for text in texts {
        hasher.update([u8::from(text.is_some())]);
        let text = text.unwrap_or_default();
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    }
    for token in tokens {
        hasher.update(token.to_be_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hasher.finalize());
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}
