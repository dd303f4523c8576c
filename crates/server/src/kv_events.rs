//! Changes of the prefix cache, published over ZeroMQ in vLLM's format, so that routers know which server has which prefix.
//!
//! The engine's thread gives names to the blocks and puts each batch into a bounded queue; it never waits. A thread of its own
//! (`publisher`) writes the batches (`wire`) and sends them to the subscribers (`zmtp`). Where a queue is full, a batch is
//! dropped and counted, and its number is missing. What a subscriber's queue has dropped may be asked for at the replay endpoint;
//! what the publisher's queue has dropped is lost.

mod batch;
mod blocks;
mod peer;
mod publisher;
mod replay;
mod wire;
mod zmtp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kv_paging::CacheEvent;
use tokio::sync::mpsc;

use crate::config::KvEventsConfig;
use batch::Batch;
use blocks::Blocks;

pub use publisher::ListenError;

/// What has become of batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvEventCounts {
    /// All of them.
    pub num_batches: u64,
    /// How often a full queue had no room for one: the publisher's queue, or a subscriber's.
    pub num_dropped: u64,
}

/// The engine's end.
#[derive(Debug)]
pub struct KvEvents {
    blocks: Blocks,
    next: u64,
    queue: mpsc::Sender<Batch>,
    num_dropped: Arc<AtomicU64>,
}

impl KvEvents {
    /// Starts to listen, on a thread that ends with this value.
    ///
    /// # Errors
    /// If an address cannot be listened on, or there is no thread.
    pub fn start(config: &KvEventsConfig, block_size: usize) -> Result<Self, ListenError> {
        let (queue, batches) = mpsc::channel(config.max_queue_size);
        let num_dropped = Arc::<AtomicU64>::default();
        publisher::start(config, batches, Arc::clone(&num_dropped))?;
        Ok(Self {
            blocks: Blocks::new(block_size),
            next: 0,
            queue,
            num_dropped,
        })
    }

    /// Publishes changes of the prefix cache, all of them and in order.
    pub fn publish(&mut self, events: Vec<CacheEvent>) {
        let events = self.blocks.name(events);
        if events.is_empty() {
            return;
        }
        let batch = Batch {
            number: self.next,
            time: unix_seconds(),
            events,
        };
        self.next += 1;
        if self.queue.try_send(batch).is_err() {
            self.num_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What has become of the batches.
    pub fn counts(&self) -> KvEventCounts {
        KvEventCounts {
            num_batches: self.next,
            num_dropped: self.num_dropped.load(Ordering::Relaxed),
        }
    }
}

fn unix_seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
