//! An engine that plays scripts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use server::engine::{
    AdapterError, AdapterInfo, EngineCommand, EngineOutput, EngineReceiver, EngineStats,
    FinishReason, GenerateRequest, OnTaken, SequenceError, SpeculationStats, Submission,
    TokenLogprobs,
};

use server::kv_events::KvEventCounts;

use super::model::IM_END;

/// What the engine does with a request.
pub(crate) enum Play {
    /// These tokens, then the end.
    Tokens(Vec<u32>, FinishReason),
    /// These tokens, then an end before the end.
    Fails(Vec<u32>, SequenceError),
    /// These tokens, then nothing until the client aborts.
    Hang(Vec<u32>),
    /// Nothing at all, and the sequence stays in the queue.
    Queue,
    /// These events and no `Finished`, as if the engine had died.
    Die(Vec<u32>),
}

/// The tokens of a text, then a stop at the end-of-sequence token.
pub(crate) fn says(text: &str) -> Play {
    Play::Tokens(bytes(text).chain([IM_END]).collect(), FinishReason::Stop)
}

pub(crate) fn bytes(text: &str) -> impl Iterator<Item = u32> {
    text.bytes().map(u32::from)
}

type Script = Box<dyn Fn(&GenerateRequest) -> Play + Send>;

/// What the engine saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) requests: Vec<GenerateRequest>,
    pub(crate) num_aborted: usize,
}

pub(super) struct FakeEngine {
    pub(super) receiver: EngineReceiver,
    pub(super) seen: Arc<Mutex<Seen>>,
    pub(super) script: Script,
    pub(super) open: HashMap<u64, Submission>,
}

impl FakeEngine {
    pub(super) fn run(mut self) {
        let mut adapters: Vec<AdapterInfo> = Vec::new();
        self.receiver.publish_stats(EngineStats {
            num_blocks: 8,
            num_free_blocks: 6,
            kv_cache_usage: 0.25,
            block_size: 16,
            speculation: Some(SpeculationStats {
                num_drafts: 7,
                num_draft_tokens: 20,
                num_accepted_tokens: 9,
                accepted_per_position: vec![6, 3],
            }),
            kv_events: Some(KvEventCounts {
                num_batches: 3,
                num_dropped: 1,
            }),
            ..EngineStats::default()
        });
        while let Some(command) = self.receiver.recv() {
            match command {
                EngineCommand::Submit(submission) => self.play(*submission),
                EngineCommand::Abort(id) | EngineCommand::Complete(id) => {
                    self.open.remove(&id);
                    self.seen.lock().unwrap().num_aborted += 1;
                }
                EngineCommand::LoadAdapter {
                    name,
                    path,
                    on_taken,
                    reply,
                    ..
                } => {
                    if on_taken == OnTaken::Replace {
                        adapters.retain(|adapter| adapter.name != name);
                    }
                    let result = if !path.exists() {
                        let reason = "no such folder".to_owned();
                        Err(AdapterError::NotFound { path, reason })
                    } else if adapters.iter().any(|adapter| adapter.name == name) {
                        Err(AdapterError::AlreadyLoaded { name })
                    } else {
                        adapters.push(AdapterInfo { name, path });
                        self.receiver.set_adapters(adapters.clone());
                        Ok(())
                    };
                    reply.send(result).unwrap();
                }
                EngineCommand::UnloadAdapter { name, reply } => {
                    let before = adapters.len();
                    adapters.retain(|adapter| adapter.name != name);
                    self.receiver.set_adapters(adapters.clone());
                    let removed = adapters.len() < before;
                    reply
                        .send(if removed {
                            Ok(())
                        } else {
                            Err(AdapterError::Unknown { name })
                        })
                        .unwrap();
                }
                EngineCommand::Shutdown => {}
            }
        }
    }

    fn play(&mut self, submission: Submission) {
        let request = &submission.request;
        self.seen.lock().unwrap().requests.push(request.clone());
        let fake = |id: u32, n: usize| TokenLogprobs {
            id,
            logprob: -0.25,
            top: [
                (id, -0.25),
                (0xf0, f32::NEG_INFINITY),
                (u32::from(b'z'), -4.0),
            ][..n.min(3)]
                .to_vec(),
        };
        if submission.pooling.is_some() {
            if matches!((self.script)(request), Play::Hang(_)) {
                self.open.insert(submission.id, submission);
                return;
            }
            let ids = [request.prompt.first(), request.prompt.last()];
            let [first, last] = ids.map(|id| *id.unwrap() as f32);
            submission.sink.send(EngineOutput::Pooled {
                values: vec![request.prompt.len() as f32, first, last, 1.0],
                num_cached_tokens: 1,
            });
            let reason = FinishReason::Length;
            submission.sink.send(EngineOutput::Finished { reason });
            return;
        }
        let play = (self.script)(request);
        if let Some(n) = request.prompt_logprobs {
            let logprobs = request
                .prompt
                .iter()
                .enumerate()
                .map(|(i, &id)| (i > 0).then(|| fake(id, n)));
            submission
                .sink
                .send(EngineOutput::PromptLogprobs(logprobs.collect()));
        }
        let (tokens, end, stays) = match play {
            Play::Tokens(tokens, reason) => {
                (tokens, Some(EngineOutput::Finished { reason }), false)
            }
            Play::Fails(tokens, error) => (tokens, Some(EngineOutput::Failed(error)), false),
            Play::Hang(tokens) => (tokens, None, true),
            Play::Queue => {
                self.open.insert(submission.id, submission);
                return;
            }
            Play::Die(tokens) => (tokens, None, false),
        };
        for id in tokens {
            let logprobs = request.sampling.logprobs.map(|n| fake(id, n));
            submission.sink.send(EngineOutput::Token {
                id,
                logprobs,
                num_cached_tokens: 2,
            });
        }
        if let Some(end) = end {
            submission.sink.send(end);
        }
        if stays {
            self.open.insert(submission.id, submission);
        }
    }
}
