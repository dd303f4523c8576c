//! Choices as they run, one by one, merged, and as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::answer::{self, AnswerOptions, AnswerParser};
use crate::cut::{cut_short, is_cut};
use crate::deltas::Deltas;
use crate::engine::GenerateRequest;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::postprocess::{Delta, Postprocessor};
use crate::protocol::common::StreamOptions;
use crate::protocol::sampling::TextOptions;
use crate::protocol::usage::{CompletionTokensDetails, Usage};
use crate::state::AppState;
use crate::traces::RequestTrace;

/// A comment is sent when nothing else was for this long; it keeps proxies patient.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that wait for a slow client; then its tokens wait, too.
const MAX_UNREAD: usize = 64;
/// A client that reads nothing for this long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// One running sequence. Dropping it before its end aborts it.
pub struct RunningChoice {
    index: usize,
    state: AppState,
    deltas: Deltas,
    times: Times,
    /// The field of the grammar that the text keeps to.
    grammar_param: Option<String>,
    /// What makes parts of the text, if these are asked for.
    parser: Option<AnswerParser>,
    /// Whether the server ends without waiting for the text.
    cut: watch::Receiver<bool>,
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

impl RunningChoice {
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
        let postprocessor = Postprocessor::new(state.model().tokenizer.clone(), text.clone());
        Ok(Self {
            index,
            state: state.clone(),
            deltas: match prompt_only {
                true => Deltas::of_prompt(outputs, postprocessor),
                false => Deltas::new(outputs, postprocessor),
            },
            times: Times {
                submitted: Instant::now(),
                last_token: None,
            },
            grammar_param: text.grammar_param.clone(),
            parser: None,
            cut: state.cut(),
        })
    }

    /// Gives the text as parts of an answer.
    #[must_use]
    pub fn in_parts(mut self, options: AnswerOptions) -> Self {
        self.parser = Some(AnswerParser::new(options));
        self
    }

    /// The next delta; `None` after the one with `finish`, or after an error. Without parts to give, tokens wait for the next one.
    ///
    /// # Errors
    /// If the engine does not finish the sequence.
    pub async fn next(&mut self) -> Option<Result<Delta, ApiError>> {
        let mut held = Delta::default();
        loop {
            let metrics = self.state.metrics();
            let times = &mut self.times;
            let delta = tokio::select! {
                biased;
                () = is_cut(&mut self.cut) => return Some(Err(cut_short())),
                delta = self.deltas.next(|| times.observe_token(metrics)) => delta?,
            };
            if !matches!(delta, Ok(Delta { finish: None, .. })) {
                let elapsed = self.times.submitted.elapsed();
                metrics.e2e_request_latency.observe(elapsed);
            }
            let mut delta = match delta {
                Ok(delta) => delta,
                Err(error) => {
                    return Some(Err(ApiError::of_sequence(
                        error,
                        self.grammar_param.as_deref(),
                    )));
                }
            };
            let Some(parser) = &mut self.parser else {
                return Some(Ok(delta));
            };
            let text = std::mem::take(&mut delta.text);
            delta.parts = parser.push(&text, &delta.token_ids);
            if delta.finish.is_some() {
                for part in parser.finish() {
                    answer::push(&mut delta.parts, part);
                }
            }
            delta.num_reasoning_tokens = parser.num_reasoning_tokens();
            held.append(delta);
            if !held.parts.is_empty() || held.finish.is_some() || held.prompt_logprobs.is_some() {
                return Some(Ok(held));
            }
        }
    }

    /// Everything until the end as one delta.
    ///
    /// # Errors
    /// If the engine does not finish the sequence.
    pub async fn collect(mut self) -> Result<Delta, ApiError> {
        let mut all = Delta::default();
        while let Some(delta) = self.next().await {
            all.append(delta?);
        }
        Ok(all)
    }
}

