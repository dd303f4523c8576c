//! SIGTERM and Ctrl-C.

#[cfg(unix)]
use anyhow::Context as _;
use anyhow::Result;
use tokio::sync::watch;

/// The status of a process that a signal ends.
pub(super) const INTERRUPTED: u8 = 130;

/// Becomes true at the first SIGTERM or Ctrl-C; a second one ends the process at once.
pub(super) fn signals() -> Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?
    };
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            #[cfg(not(unix))]
            let _ = tokio::signal::ctrl_c().await;
            if sender.send_replace(true) {
                std::process::exit(INTERRUPTED.into());
            }
        }
    });
    Ok(receiver)
}

/// Completes at the first signal.
pub(super) async fn signaled(mut signals: watch::Receiver<bool>) {
    if signals.wait_for(|&signaled| signaled).await.is_err() {
        // Without a signal task there is nothing to wait for.
        std::future::pending::<()>().await;
    }
}
