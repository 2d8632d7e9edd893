//! Tells systemd how the service does, if systemd asked to be told (`Type=notify`).

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

/// Says it, or says nothing where nobody listens.
pub(super) fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told how the service does");
    }
}

/// Feeds the watchdog until dropped, twice as often as it asks for.
#[derive(Debug)]
pub(super) struct Watchdog {
    _feeding: Option<AbortOnDropHandle<()>>,
}

impl Watchdog {
    /// As the environment says; it must be made within the runtime.
    pub(super) fn from_environment() -> Self {
        let feeding = sd_notify::watchdog_enabled().map(|patience| {
            let feeding = feed(patience / 2, || say(&[NotifyState::Watchdog]));
            AbortOnDropHandle::new(tokio::spawn(feeding))
        });
        Self { _feeding: feeding }
    }
}

/// Has no end. It is a task of its own, on a worker of the runtime: where the workers hang, and no
/// request is answered, nothing is fed either, whatever still runs on the main thread.
async fn feed(period: Duration, say: impl Fn()) {
    let mut interval = interval(period.max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        say();
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