/// Submits `n` choices of each request: the first one's, then the next one's. Choices of one request differ in their seeds.
///
/// # Errors
/// As `submit`, which gets the index of a choice and what the engine is to generate.
pub fn submit_choices(
    state: &AppState,
    requests: &[GenerateRequest],
    n: usize,
    submit: impl Fn(usize, GenerateRequest) -> Result<RunningChoice, ApiError>,
) -> Result<Vec<RunningChoice>, ApiError> {
    state.metrics().params_n.observe_value(n as f64);
    if let Some(trace) = RequestTrace::current() {
        trace.set_num_choices(n);
    }
    let repeated = requests
        .iter()
        .flat_map(|request| (0..n).map(move |i| (i, request)));
    let choices = repeated.enumerate().map(|(index, (i, request))| {
        let mut request = request.clone();
        let seed = request.sampling.seed;
        request.sampling.seed = seed.map(|seed| seed.wrapping_add(i as u64));
        submit(index, request)
    });
    choices.collect()
}

/// Turns deltas into the JSON events of one endpoint.
pub trait EventFormat: Send + 'static {
    /// What ends a stream, after its last event.
    const END: Option<&'static str> = Some("[DONE]");
    /// Whether events are lines of JSON, not server-sent events.
    const IS_LINES: bool = false;

    /// Events before any token.
    fn first(&mut self) -> Vec<Value>;
    /// Events for a delta of the choice `index`.
    fn delta(&mut self, index: usize, delta: Delta) -> Vec<Value>;
    /// Events after the last token.
    fn last(&mut self) -> Vec<Value>;
    /// Events for an error, after which nothing comes: the status was sent long ago.
    fn error(&mut self, error: &ApiError) -> Vec<Value> {
        vec![error.body()]
    }
    /// The name of an event, for formats that have some.
    fn name<'a>(&self, _event: &'a Value) -> Option<&'a str> {
        None
    }
    /// The event that is sent when nothing else was for a while; a comment, if there is no such event.
    fn keep_alive(&self) -> Option<Value> {
        None
    }
}

/// What is sent: an event and its name, or the end.
type Sent = (Value, Option<String>);

/// A server-sent event. The end of a stream is a text, events are objects.
fn event((value, name): Sent) -> Event {
    let event = match name {
        Some(name) => Event::default().event(name),
        None => Event::default(),
    };
    match value {
        Value::String(end) => event.data(end),
        value => event.data(value.to_string()),
    }
}

/// A stream in the making.
struct Events<F> {
    format: F,
    deltas: BoxStream<'static, (usize, Result<Delta, ApiError>)>,
    ready: VecDeque<Sent>,
    done: bool,
}

impl<F: EventFormat> Events<F> {
    fn push(&mut self, values: Vec<Value>) {
        for value in values {
            let name = self.format.name(&value).map(str::to_owned);
            self.ready.push_back((value, name));
        }
    }

    async fn next(mut self) -> Option<(Sent, Self)> {
        while self.ready.is_empty() && !self.done {
            match self.deltas.next().await {
                Some((index, Ok(delta))) => {
                    let values = self.format.delta(index, delta);
                    self.push(values);
                    continue;
                }
                // The other choices are dropped.
                Some((_, Err(error))) => {
                    let values = self.format.error(&error);
                    self.push(values);
                }
                None => {
                    let values = self.format.last();
                    self.push(values);
                }
            }
            self.deltas = stream::empty().boxed();
            let end = F::END.map(|end| (Value::from(end), None));
            self.ready.extend(end);
            self.done = true;
        }
        let event = self.ready.pop_front()?;
        Some((event, self))
    }
}

/// Answers with the choices' events as they come, in the order in which the engine produces them, then the format's end.
/// A client that leaves, or reads nothing for a minute, ends the stream, and with it the sequences.
pub fn sse<F: EventFormat>(choices: Vec<RunningChoice>, format: F) -> Response {
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
    let mut keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    if let Some(value) = events.format.keep_alive() {
        let name = events.format.name(&value).map(str::to_owned);
        keep_alive = keep_alive.event(event((value, name)));
    }
    let (sender, receiver) = mpsc::channel(MAX_UNREAD);
    tokio::spawn(send(events, sender));
    let sent = ReceiverStream::new(receiver);
    if F::IS_LINES {
        let lines = sent.map(|(value, _)| Ok::<_, Infallible>(format!("{value}\n")));
        let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
        return (kind, Body::from_stream(lines)).into_response();
    }
    let events = sent.map(|sent| Ok::<_, Infallible>(event(sent)));
    Sse::new(events).keep_alive(keep_alive).into_response()
}

