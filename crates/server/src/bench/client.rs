//! A small HTTP/1.1 client, which keeps its connections.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longest answer that is no stream.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// One server, and the connections to it that are free.
#[derive(Debug)]
pub struct Client {
    host: String,
    port: u16,
    /// `host:port` as the address has it.
    authority: HeaderValue,
    /// What the address has before each path.
    prefix: String,
    headers: HeaderMap,
    free: Mutex<Vec<SendRequest<Body>>>,
}

/// An answer, and the connection on which it comes.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) response: Response<Incoming>,
    pub(super) connection: SendRequest<Body>,
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
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None if authority.as_str().len() == authority.host().len() => 80,
            None => bail!("expected a port from 0 to 65535, found {base_url}"),
        };
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
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            authority: HeaderValue::from_str(authority.as_str())?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            headers: map,
            free: Mutex::default(),
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

    async fn json(&self, method: Method, path: &str, body: String) -> Result<Value> {
        let Sent {
            response,
            connection,
        } = self.send(method, path, body, None).await?;
        let status = response.status();
        let bytes = to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES).await?;
        self.give_back(connection);
        if !status.is_success() {
            return Err(HttpError::new(path, status, &bytes).into());
        }
        serde_json::from_slice(&bytes).with_context(|| format!("{path}: the answer is not JSON"))
    }

    /// Sends a request. A kept connection that the server has closed meanwhile is replaced.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
        request_id: Option<&str>,
    ) -> Result<Sent> {
        let body = Bytes::from(body);
        let request = || -> Result<Request<Body>> {
            let mut request = Request::builder()
                .method(&method)
                .uri(format!("{}{path}", self.prefix))
                .body(Body::from(body.clone()))
                .with_context(|| format!("the path {path}"))?;
            let headers = request.headers_mut();
            headers.insert(HOST, self.authority.clone());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            if let Some(id) = request_id {
                headers.insert("x-request-id", HeaderValue::from_str(id)?);
            }
            // What the user gives replaces these.
            headers.extend(self.headers.clone());
            Ok(request)
        };
        while let Some(mut connection) = self.take() {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.send_request(request()?).await {
                Ok(response) => {
                    return Ok(Sent {
                        response,
                        connection,
                    });
                }
                Err(error)
                    if error.is_canceled()
                        || error.is_closed()
                        || error.is_incomplete_message() => {}
                Err(error) => return Err(error).with_context(|| self.server()),
            }
        }
        let mut connection = self.connect().await.with_context(|| self.server())?;
        let response = connection.send_request(request()?).await;
        let response = response.with_context(|| self.server())?;
        Ok(Sent {
            response,
            connection,
        })
    }

    /// Keeps a connection whose answer is read to its end.
    pub(super) fn give_back(&self, connection: SendRequest<Body>) {
        if !connection.is_closed() {
            self.free
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
        }
    }

    fn take(&self) -> Option<SendRequest<Body>> {
        self.free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
    }

    async fn connect(&self) -> Result<SendRequest<Body>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Whoever waits for an answer on it sees the error, too.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn server(&self) -> String {
        format!("http://{}:{}", self.host, self.port)
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
        assert_eq!(sent.unwrap().response.status(), StatusCode::OK);
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
        let port = |url: &str| Client::new(url, &[]).map(|client| client.port);
        assert_eq!(port("http://x").unwrap(), 80);
        assert_eq!(port("http://[::1]:8000/").unwrap(), 8000);
        for url in [
            "http://x:80000",
            "http://x:",
            "x",
            "ftp://x",
            "http://x/?a=b",
        ] {
            let error = port(url).unwrap_err().to_string();
            assert!(
                error.contains("expected") || error.contains("no address"),
                "{url}: {error}"
            );
        }
    }
}
