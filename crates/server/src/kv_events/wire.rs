//! Batches in MessagePack, with the fields of vLLM's `vllm/distributed/kv_events.py`.

use rmp_serde::Serializer;
use rmp_serde::encode::Error;
use serde::Serialize;

use super::batch::Batch;
use super::blocks::{Event, Stored};
use crate::config::EventFormat;

/// Where the blocks are: vLLM's word for the cache that the engine itself reads, whatever the device.
const MEDIUM: &str = "GPU";
/// All layers of these models have one kind of cache, the first one.
const GROUP: u32 = 0;
const KIND: &str = "full_attention";
/// A server is one replica.
const DATA_PARALLEL_RANK: u32 = 0;

/// Adapter and salt, as far as there are some.
type ExtraKeys<'a> = Vec<&'a str>;

/// An event as a map.
#[derive(Serialize)]
#[serde(tag = "type")]
enum Map<'a> {
    BlockStored {
        block_hashes: &'a [u64],
        parent_block_hash: Option<u64>,
        token_ids: &'a [u32],
        block_size: usize,
        lora_id: Option<u64>,
        medium: &'a str,
        lora_name: Option<&'a str>,
        extra_keys: Vec<Option<ExtraKeys<'a>>>,
        group_idx: u32,
        kv_cache_spec_kind: &'a str,
    },
    BlockRemoved {
        block_hashes: &'a [u64],
        medium: &'a str,
        group_idx: u32,
    },
    AllBlocksCleared,
}

/// An event as an array, whose first element is its type.
#[derive(Serialize)]
#[serde(untagged)]
enum Array<'a> {
    /// Type, hashes, parent, tokens, block size, number of the adapter, medium, name of the adapter.
    Stored(
        &'a str,
        &'a [u64],
        Option<u64>,
        &'a [u32],
        usize,
        Option<u64>,
        &'a str,
        Option<&'a str>,
    ),
    /// Type, hashes, medium.
    Removed(&'a str, &'a [u64], &'a str),
    /// Type.
    Cleared([&'a str; 1]),
}

/// The message of a batch.
///
/// # Errors
/// As `rmp_serde` says.
pub(super) fn encode(batch: &Batch, format: EventFormat) -> Result<Vec<u8>, Error> {
    match format {
        EventFormat::Map => write(batch, batch.events.iter().map(map).collect()),
        EventFormat::Array => write(batch, batch.events.iter().map(array).collect()),
    }
}

fn write<E: Serialize>(batch: &Batch, events: Vec<E>) -> Result<Vec<u8>, Error> {
    let mut message = Vec::new();
    let mut serializer = Serializer::new(&mut message).with_struct_map();
    (batch.time, events, DATA_PARALLEL_RANK).serialize(&mut serializer)?;
    Ok(message)
}

fn map(event: &Event) -> Map<'_> {
    match event {
        Event::Stored(stored) => Map::BlockStored {
            block_hashes: &stored.hashes,
            parent_block_hash: stored.parent,
            token_ids: &stored.tokens,
            block_size: stored.block_size,
            lora_id: stored.lora_id,
            medium: MEDIUM,
            lora_name: stored.lora_name.as_deref(),
            extra_keys: vec![extra_keys(stored); stored.hashes.len()],
            group_idx: GROUP,
            kv_cache_spec_kind: KIND,
        },
        Event::Removed { hashes } => Map::BlockRemoved {
            block_hashes: hashes,
            medium: MEDIUM,
            group_idx: GROUP,
        },
        Event::Cleared => Map::AllBlocksCleared,
    }
}

fn array(event: &Event) -> Array<'_> {
    match event {
        Event::Stored(stored) => Array::Stored(
            "BlockStored",
            &stored.hashes,
            stored.parent,
            &stored.tokens,
            stored.block_size,
            stored.lora_id,
            MEDIUM,
            stored.lora_name.as_deref(),
        ),
        Event::Removed { hashes } => Array::Removed("BlockRemoved", hashes, MEDIUM),
        Event::Cleared => Array::Cleared(["AllBlocksCleared"]),
    }
}

fn extra_keys(stored: &Stored) -> Option<ExtraKeys<'_>> {
    let keys = [stored.lora_name.as_deref(), stored.salt.as_deref()];
    let keys: ExtraKeys<'_> = keys.into_iter().flatten().collect();
    (!keys.is_empty()).then_some(keys)
}
