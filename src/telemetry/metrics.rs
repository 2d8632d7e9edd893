//! The metrics, for Prometheus. Labels have a bounded set of values: route templates, statuses, and
//! names that this program defines.
//!
//! To add a metric, add a field to [`Metrics`] and a line to [`Metrics::new`], which names and
//! explains it. To add a value that is read on demand, add a field to [`Readings`] and a line to
//! [`Metrics::render`]. Write a method only if it changes more than one metric.

use std::{
    array,
    borrow::Cow,
    mem,
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Metric, Registry, Unit},
};

use super::{
    exposition::{Exposition, to_prometheus},
    log::dropped_lines,
};

/// The prefix of every metric's name.
const PREFIX: &str = "imagesvc";

/// In seconds: from an answer out of the cache to a request at its deadline.
const REQUEST_BUCKETS: [f64; 12] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The service's metrics.
#[derive(Debug)]
pub struct Metrics {
    requests: Labelled<Counter, 2>,
    request_seconds: Labelled<Histogram, 1>,
    in_flight: Gauge,
    upstream: Labelled<Counter, 2>,
    upstream_seconds: Labelled<Histogram, 1>,
    /// Retried calls to NVIDIA, by operation.
    pub retries: Labelled<Counter, 1>,
    /// Returned embeddings, by where they came from.
    pub cache_lookups: Labelled<Counter, 1>,
    shed: Labelled<Counter, 1>,
    /// Attempts to decode a picture, by outcome.
    pub decodes: Labelled<Counter, 1>,
    saved: Counter,
    saved_bytes: Counter,
    /// Old pictures that were removed.
    pub removed: Counter,
    free_bytes: Gauge<u64, AtomicU64>,
    registry: Registry,
}

/// Values that are read when somebody asks for the metrics.
#[derive(Debug, Clone, Copy)]
pub struct Readings {
    /// Free bytes on the disk of the downloads folder, if known.
    pub free_bytes: Option<u64>,
    /// Free inodes on that disk, if known and if their number is fixed.
    pub free_inodes: Option<u64>,
    /// The memory that bodies take, in bytes.
    pub buffered_bytes: u64,
    /// Received pictures at work.
    pub pictures_at_work: u64,
    /// Pictures that wait for their call to NVIDIA.
    pub pictures_waiting: u64,
    /// Tasks of the runtime that have not ended.
    pub tasks: u64,
}