/// Moves events to the client as fast as it reads.
async fn send<F: EventFormat>(mut events: Events<F>, sender: mpsc::Sender<Sent>) {
    loop {
        let next = tokio::select! {
            next = events.next() => next,
            // Dropping the events aborts the sequences.
            () = sender.closed() => return,
        };
        let Some((event, rest)) = next else { return };
        events = rest;
        match sender.send_timeout(event, WRITE_TIMEOUT).await {
            Ok(()) => {}
            Err(SendTimeoutError::Closed(_)) => return,
            Err(SendTimeoutError::Timeout(_)) => {
                tracing::warn!(timeout = ?WRITE_TIMEOUT, "a client reads nothing; its request ends");
                return;
            }
        }
    }
}

impl StreamOptions {
    /// The field `usage` of an event: what is due, or the counts so far of the event's choice, or nothing.
    pub(crate) fn shown(
        self,
        due: Option<Usage>,
        counts: &TokenCounts,
        choice: Option<usize>,
    ) -> Option<Value> {
        let is_continuous = self.continuous_usage_stats.unwrap_or(false);
        let usage = due.or_else(|| choice.filter(|_| is_continuous).map(|i| counts.usage_of(i)));
        match usage {
            Some(usage) => serde_json::to_value(usage).ok(),
            None => self.include_usage.unwrap_or(false).then_some(Value::Null),
        }
    }
}

/// Tokens of all choices of a request, for `usage`.
#[derive(Clone, Debug)]
pub struct TokenCounts {
    prompt_lens: Arc<[usize]>,
    n: usize,
    completion: Vec<usize>,
    cached: Vec<usize>,
    /// Per choice, where answers are split into reasoning and content.
    reasoning: Option<Vec<usize>>,
}

impl TokenCounts {
    /// No tokens yet, for prompts of these lengths with `n` choices each.
    pub fn new(prompt_lens: &Arc<[usize]>, n: usize) -> Self {
        let num_choices = prompt_lens.len() * n;
        Self {
            prompt_lens: prompt_lens.clone(),
            n,
            completion: vec![0; num_choices],
            cached: vec![0; num_choices],
            reasoning: None,
        }
    }

    /// With tokens of reasoning.
    #[must_use]
    pub fn with_reasoning(mut self) -> Self {
        self.reasoning = Some(vec![0; self.completion.len()]);
        self
    }

    /// Takes over the counts of a choice.
    pub fn update(&mut self, index: usize, delta: &Delta) {
        self.completion[index] = delta.num_tokens;
        self.cached[index] = delta.num_cached_tokens;
        if let Some(reasoning) = &mut self.reasoning {
            reasoning[index] = delta.num_reasoning_tokens;
        }
    }

    /// The usage so far of one choice and its prompt.
    fn usage_of(&self, index: usize) -> Usage {
        let reasoning = self.reasoning.as_ref();
        Usage {
            completion_tokens_details: reasoning.map(|tokens| CompletionTokensDetails {
                reasoning_tokens: tokens[index],
            }),
            ..Usage::new(
                self.prompt_lens[index / self.n],
                self.completion[index],
                self.cached[index],
            )
        }
    }

    /// The usage so far. A prompt counts once, whatever `n`; so do its cached tokens, as its first choice found them.
    pub fn usage(&self) -> Usage {
        let cached = self.cached.iter().step_by(self.n).sum();
        let reasoning = self.reasoning.as_ref();
        Usage {
            completion_tokens_details: reasoning.map(|tokens| CompletionTokensDetails {
                reasoning_tokens: tokens.iter().sum(),
            }),
            ..Usage::new(
                self.prompt_lens.iter().sum(),
                self.completion.iter().sum(),
                cached,
            )
        }
    }
}
