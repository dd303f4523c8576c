//! The two ends of the channel between the HTTP tasks and the engine thread.
//!
//! [`channel`] makes an [`EngineHandle`], which is cloned into every HTTP task, and an [`EngineReceiver`], which the engine
//! thread owns. Ownership releases resources: dropping an [`OutputStream`] aborts its sequence, dropping an [`OutputSink`]
//! counts the sequence as done, dropping a [`QueuePermit`] frees a place in the queue, dropping the receiver marks the engine
//! as dead. Commands travel over a `std` channel, so that an idle engine thread sleeps in [`EngineReceiver::recv`].

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use model_qwen::PoolingType;
use tokio::sync::mpsc as async_mpsc;

use super::error::SubmitError;
use super::receiver::{
    EngineCommand, EngineReceiver, OutputSink, QueuePermit, RequestId, Submission,
};
use super::request::{EngineOutput, GenerateRequest, PoolRequest};
use super::request_metrics::RequestMetrics;
use super::shared::Shared;
use super::stats::{AdapterInfo, EngineLimits, EngineStats};
use crate::traces::RequestTrace;

/// The client's end of one sequence. Dropping it before `Finished` or `Failed` aborts the sequence.
#[derive(Debug)]
pub struct OutputStream {
    id: RequestId,
    outputs: async_mpsc::UnboundedReceiver<EngineOutput>,
    commands: Sender<EngineCommand>,
    finished: bool,
    complete: bool,
}

impl OutputStream {
    /// Ends the sequence, whose text is complete without further tokens: it is no abort.
    pub fn complete(mut self) {
        self.complete = true;
    }

    /// The next event; `None` after `Finished` or `Failed`, or if the engine died.
    pub async fn next(&mut self) -> Option<EngineOutput> {
        let output = self.outputs.recv().await;
        self.finished |= matches!(
            output,
            None | Some(EngineOutput::Finished { .. } | EngineOutput::Failed(_))
        );
        output
    }
}

impl Drop for OutputStream {
    fn drop(&mut self) {
        if !self.finished {
            let command = match self.complete {
                true => EngineCommand::Complete(self.id),
                false => EngineCommand::Abort(self.id),
            };
            // A dead engine has nothing to abort.
            let _ = self.commands.send(command);
        }
    }
}

/// The HTTP side's end of the engine; clones are cheap.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(super) commands: Sender<EngineCommand>,
    pub(super) shared: Arc<Shared>,
}

impl EngineHandle {
    /// Queues a sequence and returns its outputs.
    ///
    /// # Errors
    /// [`SubmitError`] if the request breaks a limit, the queue is full, or the engine takes no more.
    pub fn submit(&self, request: GenerateRequest) -> Result<OutputStream, SubmitError> {
        if let Some((_, why)) = self.shared.limits.pooling {
            return Err(SubmitError::NoText { why });
        }
        self.check(
            &request.prompt,
            request.adapter.as_deref(),
            request.max_tokens,
        )?;
        let permit = self.queue_permit()?;
        self.send(request, None, permit)
    }

