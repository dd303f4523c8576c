//! Requests to one server over HTTP/1.1, with connections that are kept.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

/// Longest answer that is no stream.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// How long a connection is kept for the next request: servers close theirs after 5 seconds and more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// One server, and the connections to it.
#[derive(Debug)]
pub struct Client {
    /// The address, and what it has before each path.
    base_url: String,
    headers: HeaderMap,
    connections: legacy::Client<HttpConnector, Body>,
}

/// An answer that is an error.
#[derive(Debug, thiserror::Error)]
#[error("{path}{}{status}: {message}", if path.is_empty() { "" } else { ": " })]
pub(super) struct HttpError {
    path: String,
    pub(super) status: StatusCode,
    message: String,
    /// Whether it is of the model's name, not of the path.
    is_of_model: bool,
}

impl HttpError {
    pub(super) fn new(path: &str, status: StatusCode, body: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &answer["error"];
        Self {
            path: path.to_owned(),
            status,
            message: shorten(body),
            is_of_model: error["param"] == "model" || error["code"] == "model_not_found",
        }
    }

    /// Whether the server does not have the path.
    pub(super) fn is_of_route(&self) -> bool {
        self.status == StatusCode::NOT_FOUND && !self.is_of_model
    }
}

impl Client {
    /// For the server at `base_url`, with `headers` in each request.
    ///
    /// # Errors
    /// If that is no `http://` address, or a header cannot be sent.
    pub fn new(base_url: &str, headers: &[(String, String)]) -> Result<Self> {
        let uri: Uri = base_url
            .trim_end_matches('/')
            .parse()
            .with_context(|| format!("{base_url} is no address"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => bail!(
                "this client has no TLS: give the http:// address of the server itself, or of a proxy that adds TLS"
            ),
            _ => bail!("expected http://HOST:PORT, found {base_url}"),
        }
        let authority = uri
            .authority()
            .with_context(|| format!("{base_url} has no host"))?;
        ensure!(
            !authority.as_str().contains('@'),
            "expected http://HOST:PORT, found a user name in it: give a key as OPENAI_API_KEY, or \
             `--header Authorization=…`"
        );
        ensure!(
            uri.query().is_none(),
            "expected http://HOST:PORT, found a query in {base_url}"
        );
        ensure!(
            authority.port().is_some() || authority.as_str().len() == authority.host().len(),
            "expected a port from 0 to 65535, found {base_url}"
        );
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name
                .parse()
                .with_context(|| format!("the header `{name}`"))?;
            let value: HeaderValue = value
                .parse()
                .with_context(|| format!("the value of the header `{name}`"))?;
            map.insert(name, value);
        }
        let prefix = uri.path().trim_end_matches('/');
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Ok(Self {
            base_url: format!("http://{authority}{prefix}"),
            headers: map,
            connections: legacy::Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .build(connector),
        })
    }

    /// The JSON that the server answers to a GET.
    ///
    /// # Errors
    /// If there is no answer, or another one.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, String::new()).await
    }

    /// The JSON that the server answers to a POST.
    ///
    /// # Errors
    /// If there is no answer, or another one.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.json(Method::POST, path, body.to_string()).await
    }

    /// The text that the server answers to a GET.
    ///
    /// # Errors
    /// If there is no answer, or another one.
    pub(super) async fn text(&self, path: &str) -> Result<String> {
        let bytes = self.answer(Method::GET, path, String::new()).await?;
        String::from_utf8(bytes.into()).with_context(|| format!("{path}: the answer is no text"))
    }

    async fn json(&self, method: Method, path: &str, body: String) -> Result<Value> {
        let bytes = self.answer(method, path, body).await?;
        serde_json::from_slice(&bytes).with_context(|| format!("{path}: the answer is not JSON"))
    }

    async fn answer(&self, method: Method, path: &str, body: String) -> Result<Bytes> {
        let response = self.send(method, path, body, None).await?;
        let status = response.status();
        let bytes = to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await?;
        match status.is_success() {
            true => Ok(bytes),
            false => Err(HttpError::new(path, status, &bytes).into()),
        }
    }

    /// Sends a request. A kept connection that the server has closed meanwhile is replaced.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
        request_id: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base_url))
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .with_context(|| format!("the path {path}"))?;
        let headers = request.headers_mut();
        if let Some(id) = request_id {
            headers.insert("x-request-id", HeaderValue::from_str(id)?);
        }
        // What the user gives replaces these.
        headers.extend(self.headers.clone());
        let response = self.connections.request(request).await;
        response.with_context(|| self.base_url.clone())
    }
}

/// The beginning of an answer, for a message.
pub(super) fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(400)]);
    let message = serde_json::from_slice::<Value>(bytes).ok();
    let message = message.and_then(|answer| Some(answer["error"]["message"].as_str()?.to_owned()));
    message.unwrap_or_else(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn headers_of_the_user_replace_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/prefix/", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n{}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(answer).unwrap();
            String::from_utf8(request).unwrap().to_lowercase()
        });
        let headers = ["Host", "content-type", "X-Request-ID", "other"];
        let headers = headers.map(|name| (name.to_owned(), format!("my-{name}").to_lowercase()));
        let client = Client::new(&url, &headers).unwrap();
        let sent = client
            .send(Method::POST, "/path", "{}".to_owned(), Some("id"))
            .await;
        assert_eq!(sent.unwrap().status(), StatusCode::OK);
        let request = served.join().unwrap();
        assert!(
            request.starts_with("post /prefix/path http/1.1\r\n"),
            "{request}"
        );
        for name in ["host", "content-type", "x-request-id", "other"] {
            let lines = request
                .lines()
                .filter(|line| line.starts_with(&format!("{name}:")));
            assert_eq!(lines.collect::<Vec<_>>(), [format!("{name}: my-{name}")]);
        }
    }

    #[test]
    fn an_address_has_a_host_and_maybe_a_port() {
        let base_url = |url: &str| Client::new(url, &[]).map(|client| client.base_url);
        assert_eq!(base_url("http://x").unwrap(), "http://x");
        assert_eq!(base_url("http://[::1]:80/a/").unwrap(), "http://[::1]:80/a");
        for url in [
            "http://x:80000",
            "http://x:",
            "x",
            "ftp://x",
            "http://x/?a=b",
        ] {
            let error = base_url(url).unwrap_err().to_string();
            assert!(
                error.contains("expected") || error.contains("no address"),
                "{url}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn connections_are_kept_and_a_closed_one_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            // Two answers on each connection.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                for _ in 0..2 {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        request.extend(byte);
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    stream.write_all(answer).unwrap();
                }
            }
        });
        let client = Client::new(&url, &[]).unwrap();
        for _ in 0..4 {
            client.get("/a").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        served.join().unwrap();
        // Nobody listens any more.
        let error = client.get("/a").await.unwrap_err();
        assert!(super::super::ready::is_early(&error), "{error:#}");
    }
}
