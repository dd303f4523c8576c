//! Waiting for a server that is still starting.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result};
use axum::http::StatusCode;

use super::client::HttpError;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// Why an attempt has failed.
pub(super) struct Failure {
    pub(super) error: Error,
    /// Whether another attempt may be answered.
    pub(super) is_early: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let is_early = is_early(&error);
        Self { error, is_early }
    }
}

/// Whether an error is of a server that is not there yet: nobody listens, or it answers 503.
pub(super) fn is_early(error: &Error) -> bool {
    error.chain().any(|cause| {
        let http = cause.downcast_ref::<HttpError>();
        let io = cause.downcast_ref::<io::Error>();
        http.is_some_and(|error| error.status == StatusCode::SERVICE_UNAVAILABLE)
            || io.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

/// Tries until there is an answer, for at most `timeout` in all; with 0 once, for as long as it takes.
pub(super) async fn until_ready<T>(
    url: &str,
    timeout: Duration,
    attempt: impl AsyncFn() -> Result<T, Failure>,
) -> Result<T> {
    let start = Instant::now();
    let seconds = timeout.as_secs();
    let mut is_first = true;
    loop {
        let remaining = match timeout.is_zero() {
            true => Duration::MAX,
            false => timeout.saturating_sub(start.elapsed()),
        };
        let answer = tokio::time::timeout(remaining, attempt()).await;
        let answer = answer.with_context(|| {
            format!("--ready-check-timeout-sec: no answer from {url} within {seconds} s")
        })?;
        let Failure { error, is_early } = match answer {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if !is_early || start.elapsed().saturating_add(PAUSE) >= timeout {
            return Err(error);
        }
        if is_first {
            tracing::info!(
                "waiting up to {seconds} s for {url}: {}",
                error.root_cause()
            );
            is_first = false;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_alone_is_not_early() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(is_early(&Error::from(refused).context("http://x")));
        assert!(!is_early(&anyhow::anyhow!("the model refused 503 times")));
        let of_status = |status| Error::from(HttpError::new("", status, b"503 refused"));
        assert!(is_early(
            &of_status(StatusCode::SERVICE_UNAVAILABLE).context("x")
        ));
        assert!(!is_early(&of_status(StatusCode::BAD_REQUEST)));
    }

    #[tokio::test]
    async fn the_timeout_bounds_an_attempt() {
        let never = async || std::future::pending::<Result<(), Failure>>().await;
        let waited = until_ready("http://x", Duration::from_millis(20), never).await;
        let error = waited.unwrap_err().to_string();
        assert!(error.contains("--ready-check-timeout-sec"), "{error}");
    }
}