/// Counts a request as in flight until dropped.
#[derive(Debug)]
pub struct InFlightGuard(Gauge);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Creates metrics that start at zero.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running build", build);
        let to = &mut registry;
        Arc::new(Self {
            requests: counters(to, "requests", "Requests by route and status", ["route", "status"]),
            request_seconds: histograms(
                to,
                "request_duration",
                "Time from a request's header to its answer",
                ["route"],
            ),
            in_flight: plain(to, "requests_in_flight", "Requests being answered"),
            upstream: counters(
                to,
                "upstream_calls",
                "Calls to NVIDIA by operation and outcome",
                ["operation", "outcome"],
            ),
            upstream_seconds: histograms(
                to,
                "upstream_call_duration",
                "Duration of one call to NVIDIA",
                ["operation"],
            ),
            retries: counters(
                to,
                "upstream_retries",
                "Calls to NVIDIA that were retried",
                ["operation"],
            ),
            cache_lookups: counters(
                to,
                "cache_lookups",
                "Embeddings returned, by where they came from; miss and bypass were paid for",
                ["outcome"],
            ),
            shed: counters(
                to,
                "requests_shed",
                "Requests refused because of overload, by the exhausted resource",
                ["reason"],
            ),
            decodes: counters(
                to,
                "decodes",
                "Attempts to decode a picture, by outcome; refused means that the picture is at fault",
                ["outcome"],
            ),
            saved: plain(to, "pictures_saved", "Pictures saved"),
            saved_bytes: in_bytes(to, "pictures_saved", "Bytes of pictures saved"),
            removed: plain(
                to,
                "pictures_removed",
                "Pictures removed because of their age or the size limit",
            ),
            free_bytes: in_bytes(
                to,
                "downloads_free",
                "Free bytes on the disk of the downloads folder",
            ),
            registry,
        })
    }

    /// Starts the counter of these requests at 0. An alert cannot see the first increase of a
    /// counter that appears with the value 1.
    pub fn initialize_requests(&self, route: &str, status: &str) {
        let _ = self.requests.with([route.to_owned(), status.to_owned()]);
    }

    /// Starts the counter of these calls to NVIDIA at 0, for the same reason.
    pub fn initialize_upstream_calls(&self, operation: &'static str, status: u16) {
        let _ = self.upstream.with([operation.into(), Cow::from(status.to_string())]);
    }

    /// Counts the start of a request.
    pub fn start_request(&self) -> InFlightGuard {
        self.in_flight.inc();
        InFlightGuard(self.in_flight.clone())
    }

    /// Counts the end of a request.
    pub fn record_request(&self, route: &str, status: u16, duration: Duration) {
        self.requests.with([route.to_owned(), status.to_string()]).inc();
        self.request_seconds.with([route.to_owned()]).observe(duration.as_secs_f64());
    }

    /// Counts a call to NVIDIA, with its status or without an answer.
    pub fn record_upstream_call(
        &self,
        operation: &'static str,
        status: Option<u16>,
        duration: Duration,
    ) {
        let outcome = status.map_or(Cow::from("no_answer"), |status| status.to_string().into());
        self.upstream.with([operation.into(), outcome]).inc();
        self.upstream_seconds.with([operation]).observe(duration.as_secs_f64());
    }

    /// Counts a request that was refused because of overload.
    pub fn record_shed(&self, reason: &'static str) {
        self.shed.with([reason]).inc();
    }

    /// Counts a saved picture.
    pub fn record_saved(&self, bytes: u64) {
        self.saved.inc();
        self.saved_bytes.inc_by(bytes);
    }

    /// Renders all metrics as text.
    ///
    /// # Errors
    /// Never in practice: writing to a string cannot fail.
    pub fn render(
        &self,
        readings: Readings,
        exposition: Exposition,
    ) -> Result<String, std::fmt::Error> {
        let Readings {
            free_bytes,
            free_inodes,
            buffered_bytes,
            pictures_at_work,
            pictures_waiting,
            tasks,
        } = readings;
        // If the free space is unknown now, the last known value stays.
        if let Some(free_bytes) = free_bytes {
            self.free_bytes.set(free_bytes);
        }
        let mut now = Registry::with_prefix(PREFIX);
        // Left out if unknown, because an alert would take 0 for a full disk.
        if let Some(free_inodes) = free_inodes {
            now.register(
                "downloads_free_inodes",
                "Free inodes on the disk of the downloads folder",
                ConstGauge::new(free_inodes),
            );
        }
        now.register_with_unit(
            "buffered",
            "Memory in use for pictures that are being received or at work",
            Unit::Bytes,
            ConstGauge::new(buffered_bytes),
        );
        now.register(
            "pictures_at_work",
            "Received pictures whose request or call to NVIDIA has not ended",
            ConstGauge::new(pictures_at_work),
        );
        now.register(
            "pictures_waiting",
            "Pictures that wait for their call to NVIDIA",
            ConstGauge::new(pictures_waiting),
        );
        now.register(
            "tasks",
            "Tasks that have not ended: connections, calls, and background tasks",
            ConstGauge::new(tasks),
        );
        now.register(
            "log_lines_dropped",
            "Log lines dropped because nobody read the log",
            ConstCounter::new(dropped_lines()),
        );
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &now)?;
        encode_eof(&mut text)?;
        Ok(match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Prometheus => to_prometheus(&text),
        })
    }
}

/// Each label's name and value.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// Metrics of one name that differ in their labels' values.
#[derive(Debug)]
pub struct Labelled<M, const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels<N>, M>,
}

impl<M: Clone, const N: usize> Labelled<M, N> {
    /// The metric with these label values, in the order of the labels. It exists from the first
    /// call on.
    pub fn with(&self, values: [impl Into<Cow<'static, str>>; N]) -> impl Deref<Target = M> {
        let mut values = values.map(Into::into);
        let labels = array::from_fn(|at| (self.labels[at], mem::take(&mut values[at])));
        self.family.get_or_create(&labels)
    }
}

fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: [&'static str; N],
) -> Labelled<Counter, N> {
    let family = Family::default();
    registry.register(name, help, Family::clone(&family));
    Labelled { labels, family }
}

fn histograms<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    labels: [&'static str; N],
) -> Labelled<Histogram, N> {
    let family: Family<_, _> = Family::new_with_constructor(|| Histogram::new(REQUEST_BUCKETS));
    registry.register_with_unit(name, help, Unit::Seconds, family.clone());
    Labelled { labels, family }
}

/// A metric without labels.
fn plain<M: Metric + Default + Clone>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// A metric without labels, in bytes.
fn in_bytes<M: Metric + Default + Clone>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}
