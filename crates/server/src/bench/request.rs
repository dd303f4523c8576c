//! One request whose answer is streamed, and when its tokens come.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use axum::body::Body;
use axum::http::Method;
use futures::StreamExt as _;
use serde_json::{Map, Value, json};

use super::client::{Client, HttpError};
use super::ready::is_early;

/// Which API is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// Completions of OpenAI's API
    #[default]
    #[value(alias = "vllm")]
    Openai,
    /// Chat completions of OpenAI's API
    OpenaiChat,
    /// Embeddings of OpenAI's API
    OpenaiEmbeddings,
    /// Those of vLLM that are not here.
    #[value(
        name = "vllm-rerank",
        aliases = ["vllm-pooling", "openai-audio", "openai-embeddings-chat", "openai-embeddings-clip",
            "openai-embeddings-vlm2vec", "infinity-embeddings", "infinity-embeddings-clip"],
        hide = true
    )]
    Other,
}

impl Backend {
    /// Where the API is.
    pub fn endpoint(self) -> &'static str {
        match self {
            Self::Openai => "/v1/completions",
            Self::OpenaiChat => "/v1/chat/completions",
            Self::OpenaiEmbeddings | Self::Other => "/v1/embeddings",
        }
    }

    /// Whether an answer is a text, which is streamed.
    pub fn generates(self) -> bool {
        matches!(self, Self::Openai | Self::OpenaiChat)
    }
}

/// What a request continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// What all requests of a run have.
#[derive(Clone, Debug)]
pub struct Api {
    /// Which API.
    pub backend: Backend,
    /// Its path.
    pub endpoint: String,
    /// Further fields of each body.
    pub extra: Map<String, Value>,
}

/// What a client saw of one request. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it was sent.
    pub start: Instant,
    /// How long it waited for others before that, by `--max-concurrency`.
    pub queue: f64,
    /// Until the first token.
    pub ttft: f64,
    /// From each token to the next.
    pub itl: Vec<f64>,
    /// Until the last token.
    pub latency: f64,
    /// Tokens of the prompt, as the server counts them.
    pub prompt_len: Option<usize>,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// The answer.
    pub text: String,
    /// Why there is no answer.
    pub error: Option<String>,
    /// Whether the error is of a server that is not there yet.
    pub is_early: bool,
}

impl Outcome {
    fn new(start: Instant) -> Self {
        Self {
            start,
            queue: 0.0,
            ttft: 0.0,
            itl: Vec::new(),
            latency: 0.0,
            prompt_len: None,
            output_tokens: 0,
            text: String::new(),
            error: None,
            is_early: false,
        }
    }

    /// Whether there is a whole answer.
    pub fn is_success(&self) -> bool {
        self.error.is_none()
    }
}

/// Streams at most `max_tokens` tokens after `prompt`, or asks for its vector.
pub async fn stream(
    client: &Client,
    api: &Api,
    model: &str,
    prompt: &Prompt,
    max_tokens: usize,
    request_id: Option<&str>,
) -> Outcome {
    let body = api.body(model, prompt, max_tokens).to_string();
    let mut outcome = Outcome::new(Instant::now());
    if let Err(error) = receive(client, api, body, request_id, &mut outcome).await {
        outcome.is_early = is_early(&error);
        outcome.error = Some(format!("{error:#}"));
    }
    outcome
}

impl Api {
    fn body(&self, model: &str, prompt: &Prompt, max_tokens: usize) -> Value {
        let prompt = match prompt {
            Prompt::Text(text) => Value::from(text.as_str()),
            Prompt::Tokens(ids) => Value::from(ids.as_slice()),
        };
        let mut body = match self.backend {
            Backend::Openai => json!({"model": model, "prompt": prompt, "max_tokens": max_tokens}),
            Backend::OpenaiChat => json!({
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "max_completion_tokens": max_tokens,
            }),
            Backend::OpenaiEmbeddings | Backend::Other => json!({"model": model, "input": prompt}),
        };
        if self.backend.generates() {
            body["stream"] = true.into();
            body["stream_options"] = json!({"include_usage": true});
        }
        if let Value::Object(fields) = &mut body {
            fields.extend(self.extra.clone());
        }
        body
    }
}

