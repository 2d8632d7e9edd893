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
    /// The memory in use for pictures that are being received or processed, in bytes.
    pub buffered_bytes: u64,
    /// The number of received pictures whose request or call to NVIDIA has not ended.
    pub pictures_at_work: u64,
    /// The number of pictures whose call to NVIDIA may not start yet.
    pub pictures_waiting: u64,
    /// The number of the runtime's tasks that have not ended.
    pub tasks: u64,
}

impl Readings {
    /// A registry of these values and of the dropped log lines. Their names begin with `prefix`.
    pub(super) fn into_registry(self, prefix: &str) -> Registry {
        let Self {
            free_bytes,
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
        // There is no metric for an unknown value: an alert would take a 0 for a full disk.
        if let Some(free_bytes) = free_bytes {
            let help = "Free bytes on the disk of the downloads folder";
            let gauge = ConstGauge::new(free_bytes);
            registry.register_with_unit("downloads_free", help, Unit::Bytes, gauge);
        }
        optional_gauge(
            &mut registry,
            "downloads_free_inodes",
            "Free inodes on the disk of the downloads folder",
            free_inodes,
        );
        optional_gauge(
            &mut registry,
            "bucket_writable",
            "Whether the bucket can be written to",
            bucket_writable,
        );
        optional_gauge(
            &mut registry,
            "bucket_readable",
            "Whether the bucket can be read",
            bucket_readable,
        );
        optional_gauge(
            &mut registry,
            "valkey_usable",
            "Whether the Valkey can be used",
            valkey_usable,
        );
        optional_gauge(
            &mut registry,
            "replicas",
            "Replicas that use the Valkey, as far as this one knows",
            replicas,
        );
        optional_gauge(
            &mut registry,
            "call_limit",
            "Calls to NVIDIA per minute that this replica may make now",
            call_limit,
        );
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
            "Pictures whose call to NVIDIA may not start yet",
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

/// Registers a gauge if its value is known.
fn optional_gauge(registry: &mut Registry, name: &str, help: &str, value: Option<impl Into<u64>>) {
    if let Some(value) = value {
        registry.register(name, help, ConstGauge::new(value.into()));
    }
}
