//! One request whose answer is streamed, and when its tokens come.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use axum::body::Body;
use axum::http::Method;
use futures::StreamExt as _;
use serde_json::{Map, Value, json};

use super::client::{Client, Sent, shorten};

/// Which API is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// Completions of OpenAI's API
    #[default]
    #[value(alias = "vllm")]
    Openai,
    /// Chat completions of OpenAI's API
    OpenaiChat,
}

impl Backend {
    /// The name of the flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::OpenaiChat => "openai-chat",
        }
    }

    /// Where the API is.
    pub fn endpoint(self) -> &'static str {
        match self {
            Self::Openai => "/v1/completions",
            Self::OpenaiChat => "/v1/chat/completions",
        }
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
}

impl Outcome {
    fn new(start: Instant) -> Self {
        Self {
            start,
            ttft: 0.0,
            itl: Vec::new(),
            latency: 0.0,
            prompt_len: None,
            output_tokens: 0,
            text: String::new(),
            error: None,
        }
    }

    /// Whether there is a whole answer.
    pub fn is_success(&self) -> bool {
        self.error.is_none()
    }
}

/// Streams at most `max_tokens` tokens after `prompt`.
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
        };
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
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
    let sent = client
        .send(Method::POST, &api.endpoint, body, request_id)
        .await?;
    let Sent {
        response,
        connection,
    } = sent;
    let status = response.status();
    let mut chunks = Body::new(response.into_body()).into_data_stream();
    let (mut rest, mut last, mut num_events) = (Vec::new(), outcome.start, 0);
    while let Some(chunk) = chunks.next().await {
        let now = Instant::now();
        rest.extend_from_slice(&chunk.context("the connection broke")?);
        if !status.is_success() {
            continue;
        }
        let mut line_start = 0;
        while let Some(length) = rest[line_start..].iter().position(|&byte| byte == b'\n') {
            let line = rest[line_start..line_start + length].trim_ascii();
            line_start += length + 1;
            let Some(event) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else {
                continue;
            };
            if event.is_empty() || event == b"[DONE]" {
                continue;
            }
            let event: Value = serde_json::from_slice(event).context("an event is not JSON")?;
            if outcome.take(&event)? {
                let since = (now - last).as_secs_f64();
                match num_events {
                    0 => outcome.ttft = since,
                    _ => outcome.itl.push(since),
                }
                num_events += 1;
                last = now;
            }
        }
        rest.drain(..line_start);
    }
    ensure!(status.is_success(), "{status}: {}", shorten(&rest));
    client.give_back(connection);
    ensure!(num_events > 0, "no token came");
    outcome.latency = (last - outcome.start).as_secs_f64();
    if outcome.output_tokens == 0 {
        // The server counts nothing.
        outcome.output_tokens = num_events;
    }
    Ok(())
}

impl Outcome {
    /// Takes over what an event says; whether it is a token.
    fn take(&mut self, event: &Value) -> Result<bool> {
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
            return Ok(false);
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
        Ok(
            text.is_some()
                || is_end
                || delta["tool_calls"].is_array()
                || choice["text"].is_string(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_alone_is_no_token() {
        let mut outcome = Outcome::new(Instant::now());
        let mut take = |event: Value| outcome.take(&event).unwrap();
        assert!(!take(
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]})
        ));
        assert!(take(
            json!({"choices": [{"delta": {"content": "a"}, "finish_reason": null}]})
        ));
        assert!(take(
            json!({"choices": [{"delta": {"reasoning": "b", "reasoning_content": "b"}}]})
        ));
        assert!(take(
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        ));
        assert!(take(
            json!({"choices": [{"text": "", "finish_reason": null}]})
        ));
        assert!(!take(
            json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
        ));
        assert_eq!(
            (
                outcome.text.as_str(),
                outcome.output_tokens,
                outcome.prompt_len
            ),
            ("ab", 4, Some(3))
        );
        assert!(
            outcome
                .take(&json!({"error": {"message": "full"}}))
                .is_err()
        );
    }
}
