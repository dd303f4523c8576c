//! The id of a request, in its answer and in the header `X-Request-Id`.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;

/// Where clients and routers put it.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over.
pub(crate) const MAX_LEN: usize = 256;

/// The id of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId {
    id: String,
    /// Whether the client's header has it.
    is_given: bool,
}

impl Default for RequestId {
    /// A new one.
    fn default() -> Self {
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let hash = |part: u8| HASHER.hash_one((number, part));
        Self {
            id: format!("{:016x}{:016x}", hash(0), hash(1)),
            is_given: false,
        }
    }
}

impl RequestId {
    /// The id that [`echo`] has given to a request.
    pub(crate) fn of(request: &Request) -> Self {
        let id = request.extensions().get::<Self>();
        id.cloned().unwrap_or_default()
    }

    fn from_header(value: &HeaderValue) -> Option<Self> {
        let id = value.to_str().ok()?.trim();
        let is_usable = !id.is_empty() && id.len() <= MAX_LEN;
        is_usable.then(|| Self {
            id: id.to_owned(),
            is_given: true,
        })
    }

    /// This id, or the body's `request_id` where the header had none.
    pub(crate) fn or(&self, of_body: Option<&str>) -> String {
        match of_body {
            Some(id) if !self.is_given => id.to_owned(),
            _ => self.id.clone(),
        }
    }
}

/// Gives each request an id, its own if it brings one, and sends it back with the answer.
pub(crate) async fn echo(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&HEADER);
    let id = given.and_then(RequestId::from_header).unwrap_or_default();
    request.extensions_mut().insert(id.clone());
    let mut response = next.run(request).await;
    if let (false, Ok(value)) = (
        response.headers().contains_key(&HEADER),
        HeaderValue::from_str(&id.id),
    ) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}
