//! The signals that end the service.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::telemetry;

/// Listens for SIGTERM and SIGINT from now on. The future ends at the first; a second one ends the
/// process at once.
///
/// # Errors
/// When the system allows no signal handlers.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // A terminal that closes, or an operator who expects the settings to be read anew.
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP changes nothing: settings are read at the start");
        }
    });
    let mut next = async move || {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(async move {
        next().await;
        tokio::spawn(async move {
            next().await;
            tracing::warn!("stopped: a second signal came");
            telemetry::close_log();
            std::process::exit(0);
        });
    })
}
