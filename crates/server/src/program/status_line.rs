//! The last line of a terminal, which says how far a start is. Lines of the log come above it.

use std::convert::Infallible;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{StartPart, StartProgress};

/// Back to the start of the line, and nothing more in it.
const CLEAR: &[u8] = b"\r\x1b[2K";
/// How often it is drawn.
const PERIOD: Duration = Duration::from_millis(100);
/// Signs of the bar.
const WIDTH: usize = 24;

/// Whether the cursor stands behind such a line.
static IS_SHOWN: Mutex<bool> = Mutex::new(false);

/// Writes to stderr, whose last line stays what it should be.
fn write(bytes: &[u8], is_status: bool) -> io::Result<()> {
    let mut is_shown = IS_SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stderr = io::stderr().lock();
    if std::mem::replace(&mut *is_shown, is_status) {
        stderr.write_all(CLEAR)?;
    }
    stderr.write_all(bytes)?;
    stderr.flush()
}

/// Where the log goes.
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(bytes, false).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Takes the line away when it goes.
struct Shown;

impl Drop for Shown {
    fn drop(&mut self) {
        // A closed stderr ends no server.
        let _ = write(b"", false);
    }
}

/// Shows how far a start is, until it is dropped. Elsewhere than on a terminal the log says it.
pub(super) async fn show(progress: &StartProgress) -> Infallible {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let _shown = Shown;
    let mut before = None;
    loop {
        if let Some(part) = progress.part() {
            // What the log has cleared is drawn again.
            let is_gone = !*IS_SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
            if is_gone || before.replace(part) != Some(part) {
                let _ = write(line(part).as_bytes(), true);
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn line(
    StartPart {
        what,
        done,
        of,
        unit,
    }: StartPart,
) -> String {
    let filled = (done * WIDTH).checked_div(of).unwrap_or(0).min(WIDTH);
    let bar = "#".repeat(filled) + &"-".repeat(WIDTH - filled);
    format!("{what} [{bar}] {done} of {of} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_what_is_done() {
        let part = |done, of| StartPart {
            what: "loading the model",
            done,
            of,
            unit: "layers",
        };
        let half = format!(
            "loading the model [{}{}] 12 of 24 layers",
            "#".repeat(12),
            "-".repeat(12)
        );
        assert_eq!(line(part(12, 24)), half);
        assert!(line(part(0, 0)).contains(&"-".repeat(24)));
        assert!(line(part(30, 24)).contains(&"#".repeat(24)));
    }
}
