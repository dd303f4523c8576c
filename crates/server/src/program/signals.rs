//! SIGTERM, SIGHUP and Ctrl-C.

#[cfg(unix)]
use anyhow::Context as _;
use anyhow::Result;
use tokio::sync::watch;

/// The status of a process that a signal ends.
pub(super) const INTERRUPTED: u8 = 130;

/// Becomes true at the first SIGTERM, SIGHUP or Ctrl-C; a second one ends the process at once.
pub(super) fn signals() -> Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    #[cfg(unix)]
    let (mut terminate, mut hang_up) = {
        use tokio::signal::unix::{SignalKind, signal};
        let kind = SignalKind::hangup();
        // `nohup` has it ignored, and means it.
        let hang_up = (!model_qwen::sys::is_ignored(kind.as_raw_value())).then(|| signal(kind));
        (
            signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            hang_up.transpose().context("cannot listen for SIGHUP")?,
        )
    };
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
                () = received(&mut hang_up) => {}
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

/// Completes when the signal comes that is listened for; never without one.
#[cfg(unix)]
async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Completes at the first signal.
pub(super) async fn signaled(mut signals: watch::Receiver<bool>) {
    if signals.wait_for(|&signaled| signaled).await.is_err() {
        // Without a signal task there is nothing to wait for.
        std::future::pending::<()>().await;
    }
}