    /// Queues a text to make a vector of. Its outputs are `Pooled` and `Finished`.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn pool(&self, request: &PoolRequest) -> Result<OutputStream, SubmitError> {
        let Some((pooling, _)) = self.shared.limits.pooling else {
            return Err(SubmitError::NoPooling);
        };
        self.check(&request.prompt, request.adapter.as_deref(), 0)?;
        let permit = self.queue_permit()?;
        self.send(request.clone().generate(), Some(pooling), permit)
    }

    fn send(
        &self,
        request: GenerateRequest,
        pooling: Option<PoolingType>,
        permit: QueuePermit,
    ) -> Result<OutputStream, SubmitError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (outputs, receiver) = async_mpsc::unbounded_channel();
        self.shared.num_active.send_modify(|count| *count += 1);
        let sink = OutputSink {
            outputs,
            shared: Arc::clone(&self.shared),
        };
        let submission = Submission {
            id,
            request,
            pooling,
            sink,
            trace: RequestTrace::current(),
            submitted: Instant::now(),
            permit,
        };
        self.commands
            .send(EngineCommand::Submit(Box::new(submission)))
            .map_err(|_| SubmitError::Stopped)?;
        Ok(OutputStream {
            id,
            outputs: receiver,
            commands: self.commands.clone(),
            finished: false,
            complete: false,
        })
    }

    fn check(
        &self,
        prompt: &[u32],
        adapter: Option<&str>,
        max_tokens: usize,
    ) -> Result<(), SubmitError> {
        let EngineLimits {
            max_model_len,
            vocab_size,
            ..
        } = self.shared.limits;
        // First, as a drained engine is both.
        if self.is_shutting_down() {
            return Err(SubmitError::ShuttingDown);
        }
        if !self.is_alive() {
            return Err(SubmitError::Stopped);
        }
        if prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        let prompt_len = prompt.len();
        if prompt_len.saturating_add(max_tokens) > max_model_len {
            return Err(SubmitError::PromptTooLong {
                prompt_len,
                max_tokens,
                max_model_len,
            });
        }
        if let Some(&id) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(SubmitError::UnknownToken { id, vocab_size });
        }
        match adapter {
            Some(name) if !self.has_adapter(name) => {
                let name = name.to_owned();
                Err(SubmitError::UnknownAdapter { name })
            }
            _ => Ok(()),
        }
    }

    fn queue_permit(&self) -> Result<QueuePermit, SubmitError> {
        let max_num_queued_reqs = self.shared.limits.max_num_queued_reqs;
        self.shared
            .num_queued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |queued| {
                (queued < max_num_queued_reqs).then_some(queued + 1)
            })
            .map(|_| QueuePermit(Arc::clone(&self.shared)))
            .map_err(|_| SubmitError::QueueFull {
                max_num_queued_reqs,
            })
    }

    /// The loaded adapters, in the order of loading.
    pub fn adapters(&self) -> Vec<AdapterInfo> {
        self.shared
            .adapters
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn has_adapter(&self, name: &str) -> bool {
        let adapters = self
            .shared
            .adapters
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        adapters.iter().any(|adapter| adapter.name == name)
    }

    /// What the engine has counted.
    pub fn request_metrics(&self) -> &RequestMetrics {
        &self.shared.requests
    }

    /// The latest published snapshot.
    pub fn stats(&self) -> EngineStats {
        self.shared.stats().clone()
    }

    /// Longest prompt plus output, in tokens.
    pub fn max_model_len(&self) -> usize {
        self.shared.limits.max_model_len
    }

    /// Number of tokens the model knows.
    pub fn vocab_size(&self) -> usize {
        self.shared.limits.vocab_size
    }

    /// Most sequences that may wait.
    pub fn max_num_queued_reqs(&self) -> usize {
        self.shared.limits.max_num_queued_reqs
    }

    /// Whether a sequence is waiting or being computed.
    pub fn is_busy(&self) -> bool {
        *self.shared.num_active.borrow() > 0
    }

    /// Sequences that wait to be scheduled for the first time.
    pub fn num_queued(&self) -> usize {
        self.shared.num_queued.load(Ordering::Acquire)
    }

    /// Whether the engine thread runs.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Whether [`Self::begin_shutdown`] was called.
    pub fn is_shutting_down(&self) -> bool {
        self.shared.shutting_down.load(Ordering::Acquire)
    }

    /// Refuses further sequences; those accepted go on.
    pub fn begin_shutdown(&self) {
        if !self.shared.shutting_down.swap(true, Ordering::AcqRel) {
            // A dead engine needs no telling.
            let _ = self.commands.send(EngineCommand::Shutdown);
        }
    }

    /// Waits until no accepted sequence is left.
    pub async fn drained(&self) {
        let mut num_active = self.shared.num_active.subscribe();
        // The sender lives in `shared`, so waiting cannot fail.
        let _ = num_active.wait_for(|&count| count == 0).await;
    }
}

/// Makes the two ends of an engine.
pub fn channel(limits: EngineLimits) -> (EngineHandle, EngineReceiver) {
    let (commands, receiver) = mpsc::channel();
    let shared = Arc::new(Shared::new(limits));
    let handle = EngineHandle {
        commands,
        shared: Arc::clone(&shared),
    };
    (
        handle,
        EngineReceiver {
            commands: receiver,
            shared,
        },
    )
}
