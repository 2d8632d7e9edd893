//! The signals that stop the service.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use crate::telemetry;

/// Installs handlers for SIGTERM, SIGINT and SIGHUP. The returned future completes after the first
/// SIGTERM or SIGINT. A second SIGTERM or SIGINT ends the process at once. SIGHUP is only logged.
///
/// # Errors
/// The system's error if a signal handler cannot be installed.
pub fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        // Without a handler, SIGHUP would end the process. It is sent when a terminal closes, or by
        // operators who expect that it reloads the settings.
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP changes nothing: settings are read only at start");
        }
    });
    let mut next_signal = async move || {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(async move {
        next_signal().await;
        tokio::spawn(async move {
            next_signal().await;
            tracing::warn!("stopped at once by a second signal");
            telemetry::close_log();
            std::process::exit(0);
        });
    })
}
