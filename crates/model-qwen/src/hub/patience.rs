//! Waiting for a Hub that is slow, or has too much to do.

use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use ureq::http::HeaderMap;

use super::options::HubOptions;

/// When somebody who waits is told what for.
const SILENCE: Duration = Duration::from_secs(3);
/// Pauses before the next attempts, where the Hub asks for none.
const PAUSES: [u64; 4] = [1, 2, 4, 8];
/// Longest pause that is kept; who asks for a longer one gets no further attempt.
const LONGEST: u64 = 60;
/// How long a Hub may take to say whether it takes requests again.
const ANSWER: Duration = Duration::from_secs(30);

/// Says once that an answer takes long; dropping it ends that.
pub(super) struct Watch(#[expect(dead_code, reason = "its end is what is looked for")] Sender<()>);

impl Watch {
    pub(super) fn over(endpoint: &str) -> Self {
        let (sender, ended) = mpsc::channel::<()>();
        let endpoint = endpoint.to_owned();
        // Without a thread nothing is said.
        let _ = thread::Builder::new().spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(SILENCE) {
                tracing::info!("waiting for {endpoint}, which is slow to answer");
            }
        });
        Self(sender)
    }
}

/// Whether a status means that the same request may be taken later.
pub(super) fn is_busy(status: u16) -> bool {
    matches!(status, 429 | 503)
}

/// Waits until the Hub takes a request for `url`, or has refused it too often.
///
/// # Errors
/// When it does not; the pause in seconds that it asks for, if that is too long.
pub(super) fn wait_for_turn(options: &HubOptions, url: &str) -> Result<(), Option<u64>> {
    for pause in PAUSES {
        let asked = match ask(options, url) {
            Hub::TakesRequests => return Ok(()),
            Hub::IsBusy { asked } => asked,
        };
        if let Some(asked) = asked.filter(|&asked| asked > LONGEST) {
            return Err(Some(asked));
        }
        let seconds = asked.unwrap_or(pause).max(1);
        tracing::info!(
            "{} has too many requests; next attempt in {seconds} s",
            options.endpoint
        );
        thread::sleep(Duration::from_secs(seconds));
    }
    match ask(options, url) {
        Hub::TakesRequests => Ok(()),
        Hub::IsBusy { asked } => Err(asked),
    }
}

/// What a Hub says of its time.
enum Hub {
    /// It has some; another error is for whoever asks in earnest.
    TakesRequests,
    /// It has none.
    IsBusy {
        /// The pause in seconds that it asks for.
        asked: Option<u64>,
    },
}

fn ask(options: &HubOptions, url: &str) -> Hub {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
        .timeout_global(Some(ANSWER))
        .build();
    // As little of a file as can be had.
    let mut request = ureq::Agent::from(agent)
        .get(url)
        .header("Range", "bytes=0-0");
    if let Some(token) = &options.token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    match request.call() {
        Ok(answer) if is_busy(answer.status().as_u16()) => Hub::IsBusy {
            asked: retry_after(answer.headers()),
        },
        _ => Hub::TakesRequests,
    }
}

/// Seconds of `Retry-After`; the form of a date is not read.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("retry-after")?.to_str().ok()?;
    value.trim().parse().ok()
}
