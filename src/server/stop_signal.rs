//! The signals that stop the service.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::telemetry;

/// Listens for SIGTERM and SIGINT from now on. The future completes at the first one; a second one
/// ends the process at once.
///
/// # Errors
/// When the system allows no signal handlers.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // Without a handler SIGHUP would end the process, when a terminal closes or an operator
        // expects it to reload the settings.
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP changes nothing: settings are read only at start");
        }
    });
    let mut next = async move || {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(async move {
        next().await;
        tokio::spawn(async move {
            next().await;
            tracing::warn!("stopped at once by a second signal");
            telemetry::close_log();
            std::process::exit(0);
        });
    })
}
