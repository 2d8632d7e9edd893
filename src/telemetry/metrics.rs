//! The metrics, for Prometheus.
//!
//! The values of labels are route templates, statuses, and names that this program defines. Clients
//! cannot add values, so the number of series is bounded.
//!
//! To add a metric, add a field to [`Metrics`], and register it in [`Metrics::new`] with its name and
//! help. To add a value that is read only when the metrics are requested, add a field to
//! [`Readings`], and register it in `Readings::into_registry`.

use std::{array, borrow::Cow, mem, ops::Deref, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry, Unit},
};

use super::{
    exposition::{Exposition, to_prometheus},
    readings::Readings,
};

/// The prefix of every metric's name.
const PREFIX: &str = "imagesvc";

/// The upper bounds of the buckets for durations, in seconds. A request whose vector is cached takes
/// about 1 ms. By default, a request's deadline is 60 s.
const DURATION_BUCKETS: [f64; 12] =
    [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The service's metrics.
#[derive(Debug)]
pub struct Metrics {
    requests: Labelled<Counter, 2>,
    request_seconds: Labelled<Histogram, 1>,
    in_flight: Gauge,
    /// Calls to NVIDIA.
    upstream: Labelled<Counter, 2>,
    upstream_seconds: Labelled<Histogram, 1>,
    /// Retries of calls to NVIDIA, by operation.
    pub retries: Labelled<Counter, 1>,
    /// Returned embeddings, by where they come from. The metric has the older name `cache_lookups`.
    pub returned_embeddings: Labelled<Counter, 1>,
    /// Requests and connections that were refused because of overload.
    shed: Labelled<Counter, 1>,
    /// Attempts to decode a picture, by outcome.
    pub decodes: Labelled<Counter, 1>,
    bucket_requests: Labelled<Counter, 2>,
    bucket_request_seconds: Labelled<Histogram, 1>,
    valkey_commands: Labelled<Counter, 2>,
    valkey_command_seconds: Labelled<Histogram, 1>,
    saved_pictures: Counter,
    saved_bytes: Counter,
    /// Pictures that were removed because of their age or the size limit.
    pub removed_pictures: Counter,
    registry: Registry,
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
    /// Creates the metrics. Those with labels, except `build`, have no series yet.
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The running build", build);
        Arc::new(Self {
            requests: counters(
                &mut registry,
                "requests",
                "Requests by route and status",
                ["route", "status"],
            ),
            request_seconds: histograms(
                &mut registry,
                "request_duration",
                "Time from a request's header to its answer",
                ["route"],
            ),
            in_flight: unlabelled(&mut registry, "requests_in_flight", "Requests being answered"),
            upstream: counters(
                &mut registry,
                "upstream_calls",
                "Calls to NVIDIA by operation and outcome",
                ["operation", "outcome"],
            ),
            upstream_seconds: histograms(
                &mut registry,
                "upstream_call_duration",
                "Duration of one call to NVIDIA",
                ["operation"],
            ),
            retries: counters(
                &mut registry,
                "upstream_retries",
                "Retries of calls to NVIDIA",
                ["operation"],
            ),
            returned_embeddings: counters(
                &mut registry,
                "cache_lookups",
                "Embeddings returned, by where they came from; bypass means a request with no-cache; miss and bypass needed a call",
                ["outcome"],
            ),
            shed: counters(
                &mut registry,
                "requests_shed",
                "Requests refused because of overload, by the exhausted resource",
                ["reason"],
            ),
            decodes: counters(
                &mut registry,
                "decodes",
                "Attempts to decode a picture, by outcome; refused means that the picture is the cause of the failure",
                ["outcome"],
            ),
            bucket_requests: counters(
                &mut registry,
                "bucket_requests",
                "Requests to the bucket by operation and outcome; a request and its retries count once",
                ["operation", "outcome"],
            ),
            bucket_request_seconds: histograms(
                &mut registry,
                "bucket_request_duration",
                "Duration of one request to the bucket",
                ["operation"],
            ),
            valkey_commands: counters(
                &mut registry,
                "valkey_commands",
                "Commands to the Valkey by command and outcome",
                ["command", "outcome"],
            ),
            valkey_command_seconds: histograms(
                &mut registry,
                "valkey_command_duration",
                "Duration of one command to the Valkey",
                ["command"],
            ),
            saved_pictures: unlabelled(&mut registry, "pictures_saved", "Pictures saved"),
            saved_bytes: unlabelled_bytes(
                &mut registry,
                "pictures_saved", // the registry appends `_bytes`
                "Bytes of pictures saved",
            ),
            removed_pictures: unlabelled(
                &mut registry,
                "pictures_removed",
                "Pictures removed because of their age or the size limit",
            ),
            registry,
        })
    }

    /// Creates the counter of the requests with this route and status. Its value is 0. If a counter
    /// first appears with the value 1, Prometheus sees no increase, and an alert on increases does not
    /// fire.
    pub fn initialize_requests(&self, route: &str, status: &str) {
        let _ = self.requests.with([route.to_owned(), status.to_owned()]);
    }

    /// Creates the counter of the calls to NVIDIA with this operation and status, for the same reason
    /// as [`Self::initialize_requests`].
    pub fn initialize_upstream_calls(&self, operation: &'static str, status: u16) {
        let _ = self.upstream.with([operation.into(), Cow::from(status.to_string())]);
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn start_request(&self) -> InFlightGuard {
        self.in_flight.inc();
        InFlightGuard(self.in_flight.clone())
    }

    /// Counts a request that has ended.
    pub fn record_request(&self, route: &str, status: u16, duration: Duration) {
        self.requests.with([route.to_owned(), status.to_string()]).inc();
        self.request_seconds.with([route.to_owned()]).observe(duration.as_secs_f64());
    }

    /// Counts a call to NVIDIA. Each retry counts as another call. `status` is `None` if there was no
    /// response.
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

    /// Counts a request to the bucket. All its attempts count as one request, and `duration` includes them.
    pub fn record_bucket_request(
        &self,
        operation: &'static str,
        outcome: Cow<'static, str>,
        duration: Duration,
    ) {
        self.bucket_requests.with([operation.into(), outcome]).inc();
        self.bucket_request_seconds.with([operation]).observe(duration.as_secs_f64());
    }

    /// Counts a command to the Valkey.
    pub fn record_valkey_command(
        &self,
        command: &'static str,
        outcome: &'static str,
        duration: Duration,
    ) {
        self.valkey_commands.with([command, outcome]).inc();
        self.valkey_command_seconds.with([command]).observe(duration.as_secs_f64());
    }

    /// Counts a request or connection that was refused because of overload.
    pub fn record_shed(&self, reason: &'static str) {
        self.shed.with([reason]).inc();
    }

    /// Counts a saved picture of this many bytes.
    pub fn record_saved(&self, bytes: u64) {
        self.saved_pictures.inc();
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
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &readings.into_registry(PREFIX))?;
        encode_eof(&mut text)?;
        Ok(match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Prometheus => to_prometheus(&text),
        })
    }
}

