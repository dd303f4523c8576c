//! Batches that a subscriber has missed.

use std::collections::VecDeque;
use std::io::Result;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::peer::GREETING_TIMEOUT;
use super::zmtp::{handshake, message, read_message, write_all};
use crate::config::EventFormat;

/// Longest wait for a peer to take a message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of the message after the last one: -1.
const END: [u8; 8] = [0xff; 8];

/// The last batches, oldest first.
pub(super) struct Replay {
    kept: Mutex<VecDeque<(u64, Arc<[u8]>)>>,
    max_num: usize,
    topic: Vec<u8>,
    format: EventFormat,
}

impl Replay {
    pub(super) fn new(max_num: usize, topic: &[u8], format: EventFormat) -> Self {
        Self {
            kept: Mutex::default(),
            max_num,
            topic: topic.to_owned(),
            format,
        }
    }

    /// Keeps a batch.
    pub(super) fn keep(&self, number: u64, payload: Arc<[u8]>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == self.max_num {
            kept.pop_front();
        }
        kept.push_back((number, payload));
    }

    /// The batches from number `first` on.
    fn since(&self, first: u64) -> Vec<(u64, Arc<[u8]>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = kept.iter().filter(|(number, _)| *number >= first);
        missed.cloned().collect()
    }

    /// Answers a peer until it is gone: it sends the first number that it lacks, after an empty frame.
    pub(super) async fn serve(&self, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let peers = ["REQ", "DEALER", "ROUTER"];
        timeout(GREETING_TIMEOUT, handshake(&stream, "ROUTER", &peers)).await??;
        loop {
            let request = read_message(&stream).await?;
            let [delimiter, number] = request.as_slice() else {
                tracing::debug!(frames = request.len(), "a replay request with other frames");
                continue;
            };
            let Some(first) = from_big_endian(number).filter(|_| delimiter.is_empty()) else {
                tracing::debug!(?number, "a replay request without a number");
                continue;
            };
            for (number, payload) in self.since(first) {
                let answer = self.answer(&self.topic, number.to_be_bytes(), &payload);
                timeout(WRITE_TIMEOUT, write_all(&stream, &answer)).await??;
            }
            let end = self.answer(&[], END, &[]);
            timeout(WRITE_TIMEOUT, write_all(&stream, &end)).await??;
        }
    }

    /// The topic is part of it as long as events are maps, as in vLLM.
    fn answer(&self, topic: &[u8], number: [u8; 8], payload: &[u8]) -> Vec<u8> {
        match self.format {
            EventFormat::Map => message(&[&[], topic, &number, payload]),
            EventFormat::Array => message(&[&[], &number, payload]),
        }
    }
}

fn from_big_endian(bytes: &[u8]) -> Option<u64> {
    let start = 8_usize.checked_sub(bytes.len())?;
    let mut number = [0; 8];
    number[start..].copy_from_slice(bytes);
    Some(u64::from_be_bytes(number))
}
