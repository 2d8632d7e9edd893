//! Waits for the signals that end a run.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::telemetry;

/// The exit code of an interrupted run: that of SIGINT (128 + 2), also after SIGTERM.
pub(super) const EXIT_CODE: u8 = 130;

/// Waits for SIGINT or SIGTERM. Contains `None` in tests, and after [`Interrupt::exit_at_next_signal`].
#[derive(Debug)]
pub(super) struct Interrupt(Option<(Signal, Signal)>);

impl Interrupt {
    /// An interrupt that never receives a signal.
    #[cfg(test)]
    pub(super) fn never() -> Self {
        Self(None)
    }

    /// Installs the signal handlers. After this, neither signal ends the process by itself.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn install() -> io::Result<Self> {
        Ok(Self(Some((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))))
    }

    /// Waits for a signal, or for ever if this contains `None`.
    pub(super) async fn wait(&mut self) {
        match &mut self.0 {
            Some(signals) => next_signal(signals).await,
            None => std::future::pending().await,
        }
    }

    /// Makes the next signal end the process. After this, [`Self::wait`] waits for ever.
    pub(super) fn exit_at_next_signal(&mut self) {
        if let Some(mut signals) = self.0.take() {
            tokio::spawn(async move {
                next_signal(&mut signals).await;
                telemetry::close_log();
                std::process::exit(EXIT_CODE.into());
            });
        }
    }
}

async fn next_signal((interrupt, terminate): &mut (Signal, Signal)) {
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
}