async fn receive(
    client: &Client,
    api: &Api,
    body: String,
    request_id: Option<&str>,
    outcome: &mut Outcome,
) -> Result<()> {
    let response = client
        .send(Method::POST, &api.endpoint, body, request_id)
        .await?;
    let status = response.status();
    let mut chunks = Body::new(response.into_body()).into_data_stream();
    let mut rest = Vec::new();
    let streams = api.backend.generates();
    let mut events = Events::new(outcome);
    while let Some(chunk) = chunks.next().await {
        let now = Instant::now();
        rest.extend_from_slice(&chunk.context("the connection broke")?);
        if !status.is_success() || !streams {
            continue;
        }
        let mut line_start = 0;
        while let Some(length) = rest[line_start..].iter().position(|&byte| byte == b'\n') {
            events.line(&rest[line_start..line_start + length], now)?;
            line_start += length + 1;
        }
        rest.drain(..line_start);
    }
    if !status.is_success() {
        return Err(HttpError::new("", status, &rest).into());
    }
    if !streams {
        return outcome.vector(&rest, Instant::now());
    }
    // The last line may lack its end.
    events.line(&rest, Instant::now())?;
    events.finish()
}

/// The events of one answer.
struct Events<'a> {
    outcome: &'a mut Outcome,
    num_tokens: usize,
    /// When the last token came.
    last: Instant,
    /// When an event came that ends the answer without a text.
    bare_end: Option<Instant>,
    is_over: bool,
}

/// What one event is.
#[derive(Debug, PartialEq)]
struct Event {
    is_token: bool,
    is_end: bool,
}

impl<'a> Events<'a> {
    fn new(outcome: &'a mut Outcome) -> Self {
        Self {
            last: outcome.start,
            outcome,
            num_tokens: 0,
            bare_end: None,
            is_over: false,
        }
    }

    /// Takes a line of the stream that came at `now`.
    fn line(&mut self, line: &[u8], now: Instant) -> Result<()> {
        let line = line.trim_ascii();
        let Some(event) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
            return Ok(());
        };
        self.is_over |= event == b"[DONE]";
        if event.is_empty() || event == b"[DONE]" {
            return Ok(());
        }
        let event: Value = serde_json::from_slice(event).context("an event is not JSON")?;
        let Event { is_token, is_end } = self.outcome.take(&event)?;
        self.is_over |= is_end;
        match (is_token, is_end) {
            (true, _) => self.token(now),
            (false, true) => self.bare_end = Some(now),
            _ => {}
        }
        Ok(())
    }

    fn token(&mut self, now: Instant) {
        let since = (now - self.last).as_secs_f64();
        match self.num_tokens {
            0 => self.outcome.ttft = since,
            _ => self.outcome.itl.push(since),
        }
        self.num_tokens += 1;
        self.last = now;
    }

    /// Fails unless the answer is whole.
    fn finish(mut self) -> Result<()> {
        ensure!(
            self.is_over,
            "the stream ended in the middle of the answer: neither a finish_reason nor [DONE] came"
        );
        // The end of a text is a token of its own, where the server counts it.
        if let Some(end) = self.bare_end
            && (self.num_tokens == 0 || self.outcome.output_tokens == self.num_tokens + 1)
        {
            self.token(end);
        }
        ensure!(self.num_tokens > 0, "no token came");
        self.outcome.latency = (self.last - self.outcome.start).as_secs_f64();
        if self.outcome.output_tokens == 0 {
            // The server counts nothing.
            self.outcome.output_tokens = self.num_tokens;
        }
        Ok(())
    }
}

impl Outcome {
    /// Takes over an answer with a vector.
    fn vector(&mut self, answer: &[u8], now: Instant) -> Result<()> {
        let answer: Value = serde_json::from_slice(answer).context("the answer is no JSON")?;
        let vector = &answer["data"][0]["embedding"];
        ensure!(
            vector.is_array() || vector.is_string(),
            "the answer has no `embedding`"
        );
        let num_tokens = answer["usage"]["prompt_tokens"].as_u64();
        self.prompt_len = num_tokens.map(|num| num as usize);
        self.latency = (now - self.start).as_secs_f64();
        self.ttft = self.latency;
        Ok(())
    }

