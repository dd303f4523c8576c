//! The engine thread's end of the channel: what it receives and where it sends outputs.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use lora_4bit::peft::LoraAdapter;
use model_qwen::PoolingType;
use tokio::sync::{mpsc as async_mpsc, oneshot};

use super::error::AdapterError;
use super::request::{EngineOutput, GenerateRequest};
use super::request_metrics::RequestMetrics;
use super::shared::Shared;
use super::stats::{AdapterInfo, EngineStats};
use crate::traces::RequestTrace;

/// Names one submitted sequence for the life of the process.
pub type RequestId = u64;

/// What the engine thread receives.
#[derive(Debug)]
pub enum EngineCommand {
    /// A new sequence.
    Submit(Box<Submission>),
    /// Its client is gone; free its blocks. The id may be finished already.
    Abort(RequestId),
    /// The same for a sequence whose text is complete, as after a stop string.
    Complete(RequestId),
    /// Load a PEFT folder, call [`EngineReceiver::set_adapters`], then answer.
    LoadAdapter {
        /// Name for requests.
        name: String,
        /// PEFT folder.
        path: PathBuf,
        /// What the folder holds: it was read elsewhere, so that a slow disk keeps no request waiting.
        files: Box<Result<LoraAdapter, AdapterError>>,
        /// What happens if the name is taken.
        on_taken: OnTaken,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), AdapterError>>,
    },
    /// Let no further sequence use an adapter, call [`EngineReceiver::set_adapters`], then answer.
    UnloadAdapter {
        /// Its name.
        name: String,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<(), AdapterError>>,
    },
    /// No further `Submit` follows: finish what is there, then the thread may end.
    Shutdown,
}

/// What happens to an adapter whose name another one is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTaken {
    /// It stays; the new one is refused.
    Refuse,
    /// It makes room. Sequences that use it finish with it.
    Replace,
}

/// A sequence on its way to the engine.
#[derive(Debug)]
pub struct Submission {
    /// Its id, for [`EngineCommand::Abort`].
    pub id: RequestId,
    /// What to generate; already checked against `EngineLimits`.
    pub request: GenerateRequest,
    /// Make one vector of the prompt instead.
    pub pooling: Option<PoolingType>,
    /// Where its outputs go; dropped when the sequence is over.
    pub sink: OutputSink,
    /// The trace of its request, if that has one.
    pub trace: Option<Arc<RequestTrace>>,
    /// When it was submitted.
    pub submitted: Instant,
    /// Its place in the queue; the engine drops it when the sequence is first scheduled.
    pub permit: QueuePermit,
}

/// A place in the queue of sequences that have not been scheduled yet; dropping it frees the place.
#[derive(Debug)]
pub struct QueuePermit(pub(super) Arc<Shared>);

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.0.num_queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The engine's end of one sequence's output channel.
#[derive(Debug)]
pub struct OutputSink {
    pub(super) outputs: async_mpsc::UnboundedSender<EngineOutput>,
    pub(super) shared: Arc<Shared>,
}

impl OutputSink {
    /// Sends one event; `false` if the client is gone.
    pub fn send(&self, output: EngineOutput) -> bool {
        self.outputs.send(output).is_ok()
    }
}

impl Drop for OutputSink {
    fn drop(&mut self) {
        self.shared.num_active.send_modify(|count| *count -= 1);
    }
}

/// The engine thread's end. Dropping it (also by a panic) marks the engine as dead.
#[derive(Debug)]
pub struct EngineReceiver {
    pub(super) commands: Receiver<EngineCommand>,
    pub(super) shared: Arc<Shared>,
}

impl EngineReceiver {
    /// Sleeps until a command arrives; `None` once every handle is gone.
    pub fn recv(&self) -> Option<EngineCommand> {
        self.commands.recv().ok()
    }

    /// A command if one waits.
    ///
    /// # Errors
    /// `Empty` if none waits, `Disconnected` once every handle is gone.
    pub fn try_recv(&self) -> Result<EngineCommand, TryRecvError> {
        self.commands.try_recv()
    }

    /// Where the engine counts what it has done.
    pub fn request_metrics(&self) -> &RequestMetrics {
        &self.shared.requests
    }

    /// Whether sequences become vectors instead of text.
    pub fn pools(&self) -> bool {
        self.shared.limits.pooling.is_some()
    }

    /// Publishes a snapshot for `/metrics`.
    pub fn publish_stats(&self, stats: EngineStats) {
        *self.shared.stats() = stats;
    }

    /// Publishes the loaded adapters; requests may name them from now on.
    pub fn set_adapters(&self, adapters: Vec<AdapterInfo>) {
        *self
            .shared
            .adapters
            .write()
            .unwrap_or_else(PoisonError::into_inner) = adapters;
    }
}

impl Drop for EngineReceiver {
    fn drop(&mut self) {
        self.shared.alive.store(false, Ordering::Release);
    }
}
