//! What is counted, for Prometheus. Labels are bounded: routes are templates, statuses numbers,
//! everything else names of this program.
//!
//! A new metric is a field of [`Metrics`] and a line in [`Metrics::new`], which names and explains
//! it; a new reading is a field of [`Readings`] and a line in [`Metrics::render`]. A method is for
//! what changes more than one metric.

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

use super::log::dropped_lines;

/// What every metric's name begins with.
const PREFIX: &str = "imagesvc";

/// Seconds: from a cache's answer to a request's deadline.
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
    /// Calls to NVIDIA that are tried again, by operation.
    pub retries: Labelled<Counter, 1>,
    /// Embeddings given out, by where they came from.
    pub cache_lookups: Labelled<Counter, 1>,
    shed: Labelled<Counter, 1>,
    /// Pictures that were decoded, or not, by outcome.
    pub decodes: Labelled<Counter, 1>,
    saved: Counter,
    saved_bytes: Counter,
    /// Old pictures that were removed.
    pub removed: Counter,
    free_bytes: Gauge<u64, AtomicU64>,
    registry: Registry,
}

/// What is read off when somebody asks.
#[derive(Debug, Clone, Copy)]
pub struct Readings {
    /// Free bytes on the disk of the downloads folder, if they are known.
    pub free_bytes: Option<u64>,
    /// Free inodes there, if they are known and there is a fixed number of them.
    pub free_inodes: Option<u64>,
    /// Bytes of memory that bodies take.
    pub buffered_bytes: u64,
    /// Received pictures that are at work.
    pub pictures_at_work: u64,
    /// Pictures that wait for their call to NVIDIA.
    pub pictures_waiting: u64,
    /// Tasks of the runtime that have not ended.
    pub tasks: u64,
}

/// A request that is being answered; it counts as in flight until dropped.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Metrics that start at zero.
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
                "From a request's header to its answer",
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
                "One call to NVIDIA",
                ["operation"],
            ),
            retries: counters(
                to,
                "upstream_retries",
                "Calls to NVIDIA that were tried again",
                ["operation"],
            ),
            cache_lookups: counters(
                to,
                "cache_lookups",
                "Embeddings given out, by where they came from; miss and bypass were paid for",
                ["outcome"],
            ),
            shed: counters(
                to,
                "requests_shed",
                "Requests turned away because there was too much to do, by what there was too much of",
                ["reason"],
            ),
            decodes: counters(
                to,
                "decodes",
                "Pictures decoded, each in a process of its own, by outcome; refused is the picture's fault",
                ["outcome"],
            ),
            saved: plain(to, "pictures_saved", "Pictures saved"),
            saved_bytes: in_bytes(to, "pictures_saved", "Bytes of pictures saved"),
            removed: plain(
                to,
                "pictures_removed",
                "Pictures removed because they were too old or too many",
            ),
            free_bytes: in_bytes(
                to,
                "downloads_free",
                "Free bytes on the disk of the downloads folder",
            ),
            registry,
        })
    }

    /// A request begins.
    pub fn enter(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A request ended.
    pub fn request(&self, route: &str, status: u16, duration: Duration) {
        self.requests.with([route.to_owned(), status.to_string()]).inc();
        self.request_seconds.with([route.to_owned()]).observe(duration.as_secs_f64());
    }

    /// A call to NVIDIA ended, with a status or without an answer.
    pub fn upstream_call(&self, operation: &'static str, status: Option<u16>, duration: Duration) {
        let outcome = status.map_or(Cow::from("no_answer"), |status| status.to_string().into());
        self.upstream.with([operation.into(), outcome]).inc();
        self.upstream_seconds.with([operation]).observe(duration.as_secs_f64());
    }

    /// A request is turned away.
    pub fn shed(&self, reason: &'static str) {
        self.shed.with([reason]).inc();
    }

    /// A picture was saved.
    pub fn saved_bytes(&self, bytes: u64) {
        self.saved.inc();
        self.saved_bytes.inc_by(bytes);
    }

    /// All of it as text.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn render(&self, readings: Readings) -> Result<String, std::fmt::Error> {
        let Readings {
            free_bytes,
            free_inodes,
            buffered_bytes,
            pictures_at_work,
            pictures_waiting,
            tasks,
        } = readings;
        // What is not known now is as it was known last.
        if let Some(free_bytes) = free_bytes {
            self.free_bytes.set(free_bytes);
        }
        let mut now = Registry::with_prefix(PREFIX);
        // Not at 0 where there is no such number: an alert would take that for a full disk.
        if let Some(free_inodes) = free_inodes {
            now.register(
                "downloads_free_inodes",
                "Free inodes on the disk of the downloads folder",
                ConstGauge::new(free_inodes),
            );
        }
        now.register_with_unit(
            "buffered",
            "Memory that bodies take",
            Unit::Bytes,
            ConstGauge::new(buffered_bytes),
        );
        now.register(
            "pictures_at_work",
            "Received pictures whose request or call has not ended",
            ConstGauge::new(pictures_at_work),
        );
        now.register(
            "pictures_waiting",
            "Pictures that wait for their call to NVIDIA",
            ConstGauge::new(pictures_waiting),
        );
        now.register(
            "tasks",
            "Tasks that have not ended: connections, calls, and what goes on for ever",
            ConstGauge::new(tasks),
        );
        now.register(
            "log_lines_dropped",
            "Lines of the log that were dropped because nobody read those before them",
            ConstCounter::new(dropped_lines()),
        );
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &now)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// Each label's name and value.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// Metrics of one name that differ by their labels' values.
#[derive(Debug)]
pub struct Labelled<M, const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels<N>, M>,
}

impl<M: Clone, const N: usize> Labelled<M, N> {
    /// The metric of these values, in the order of the labels; there from the first time on.
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

/// The same, of a number of bytes.
fn in_bytes<M: Metric + Default + Clone>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}
