//! Reports the service's state to systemd, if systemd asks for it (`Type=notify`).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

/// Sends a state to systemd; does nothing if systemd does not listen.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot report the service's state to systemd");
    }
}

/// Feeds systemd's watchdog until dropped, twice as often as systemd demands.
#[derive(Debug)]
pub(super) struct Watchdog {
    _feeding: Option<AbortOnDropHandle<()>>,
}

impl Watchdog {
    /// Starts feeding if the environment asks for it. Must be called within the runtime.
    pub(super) fn from_environment() -> Self {
        let feeding = sd_notify::watchdog_enabled().map(|patience| {
            let feeding = feed(patience / 2, || notify(&[NotifyState::Watchdog]));
            AbortOnDropHandle::new(tokio::spawn(feeding))
        });
        Self { _feeding: feeding }
    }
}

/// Feeds the watchdog for ever. It runs as a task on the runtime's workers, so that it stops when
/// the workers hang and no request is answered, even if the main thread still runs.
async fn feed(period: Duration, notify: impl Fn()) {
    let mut interval = interval(period.max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        notify();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier, mpsc};

    use super::*;

    #[test]
    fn a_runtime_whose_workers_all_hang_is_not_reported_as_alive() {
        const WORKERS: usize = 2;
        const PERIOD: Duration = Duration::from_millis(5);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_time()
            .build()
            .unwrap();
        let (sender, fed) = mpsc::channel();
        runtime.spawn(feed(PERIOD, move || sender.send(()).unwrap()));
        fed.recv().unwrap();
        fed.recv().unwrap();
        let [hung, freed] = [(); 2].map(|()| Arc::new(Barrier::new(WORKERS + 1)));
        for _ in 0..WORKERS {
            let (hung, freed) = (Arc::clone(&hung), Arc::clone(&freed));
            runtime.spawn(async move {
                hung.wait();
                freed.wait();
            });
        }
        hung.wait();
        fed.try_iter().for_each(drop);
        assert!(fed.recv_timeout(PERIOD * 20).is_err(), "it was fed");
        freed.wait();
        fed.recv().unwrap();
        runtime.shutdown_background();
    }
}
