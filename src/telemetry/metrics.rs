//! What is counted, for Prometheus. Labels are bounded: routes are templates, statuses numbers,
//! operations names of this program.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::nvidia::Operation;

/// Seconds: from a cache's answer to a request's deadline.
const REQUEST_BUCKETS: [f64; 12] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The service's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    upstream: Family<UpstreamLabels, Counter>,
    upstream_seconds: Family<OperationLabels, Histogram, fn() -> Histogram>,
    retries: Family<OperationLabels, Counter>,
    cache_lookups: Family<CacheLabels, Counter>,
    shed: Family<ShedLabels, Counter>,
    decodes: Family<DecodeLabels, Counter>,
    saved: Counter,
    saved_bytes: Counter,
    removed: Counter,
    free_bytes: Gauge<u64, AtomicU64>,
    buffered_bytes: Gauge<u64, AtomicU64>,
    at_work: Gauge<u64, AtomicU64>,
    waiting: Gauge<u64, AtomicU64>,
    tasks: Gauge<u64, AtomicU64>,
}

/// What is read off when somebody asks.
#[derive(Debug, Clone, Copy)]
pub struct Readings {
    /// Free bytes on the disk of the downloads folder, if they are known.
    pub free_bytes: Option<u64>,
    /// Bytes of memory that bodies take.
    pub buffered_bytes: u64,
    /// Received pictures that are at work.
    pub pictures_at_work: u64,
    /// Pictures that wait for their call to NVIDIA.
    pub pictures_waiting: u64,
    /// Tasks of the runtime that have not ended.
    pub tasks: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    operation: &'static str,
    outcome: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecodeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShedLabels {
    reason: &'static str,
}

/// A request that is being answered; it counts as in flight until dropped.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn histogram() -> Histogram {
    Histogram::new(REQUEST_BUCKETS)
}

impl Metrics {
    /// Metrics that start at zero.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("imagesvc"),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(histogram),
            in_flight: Gauge::default(),
            upstream: Family::default(),
            upstream_seconds: Family::new_with_constructor(histogram),
            retries: Family::default(),
            cache_lookups: Family::default(),
            shed: Family::default(),
            decodes: Family::default(),
            saved: Counter::default(),
            saved_bytes: Counter::default(),
            removed: Counter::default(),
            free_bytes: Gauge::default(),
            buffered_bytes: Gauge::default(),
            at_work: Gauge::default(),
            waiting: Gauge::default(),
            tasks: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "build",
            "The running build",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register("requests", "Requests by route and status", metrics.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "From a request's header to its answer",
            Unit::Seconds,
            metrics.request_seconds.clone(),
        );
        registry.register(
            "requests_in_flight",
            "Requests being answered",
            metrics.in_flight.clone(),
        );
        registry.register(
            "upstream_calls",
            "Calls to NVIDIA by operation and outcome",
            metrics.upstream.clone(),
        );
        registry.register_with_unit(
            "upstream_call_duration",
            "One call to NVIDIA",
            Unit::Seconds,
            metrics.upstream_seconds.clone(),
        );
        registry.register(
            "upstream_retries",
            "Calls to NVIDIA that were tried again",
            metrics.retries.clone(),
        );
        registry.register(
            "cache_lookups",
            "Embeddings given out, by where they came from; miss and bypass were paid for",
            metrics.cache_lookups.clone(),
        );
        registry.register(
            "requests_shed",
            "Requests turned away because there was too much to do, by what there was too much of",
            metrics.shed.clone(),
        );
        registry.register(
            "decodes",
            "Pictures decoded, each in a process of its own, by outcome; refused is the picture's fault",
            metrics.decodes.clone(),
        );
        registry.register("pictures_saved", "Pictures saved", metrics.saved.clone());
        registry.register_with_unit(
            "pictures_saved",
            "Bytes of pictures saved",
            Unit::Bytes,
            metrics.saved_bytes.clone(),
        );
        registry.register(
            "pictures_removed",
            "Pictures removed because they were too old or too many",
            metrics.removed.clone(),
        );
        registry.register_with_unit(
            "downloads_free",
            "Free bytes on the disk of the downloads folder",
            Unit::Bytes,
            metrics.free_bytes.clone(),
        );
        registry.register_with_unit(
            "buffered",
            "Memory that bodies take",
            Unit::Bytes,
            metrics.buffered_bytes.clone(),
        );
        registry.register(
            "pictures_at_work",
            "Received pictures whose request or call has not ended",
            metrics.at_work.clone(),
        );
        registry.register(
            "pictures_waiting",
            "Pictures that wait for their call to NVIDIA",
            metrics.waiting.clone(),
        );
        registry.register(
            "tasks",
            "Tasks that have not ended: connections, calls, and what goes on for ever",
            metrics.tasks.clone(),
        );
        Arc::new(metrics)
    }

    /// A request begins.
    pub fn enter(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A request ended.
    pub fn request(&self, route: &str, status: u16, duration: Duration) {
        let route = route.to_owned();
        self.requests.get_or_create(&RequestLabels { route: route.clone(), status }).inc();
        self.request_seconds.get_or_create(&RouteLabels { route }).observe(duration.as_secs_f64());
    }

    /// A call to NVIDIA ended, with a status or without an answer.
    pub fn upstream_call(&self, operation: Operation, status: Option<u16>, duration: Duration) {
        let outcome = status.map_or_else(|| "no_answer".into(), |status| status.to_string());
        let operation = operation.name();
        self.upstream.get_or_create(&UpstreamLabels { operation, outcome }).inc();
        self.upstream_seconds
            .get_or_create(&OperationLabels { operation })
            .observe(duration.as_secs_f64());
    }

    /// A call to NVIDIA is tried again.
    pub fn retry(&self, operation: Operation) {
        self.retries.get_or_create(&OperationLabels { operation: operation.name() }).inc();
    }

    /// An embedding is given out.
    pub fn cache_lookup(&self, outcome: &'static str) {
        self.cache_lookups.get_or_create(&CacheLabels { outcome }).inc();
    }

    /// A request is turned away.
    pub fn shed(&self, reason: &'static str) {
        self.shed.get_or_create(&ShedLabels { reason }).inc();
    }

    /// A picture was decoded, or not.
    pub fn decode(&self, outcome: &'static str) {
        self.decodes.get_or_create(&DecodeLabels { outcome }).inc();
    }

    /// A picture was saved.
    pub fn saved_bytes(&self, bytes: u64) {
        self.saved.inc();
        self.saved_bytes.inc_by(bytes);
    }

    /// Old pictures were removed.
    pub fn removed(&self, pictures: u64) {
        self.removed.inc_by(pictures);
    }

    /// All of it as text.
    ///
    /// # Errors
    /// Never in practice: writing to a string does not fail.
    pub fn render(&self, readings: Readings) -> Result<String, std::fmt::Error> {
        if let Some(free_bytes) = readings.free_bytes {
            self.free_bytes.set(free_bytes);
        }
        self.buffered_bytes.set(readings.buffered_bytes);
        self.at_work.set(readings.pictures_at_work);
        self.waiting.set(readings.pictures_waiting);
        self.tasks.set(readings.tasks);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
