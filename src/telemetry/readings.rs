//! The values that are read only when the metrics are requested.

use prometheus_client::{
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use super::log::dropped_lines;

/// Values that are read when the metrics are requested.
#[derive(Debug, Clone, Copy)]
pub struct Readings {
    /// Free bytes on the disk of the downloads folder, if known.
    pub free_bytes: Option<u64>,
    /// Free inodes on that disk, if known and if the number of inodes is fixed.
    pub free_inodes: Option<u64>,
    /// Whether the bucket can be written to; `None` without a bucket.
    pub bucket_writable: Option<bool>,
    /// Whether the bucket can be read; `None` without a bucket.
    pub bucket_readable: Option<bool>,
    /// Whether the Valkey can be used; `None` without a Valkey.
    pub valkey_usable: Option<bool>,
    /// How many replicas use the Valkey, as far as is known; `None` without a Valkey.
    pub replicas: Option<u32>,
    /// The most calls to NVIDIA per minute that this replica may make now; `None` without a limit.
    pub call_limit: Option<u64>,
    /// The memory in use for pictures that are received or processed, in bytes.
    pub buffered_bytes: u64,
    /// The number of received pictures whose request or call to NVIDIA has not ended.
    pub pictures_at_work: u64,
    /// The number of pictures that wait for their call to NVIDIA.
    pub pictures_waiting: u64,
    /// The number of the runtime's tasks that have not ended.
    pub tasks: u64,
}

impl Readings {
    /// A registry of these values and of the dropped log lines. Their names begin with `prefix`.
    /// `free_bytes` is not in it: while the value is unknown, its metric keeps the last known one.
    pub(super) fn into_registry(self, prefix: &str) -> Registry {
        let Self {
            free_bytes: _,
            free_inodes,
            bucket_writable,
            bucket_readable,
            valkey_usable,
            replicas,
            call_limit,
            buffered_bytes,
            pictures_at_work,
            pictures_waiting,
            tasks,
        } = self;
        let mut registry = Registry::with_prefix(prefix);
        // If the number of inodes is unknown, there is no such metric: an alert would take a 0 for a
        // full disk.
        if let Some(free_inodes) = free_inodes {
            registry.register(
                "downloads_free_inodes",
                "Free inodes on the disk of the downloads folder",
                ConstGauge::new(free_inodes),
            );
        }
        if let Some(is_writable) = bucket_writable {
            registry.register(
                "bucket_writable",
                "Whether the bucket can be written to",
                ConstGauge::new(u64::from(is_writable)),
            );
        }
        if let Some(is_readable) = bucket_readable {
            registry.register(
                "bucket_readable",
                "Whether the bucket can be read",
                ConstGauge::new(u64::from(is_readable)),
            );
        }
        if let Some(is_usable) = valkey_usable {
            registry.register(
                "valkey_usable",
                "Whether the Valkey can be used",
                ConstGauge::new(u64::from(is_usable)),
            );
        }
        if let Some(replicas) = replicas {
            registry.register(
                "replicas",
                "Replicas that use the Valkey, as far as this one knows",
                ConstGauge::new(u64::from(replicas)),
            );
        }
        if let Some(call_limit) = call_limit {
            registry.register(
                "call_limit",
                "Calls to NVIDIA per minute that this replica may make now",
                ConstGauge::new(call_limit),
            );
        }
        registry.register_with_unit(
            "buffered",
            "Memory in use for pictures that are received or processed",
            Unit::Bytes,
            ConstGauge::new(buffered_bytes),
        );
        registry.register(
            "pictures_at_work",
            "Received pictures whose request or call to NVIDIA has not ended",
            ConstGauge::new(pictures_at_work),
        );
        registry.register(
            "pictures_waiting",
            "Pictures that wait for their call to NVIDIA",
            ConstGauge::new(pictures_waiting),
        );
        registry.register(
            "tasks",
            "Tasks that have not ended: connections, calls, and background tasks",
            ConstGauge::new(tasks),
        );
        registry.register(
            "log_lines_dropped",
            "Log lines dropped because the log was not read fast enough",
            ConstCounter::new(dropped_lines()),
        );
        registry
    }
}
