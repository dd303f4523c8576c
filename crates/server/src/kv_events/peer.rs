//! Subscribers: what each of them wants, and the messages that wait for it.

use std::collections::HashMap;
use std::io::Result;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::zmtp::{handshake, read_message, write_all};

/// Longest wait for a peer's greeting.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Most topics of a subscriber.
const MAX_TOPICS: usize = 64;
const SUBSCRIBE: u8 = 1;
const CANCEL: u8 = 0;

/// Everybody who listens.
pub(super) struct Subscribers {
    all: Mutex<HashMap<u64, Subscriber>>,
    next: AtomicU64,
    /// Messages that wait for one of them.
    hwm: usize,
    num_dropped: Arc<AtomicU64>,
}

struct Subscriber {
    topics: Vec<Vec<u8>>,
    messages: mpsc::Sender<Arc<[u8]>>,
}

impl Subscribers {
    pub(super) fn new(hwm: usize, num_dropped: Arc<AtomicU64>) -> Self {
        Self {
            all: Mutex::default(),
            next: AtomicU64::new(0),
            hwm,
            num_dropped,
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<u64, Subscriber>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a message to all who want its topic, as far as they have room for it.
    pub(super) fn send(&self, topic: &[u8], message: &Arc<[u8]>) {
        for subscriber in self.all().values() {
            let wants = |wanted: &Vec<u8>| topic.starts_with(wanted);
            if subscriber.topics.iter().any(wants)
                && subscriber.messages.try_send(Arc::clone(message)).is_err()
            {
                self.num_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Serves a subscriber until it is gone.
    pub(super) async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        timeout(
            GREETING_TIMEOUT,
            handshake(&stream, "PUB", &["SUB", "XSUB"]),
        )
        .await??;
        let (messages, mut waiting) = mpsc::channel::<Arc<[u8]>>(self.hwm);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let subscriber = Subscriber {
            topics: Vec::new(),
            messages,
        };
        self.all().insert(id, subscriber);
        let writes = async {
            while let Some(message) = waiting.recv().await {
                write_all(&stream, &message).await?;
            }
            Ok(())
        };
        let reads = async {
            loop {
                let message = read_message(&stream).await?;
                if let Some(subscriber) = self.all().get_mut(&id) {
                    subscriber.obey(&message);
                }
            }
        };
        let end = tokio::select! {
            end = writes => end,
            end = reads => end,
        };
        self.all().remove(&id);
        end
    }
}

impl Subscriber {
    /// Adds or removes a topic.
    fn obey(&mut self, message: &[Vec<u8>]) {
        let Some((&what, topic)) = message.first().and_then(|frame| frame.split_first()) else {
            return;
        };
        match what {
            SUBSCRIBE if self.topics.len() < MAX_TOPICS => self.topics.push(topic.to_owned()),
            CANCEL => {
                let place = self.topics.iter().position(|wanted| wanted == topic);
                if let Some(place) = place {
                    self.topics.swap_remove(place);
                }
            }
            _ => {}
        }
    }
}
