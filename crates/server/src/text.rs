//! Text in, text out: the engine without HTTP, for programs that use this crate as a library.

mod request;

use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

use model_qwen::{GrammarError, RenderOptions, SamplingError, TemplateError, TokenizerError};

use crate::deltas::Deltas;
use crate::engine::{
    EngineHandle, FinishReason, GenerateRequest, ModelInfo, SequenceError, SubmitError,
    TokenLogprobs,
};
use crate::grammars::Grammars;
use crate::postprocess::{Delta, Postprocessor};
use crate::protocol::sampling::TextOptions;

pub use request::{Prompt, TextRequest};

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum TextError {
    /// The template, or messages that it refuses.
    Template(#[from] TemplateError),
    /// Messages for a base model.
    #[error(
        "messages: the model has no chat template, as base models have none: send a text, or set a template"
    )]
    NoTemplate,
    /// A text that cannot be made tokens.
    Tokenizer(#[from] TokenizerError),
    /// A sampling parameter.
    Sampling(#[from] SamplingError),
    /// A grammar that can't be used.
    #[error("grammar: {0}")]
    Grammar(#[from] GrammarError),
    /// A field of the request.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What was given.
        found: String,
    },
    /// The engine does not take the request.
    Submit(#[from] SubmitError),
    /// The engine did not finish the text.
    Failed(#[from] SequenceError),
}

/// A generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The text, without stop strings and special tokens.
    pub text: String,
    /// What ended it.
    pub finish_reason: FinishReason,
    /// One entry per generated token, if [`SamplingParams::logprobs`](model_qwen::SamplingParams::logprobs) asks for them.
    pub logprobs: Vec<TokenLogprobs>,
    /// Tokens of the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens of the prompt that came from the prefix cache.
    pub num_cached_tokens: usize,
    /// Generated tokens, those of a stop string and the end-of-sequence token among them.
    pub num_tokens: usize,
}

/// A running engine and what makes text of its tokens; [`Engine::builder`](crate::engine::Engine::builder) starts one. Clones
/// share the engine.
#[derive(Clone)]
pub struct TextEngine {
    handle: EngineHandle,
    model: ModelInfo,
    grammars: Arc<Grammars>,
}

impl TextEngine {
    /// Joins an engine and its model.
    pub fn new(handle: EngineHandle, model: ModelInfo) -> Self {
        let grammars = Arc::new(Grammars::new(&model, handle.vocab_size()));
        Self {
            handle,
            model,
            grammars,
        }
    }

    /// The engine, for adapters, statistics, and requests in token ids.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Tokenizer, template and limits of the model.
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// Generates all texts, as many together as the engine's limits allow, and waits for them. The results are in the order of
    /// the requests.
    ///
    /// It blocks the thread; asynchronous programs take [`Self::submit`].
    ///
    /// # Errors
    /// Each text has an error of its own, as [`Self::submit`] and [`TextStream::finish`].
    pub fn generate(
        &self,
        requests: impl IntoIterator<Item = TextRequest>,
    ) -> Vec<Result<Completion, TextError>> {
        let mut results = Vec::new();
        let mut running = VecDeque::new();
        for request in requests {
            let stream = self.prepare(&request).and_then(|prepared| {
                loop {
                    match self.start(prepared.clone()) {
                        Err(SubmitError::QueueFull { .. }) => match running.pop_front() {
                            Some(oldest) => results.push(block_on(finish(oldest))),
                            // The queue is full of other callers' requests.
                            None => thread::sleep(Duration::from_millis(1)),
                        },
                        result => break Ok(result?),
                    }
                }
            });
            running.push_back(stream);
        }
        results.extend(running.into_iter().map(|stream| block_on(finish(stream))));
        results
    }

    /// Starts one text. Dropping the stream ends it.
    ///
    /// # Errors
    /// When the messages or a setting cannot be used, the prompt is longer than the context, the adapter is unknown, or the queue
    /// is full.
    pub fn submit(&self, request: &TextRequest) -> Result<TextStream, TextError> {
        Ok(self.start(self.prepare(request)?)?)
    }

    /// Tokens and checked settings of a request.
    fn prepare(&self, request: &TextRequest) -> Result<PreparedText, TextError> {
        let field = |field, expected, found| TextError::Field {
            field,
            expected,
            found,
        };
        let tokenizer = &self.model.tokenizer;
        let prompt = match &request.prompt {
            Prompt::Text(text) => tokenizer.encode(text, true)?,
            Prompt::Messages(messages) => {
                let template = self.model.chat_template.as_ref();
                let template = template.ok_or(TextError::NoTemplate)?;
                let options = RenderOptions {
                    add_generation_prompt: true,
                    ..RenderOptions::default()
                };
                tokenizer.encode(&template.render(messages, &options)?, false)?
            }
        };
        let room = self.model.max_model_len.saturating_sub(prompt.len());
        let max_tokens = request.max_tokens.unwrap_or(room.max(1));
        if max_tokens == 0 {
            return Err(field("max_tokens", "1 or more", "0".to_owned()));
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(field("stop", "a text", "an empty one".to_owned()));
        }
        let generation_config = &self.model.generation_config;
        let sampling = match &request.sampling {
            Some(sampling) => sampling.clone(),
            None => generation_config.sampling_defaults(),
        };
        sampling.validate_for_vocab(self.handle.vocab_size())?;
        let text = TextOptions {
            stop: request.stop.clone(),
            stop_token_ids: generation_config.eos_token_ids.clone(),
            eos_token_ids: generation_config.eos_token_ids.clone(),
            skip_special_tokens: true,
            ..TextOptions::default()
        };
        let grammar = request.grammar.as_ref();
        let constraint = grammar.map(|grammar| self.grammars.compile(grammar));
        let request = GenerateRequest {
            prompt,
            sampling,
            constraint: constraint.transpose()?,
            max_tokens,
            min_tokens: 0,
            stop_token_ids: text.stop_token_ids.clone(),
            adapter: request.adapter.clone(),
            cache_salt: None,
            prompt_logprobs: None,
        };
        Ok(PreparedText { request, text })
    }

    fn start(
        &self,
        PreparedText { request, text }: PreparedText,
    ) -> Result<TextStream, SubmitError> {
        let num_prompt_tokens = request.prompt.len();
        let outputs = self.handle.submit(request)?;
        let text = Postprocessor::new(self.model.tokenizer.clone(), text);
        Ok(TextStream {
            deltas: Deltas::new(outputs, text),
            last: None,
            logprobs: Vec::new(),
            num_prompt_tokens,
        })
    }
}

/// A request that the engine can take.
#[derive(Clone, Debug)]
struct PreparedText {
    request: GenerateRequest,
    text: TextOptions,
}

/// One text as it grows. Asynchronous programs call [`Self::next`], in whichever runtime; others iterate, which blocks the
/// thread between the pieces.
#[derive(Debug)]
pub struct TextStream {
    deltas: Deltas,
    /// The delta that came last, without its text and log-probabilities.
    last: Option<Delta>,
    logprobs: Vec<TokenLogprobs>,
    num_prompt_tokens: usize,
}

impl TextStream {
    /// The next piece of text, in whole characters; `None` after the last.
    ///
    /// # Errors
    /// [`TextError::Failed`] if the engine does not finish the text.
    pub async fn next(&mut self) -> Option<Result<String, TextError>> {
        loop {
            let mut delta = match self.deltas.next(|| ()).await? {
                Ok(delta) => delta,
                Err(error) => return Some(Err(error.into())),
            };
            let text = mem::take(&mut delta.text);
            self.logprobs.append(&mut delta.logprobs);
            self.last = Some(delta);
            if !text.is_empty() {
                return Some(Ok(text));
            }
        }
    }

    /// Waits for the end; the text is what [`Self::next`] has not given yet.
    ///
    /// # Errors
    /// [`TextError::Failed`] if the engine does not finish the text.
    pub async fn finish(mut self) -> Result<Completion, TextError> {
        let mut text = String::new();
        while let Some(piece) = self.next().await {
            text.push_str(&piece?);
        }
        // Without an end the error was given before.
        let last = self.last.unwrap_or_default();
        let finish = last.finish.ok_or(SequenceError::Stopped)?;
        Ok(Completion {
            text,
            finish_reason: finish.reason,
            logprobs: self.logprobs,
            num_prompt_tokens: self.num_prompt_tokens,
            num_cached_tokens: last.num_cached_tokens,
            num_tokens: last.num_tokens,
        })
    }
}

impl IntoIterator for TextStream {
    type Item = Result<String, TextError>;
    type IntoIter = TextPieces;

    fn into_iter(self) -> TextPieces {
        TextPieces(self)
    }
}

/// The pieces of a [`TextStream`]; waits for each.
#[derive(Debug)]
pub struct TextPieces(TextStream);

impl Iterator for TextPieces {
    type Item = Result<String, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.0.next())
    }
}

async fn finish(stream: Result<TextStream, TextError>) -> Result<Completion, TextError> {
    stream?.finish().await
}

/// Runs a future on this thread, which sleeps while it waits. The engine's channels need no runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