/// The name and value of each label.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];

/// A metric with `N` labels. It has a series of the type `M` for each combination of their values.
#[derive(Debug)]
pub struct Labelled<M, const N: usize> {
    label_names: [&'static str; N],
    family: Family<Labels<N>, M>,
}

impl<M: Clone, const N: usize> Labelled<M, N> {
    /// Returns the series with these label values. `values` has the order of the label names. Creates
    /// the series if it does not exist.
    pub fn with(&self, values: [impl Into<Cow<'static, str>>; N]) -> impl Deref<Target = M> {
        let mut values = values.map(Into::into);
        let labels = array::from_fn(|i| (self.label_names[i], mem::take(&mut values[i])));
        self.family.get_or_create(&labels)
    }
}

fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label_names: [&'static str; N],
) -> Labelled<Counter, N> {
    let family: Family<_, _> = Family::default();
    registry.register(name, help, family.clone());
    Labelled { label_names, family }
}

/// Histograms of durations. The registry appends `_seconds` to their name.
fn histograms<const N: usize>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label_names: [&'static str; N],
) -> Labelled<Histogram, N> {
    let family: Family<_, _> = Family::new_with_constructor(|| Histogram::new(DURATION_BUCKETS));
    registry.register_with_unit(name, help, Unit::Seconds, family.clone());
    Labelled { label_names, family }
}

fn unlabelled<M: Metric + Default + Clone>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// An unlabelled metric whose unit is bytes. The registry appends `_bytes` to its name.
fn unlabelled_bytes<M: Metric + Default + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}
