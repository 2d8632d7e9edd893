//! Measures what a service uses, so that long tests can show that nothing leaks.

use std::time::Duration;

use super::{ServiceProcess, children_of, metric};

/// What a service uses while it is idle.
#[derive(Debug, Clone, Copy)]
pub struct ResourceUsage {
    /// The resident memory, in bytes.
    pub memory: u64,
    /// The number of open files and sockets.
    pub files: usize,
    /// The number of Tokio's tasks.
    pub tasks: f64,
    /// The number of decoder processes.
    pub children: usize,
}

impl ResourceUsage {
    /// Waits until the service is idle, and measures what it uses. The service is idle if no
    /// picture is at work, and if the numbers of files and tasks did not change during a `pause`.
    /// Panics if the service is not idle after 20 pauses.
    pub async fn when_idle(service: &ServiceProcess, pause: Duration) -> Self {
        let mut last = (0, 0.0);
        for _ in 0..20 {
            tokio::time::sleep(pause).await;
            let response = reqwest::get(service.url("/metrics")).await.unwrap();
            let metrics = response.text().await.unwrap();
            let (files, tasks) = (service.open_files(), metric(&metrics, "imagesvc_tasks"));
            if (files, tasks) == last && metric(&metrics, "imagesvc_pictures_at_work") == 0.0 {
                let children = children_of(service.id()).len();
                return Self { memory: service.memory(), files, tasks, children };
            }
            last = (files, tasks);
        }
        panic!("the service should become idle, but still had {last:?} files and tasks");
    }

    /// Asserts that the memory has grown by at most `max_growth` bytes since `before`, and that no
    /// decoder process ran then or runs now. Up to two more files and two more tasks are allowed, because
    /// idle connections may open and close at any time.
    pub fn assert_no_more_than(&self, before: &Self, max_growth: u64) {
        assert!(self.files <= before.files + 2, "{before:?} {self:?}");
        assert!(self.tasks <= before.tasks + 2.0, "{before:?} {self:?}");
        assert_eq!(
            (before.children, self.children),
            (0, 0),
            "no decoder process should be running"
        );
        assert!(self.memory <= before.memory + max_growth, "{before:?} {self:?}");
    }
}
