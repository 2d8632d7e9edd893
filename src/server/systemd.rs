//! Tells systemd how the service does, if systemd asked to be told (`Type=notify`).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Says it, or says nothing where nobody listens.
pub(super) fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told how the service does");
    }
}

/// When the watchdog is to be told that the service is alive: twice as often as it asks for.
pub(super) struct Watchdog(Option<Interval>);

impl Watchdog {
    /// As the environment says; it must be made within the runtime.
    pub(super) fn from_environment() -> Self {
        Self(sd_notify::watchdog_enabled().map(|patience| {
            let mut interval = interval((patience / 2).max(Duration::from_millis(1)));
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
            interval
        }))
    }

    /// Ends when it is time; never, if there is no watchdog.
    pub(super) async fn is_due(&mut self) {
        match &mut self.0 {
            Some(interval) => {
                interval.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}