    /// Takes over what an event says.
    fn take(&mut self, event: &Value) -> Result<Event> {
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let message = error["message"]
                .as_str()
                .map_or_else(|| error.to_string(), str::to_owned);
            anyhow::bail!("the stream ended with an error: {message}");
        }
        let usage = &event["usage"];
        if let Some(num) = usage["completion_tokens"].as_u64() {
            self.output_tokens = num as usize;
        }
        if let Some(num) = usage["prompt_tokens"].as_u64() {
            self.prompt_len = Some(num as usize);
        }
        let choice = &event["choices"][0];
        if choice.is_null() {
            return Ok(Event {
                is_token: false,
                is_end: false,
            });
        }
        let delta = &choice["delta"];
        let parts = [
            &choice["text"],
            &delta["content"],
            &delta["reasoning_content"],
            &delta["reasoning"],
        ];
        let text = parts
            .into_iter()
            .filter_map(Value::as_str)
            .find(|text| !text.is_empty());
        self.text.push_str(text.unwrap_or_default());
        // A first event that has only the role comes before any token.
        let is_end = !choice["finish_reason"].is_null();
        let has_tool_calls = delta["tool_calls"]
            .as_array()
            .is_some_and(|calls| !calls.is_empty());
        // The text of a token may be empty: a part of a character.
        let is_empty_token = !is_end && choice["text"].is_string();
        Ok(Event {
            is_token: text.is_some() || has_tool_calls || is_empty_token,
            is_end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_an_answer() {
        let mut outcome = Outcome::new(Instant::now());
        let answer = br#"{"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}}"#;
        outcome.vector(answer, Instant::now()).unwrap();
        assert_eq!((outcome.prompt_len, outcome.output_tokens), (Some(3), 0));
        for wrong in [&b"{}"[..], b"[", br#"{"data": []}"#] {
            assert!(outcome.vector(wrong, Instant::now()).is_err());
        }
    }

    #[test]
    fn a_role_alone_is_no_token() {
        let mut outcome = Outcome::new(Instant::now());
        let mut take = |event: Value| {
            let Event { is_token, is_end } = outcome.take(&event).unwrap();
            (is_token, is_end)
        };
        let role = json!({"role": "assistant", "content": ""});
        for (event, expected) in [
            (
                json!({"choices": [{"delta": role, "finish_reason": null}]}),
                (false, false),
            ),
            (
                json!({"choices": [{"delta": {"content": "a"}}]}),
                (true, false),
            ),
            (
                json!({"choices": [{"delta": {"reasoning": "b", "reasoning_content": "b"}}]}),
                (true, false),
            ),
            (
                json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
                (false, true),
            ),
            (
                json!({"choices": [{"text": "", "finish_reason": "stop"}]}),
                (false, true),
            ),
            (
                json!({"choices": [{"text": "", "finish_reason": null}]}),
                (true, false),
            ),
            (
                json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
                (false, false),
            ),
        ] {
            assert_eq!(take(event.clone()), expected, "{event}");
        }
        assert_eq!(outcome.text, "ab");
        assert_eq!((outcome.output_tokens, outcome.prompt_len), (4, Some(3)));
        let error = json!({"error": {"message": "full"}});
        assert!(outcome.take(&error).is_err());
    }

    /// Number of tokens by time, and the error.
    fn read(lines: &[&str]) -> (usize, Option<String>) {
        let mut outcome = Outcome::new(Instant::now());
        let mut events = Events::new(&mut outcome);
        for line in lines {
            events.line(line.as_bytes(), Instant::now()).unwrap();
        }
        let error = events.finish().err().map(|error| error.to_string());
        (outcome.itl.len() + 1, error)
    }

    #[test]
    fn a_bare_end_is_a_token_only_if_the_server_counts_it() {
        let a = r#"data: {"choices": [{"text": "a", "finish_reason": null}]}"#;
        let end = r#"data: {"choices": [{"text": "", "finish_reason": "stop"}]}"#;
        let usage = |num: usize| {
            format!(r#"data: {{"choices": [], "usage": {{"completion_tokens": {num}}}}}"#)
        };
        assert_eq!(read(&[a, a, end]), (2, None));
        assert_eq!(read(&[a, a, end, &usage(2), "data: [DONE]"]), (2, None));
        assert_eq!(read(&[a, a, end, &usage(3), "data: [DONE]"]), (3, None));
        assert_eq!(read(&[a, a, "data: [DONE]"]), (2, None));
        assert!(read(&[a, a]).1.unwrap().contains("in the middle"));
    }
}
