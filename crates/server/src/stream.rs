//! Choices as they run, one by one, merged, and as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;

use crate::deltas::Deltas;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::postprocess::{Delta, Postprocessor};
use crate::protocol::sampling::TextOptions;
use crate::protocol::usage::Usage;
use crate::state::AppState;

/// A comment is sent when nothing else was for this long; it keeps proxies patient.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One running sequence. Dropping it before its end aborts it.
pub struct Choice {
    index: usize,
    state: AppState,
    deltas: Deltas,
    times: Times,
}

/// When a sequence was submitted, and when it had its last token.
struct Times {
    submitted: Instant,
    last_token: Option<Instant>,
}

impl Times {
    fn observe_token(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => metrics.time_to_first_token.observe(now - self.submitted),
            Some(last) => metrics.inter_token_latency.observe(now - last),
        }
    }
}

impl Choice {
    /// Submits a sequence. With `prompt_only`, generated tokens are dropped (`echo` with `max_tokens` 0).
    ///
    /// # Errors
    /// As [`crate::engine::EngineHandle::submit`].
    pub fn submit(
        state: &AppState,
        index: usize,
        request: GenerateRequest,
        text: &TextOptions,
        prompt_only: bool,
    ) -> Result<Self, ApiError> {
        let outputs = state.engine().submit(request)?;
        let text = Postprocessor::new(state.model().tokenizer.clone(), text.clone());
        Ok(Self {
            index,
            state: state.clone(),
            deltas: match prompt_only {
                true => Deltas::of_prompt(outputs, text),
                false => Deltas::new(outputs, text),
            },
            times: Times {
                submitted: Instant::now(),
                last_token: None,
            },
        })
    }

    /// The next delta; `None` after the one with `finish`, or after an error.
    ///
    /// # Errors
    /// If the engine does not finish the sequence.
    pub async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        let metrics = self.state.metrics();
        let times = &mut self.times;
        let delta = self.deltas.next(|| times.observe_token(metrics)).await?;
        if !matches!(delta, Ok(Delta { finish: None, .. })) {
            let elapsed = self.times.submitted.elapsed();
            metrics.e2e_request_latency.observe(elapsed);
        }
        Some(delta.map_err(ApiError::from))
    }

    /// Everything until the end as one delta.
    ///
    /// # Errors
    /// If the engine does not finish the sequence.
    pub async fn collect(mut self) -> Result<Delta, ApiError> {
        let mut all = Delta::default();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            all.text.push_str(&delta.text);
            all.logprobs.extend(delta.logprobs);
            all.prompt_logprobs = all.prompt_logprobs.or(delta.prompt_logprobs);
            (all.num_tokens, all.num_cached_tokens) = (delta.num_tokens, delta.num_cached_tokens);
            all.finish = delta.finish;
        }
        Ok(all)
    }
}

/// Turns deltas into the JSON events of one endpoint.
pub trait EventFormat: Send + 'static {
    /// Events before any token.
    fn first(&mut self) -> Vec<Value>;
    /// Events for a delta of the choice `index`.
    fn delta(&mut self, index: usize, delta: Delta) -> Vec<Value>;
    /// Events after the last token.
    fn last(&mut self) -> Vec<Value>;
}

/// A stream in the making.
struct Events<F> {
    format: F,
    deltas: BoxStream<'static, (usize, Result<Delta, ApiError>)>,
    ready: VecDeque<Event>,
    done: bool,
}

impl<F: EventFormat> Events<F> {
    fn push(&mut self, values: Vec<Value>) {
        self.ready.extend(
            values
                .iter()
                .map(|value| Event::default().data(value.to_string())),
        );
    }

    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        while self.ready.is_empty() && !self.done {
            match self.deltas.next().await {
                Some((index, Ok(delta))) => {
                    let values = self.format.delta(index, delta);
                    self.push(values);
                    continue;
                }
                // The status was sent long ago, so the error becomes an event; the other choices are dropped.
                Some((_, Err(error))) => self.push(vec![error.body()]),
                None => {
                    let values = self.format.last();
                    self.push(values);
                }
            }
            self.deltas = stream::empty().boxed();
            self.ready.push_back(Event::default().data("[DONE]"));
            self.done = true;
        }
        let event = self.ready.pop_front()?;
        Some((Ok(event), self))
    }
}

/// Answers with the choices' events as they come, in the order in which the engine produces them, then `[DONE]`.
/// A client that leaves drops the stream, and with it the sequences.
pub fn sse<F: EventFormat>(choices: Vec<Choice>, format: F) -> Response {
    let choices = choices.into_iter().map(|choice| {
        stream::unfold(choice, |mut choice| async {
            let delta = choice.next().await?;
            Some(((choice.index, delta), choice))
        })
        .boxed()
    });
    let mut events = Events {
        format,
        deltas: stream::select_all(choices).boxed(),
        ready: VecDeque::new(),
        done: false,
    };
    let first = events.format.first();
    events.push(first);
    let stream = stream::unfold(events, Events::next);
    Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

/// Tokens of all choices of a request, for `usage`.
#[derive(Clone, Debug)]
pub struct TokenCounts {
    prompt_tokens: usize,
    n: usize,
    completion: Vec<usize>,
    cached: Vec<usize>,
}

impl TokenCounts {
    /// No tokens yet, for prompts of these lengths with `n` choices each.
    pub fn new(prompt_lens: &Arc<[usize]>, n: usize) -> Self {
        let num_choices = prompt_lens.len() * n;
        Self {
            prompt_tokens: prompt_lens.iter().sum(),
            n,
            completion: vec![0; num_choices],
            cached: vec![0; num_choices],
        }
    }

    /// Takes over the counts of a choice.
    pub fn update(&mut self, index: usize, delta: &Delta) {
        self.completion[index] = delta.num_tokens;
        self.cached[index] = delta.num_cached_tokens;
    }

    /// The usage so far. A prompt counts once, whatever `n`; so do its cached tokens, as its first choice found them.
    pub fn usage(&self) -> Usage {
        let cached = self.cached.iter().step_by(self.n).sum();
        Usage::new(self.prompt_tokens, self.completion.iter().sum(), cached)
    }
}
