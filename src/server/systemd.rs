//! Reports the service's state to systemd, if the unit has `Type=notify`.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

/// Sends a state to systemd. Does nothing if systemd has not set `NOTIFY_SOCKET`.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot report the service's state to systemd");
    }
}

/// Notifies systemd's watchdog regularly until this value is dropped.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// `None` if the unit has no `WatchdogSec=`.
    _task: Option<AbortOnDropHandle<()>>,
}

impl Watchdog {
    /// Starts to notify the watchdog if systemd has set the environment variables for it. Must be
    /// called inside the Tokio runtime.
    pub(super) fn from_environment() -> Self {
        let Some(timeout) = sd_notify::watchdog_enabled() else { return Self { _task: None } };
        // systemd recommends half of the timeout.
        let notify_forever = call_every(timeout / 2, || notify(&[NotifyState::Watchdog]));
        Self { _task: Some(AbortOnDropHandle::new(tokio::spawn(notify_forever))) }
    }
}

/// Calls `action` once in each period, forever. Callers must spawn this, so that it runs on the runtime's
/// worker threads. If all workers hang, the calls stop: systemd's watchdog then restarts the service.
async fn call_every(period: Duration, action: impl Fn()) {
    // `interval` panics if the period is zero.
    let mut ticks = interval(period.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        action();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, mpsc};

    use super::*;

    #[test]
    fn the_watchdog_is_not_notified_while_all_workers_hang() {
        const WORKERS: usize = 2;
        const PERIOD: Duration = Duration::from_millis(5);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_time()
            .build()
            .unwrap();
        let (sender, notifications) = mpsc::channel();
        runtime.spawn(call_every(PERIOD, move || sender.send(()).unwrap()));
        // While no worker hangs, notifications arrive.
        notifications.recv().unwrap();
        notifications.recv().unwrap();
        let all_hang = Arc::new(Barrier::new(WORKERS + 1));
        let all_continue = Arc::new(Barrier::new(WORKERS + 1));
        for _ in 0..WORKERS {
            let (all_hang, all_continue) = (Arc::clone(&all_hang), Arc::clone(&all_continue));
            runtime.spawn(async move {
                all_hang.wait();
                all_continue.wait();
            });
        }
        all_hang.wait();
        // Notifications from before all workers hung do not count.
        notifications.try_iter().for_each(drop);
        assert!(
            notifications.recv_timeout(PERIOD * 20).is_err(),
            "no notification should arrive while all workers hang"
        );
        all_continue.wait();
        notifications.recv().unwrap(); // notifications arrive again
        runtime.shutdown_background();
    }
}
