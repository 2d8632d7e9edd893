//! What a service holds, and must not hold more of after a long run.

use std::time::Duration;

use super::{Child, children_of, metric};

/// What must not grow.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub memory: u64,
    pub files: usize,
    pub tasks: f64,
    pub children: usize,
}

impl Held {
    /// Waits until the service is idle, connections and detached calls included.
    pub async fn when_idle(child: &Child, pause: Duration) -> Self {
        let read =
            || async { reqwest::get(child.url("/metrics")).await.unwrap().text().await.unwrap() };
        let mut last = (0, 0.0);
        for _ in 0..20 {
            tokio::time::sleep(pause).await;
            let text = read().await;
            let now = (child.open_files(), metric(&text, "imagesvc_tasks"));
            if now == last && metric(&text, "imagesvc_pictures_at_work") == 0.0 {
                let children = children_of(child.id()).len();
                return Self { memory: child.memory(), files: now.0, tasks: now.1, children };
            }
            last = now;
        }
        panic!("it does not come to rest: {last:?}");
    }

    /// That a later look found no more, but for some memory. An idle connection is a file and a task,
    /// and comes and goes by itself.
    pub fn assert_no_more_than(&self, before: &Self, growth: u64) {
        assert!(self.files <= before.files + 2, "{before:?} {self:?}");
        assert!(self.tasks <= before.tasks + 2.0, "{before:?} {self:?}");
        assert_eq!((before.children, self.children), (0, 0));
        assert!(self.memory <= before.memory + growth, "{before:?} {self:?}");
    }
}
