//! Sends load to the service, and measures how the service serves it. A load consists of several
//! clients. Each client sends one request after the other.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    child::{Cpu, Service},
    fake_nvidia::FakeNvidia,
    http::Connection,
    request::Request,
};

/// How long the benchmark waits before it reads the service's counters. After its responses, the
/// service still deletes assets, and writes to the cache on disk.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// The next number for [`Request::set_number`], which makes a picture different from all before.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// A load: what the clients send, how many they are, and for how long they send.
#[derive(Clone)]
pub struct Load {
    pub request: Request,
    /// Whether each request gets another number, and so a new picture. Otherwise all requests are the
    /// same.
    pub is_fresh: bool,
    /// The number of clients that send requests at the same time.
    pub clients: usize,
    /// How long the clients send requests that are measured.
    pub run_for: Duration,
}

/// What was measured during a load.
pub struct LoadResult {
    /// The number of requests.
    pub requests: u64,
    /// Requests per second.
    pub per_second: f64,
    pub latency: Percentiles,
    /// The processor time of the service itself, per request.
    pub cpu: Cpu,
    /// The processor time of the decoders, per request.
    pub decoder_cpu: Cpu,
    /// The peak memory of the service itself, in MB.
    pub peak_memory: f64,
    /// The calls to NVIDIA per request.
    pub calls: f64,
}

/// Percentiles of durations, in milliseconds.
#[derive(Clone, Copy)]
pub struct Percentiles {
    pub p50: f64,
    pub p99: f64,
}

impl Percentiles {
    /// The percentiles of these durations. There must be at least one.
    pub fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let at = |quantile: f64| {
            let index = (durations.len() - 1) as f64 * quantile;
            durations[index.round() as usize].as_secs_f64() * 1000.0
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

impl Load {
    /// Runs the load, after a short warm-up that is not measured.
    pub fn run(&self, service: &Service, nvidia: &FakeNvidia) -> LoadResult {
        // If the load is not fresh, this request puts its picture into the cache.
        self.connect_client(service).send(self);
        // The main thread also waits at both barriers, and reads the counters in between.
        let (ready, start) = (Barrier::new(self.clients + 1), Barrier::new(self.clients + 1));
        thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = self.connect_client(service);
                        client.run(self, self.run_for / 10); // the warm-up
                        ready.wait();
                        start.wait();
                        client.run(self, self.run_for)
                    })
                })
                .collect();
            ready.wait();
            thread::sleep(SETTLE_TIME);
            let (cpu_before, calls_before) = (service.cpu(), nvidia.calls());
            let decoder_cpu_before = service.cpu_of_decoders();
            service.reset_peak_memory();
            let started = Instant::now();
            start.wait();
            let latencies: Vec<_> =
                clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
            let elapsed = started.elapsed();
            thread::sleep(SETTLE_TIME);
            let requests = latencies.len() as f64;
            let decoder_cpu = service.cpu_of_decoders();
            LoadResult {
                requests: latencies.len() as u64,
                per_second: requests / elapsed.as_secs_f64(),
                latency: Percentiles::of(latencies),
                cpu: service.cpu().per_request_since(cpu_before, requests),
                decoder_cpu: decoder_cpu.per_request_since(decoder_cpu_before, requests),
                peak_memory: service.peak_memory(),
                calls: (nvidia.calls() - calls_before) as f64 / requests,
            }
        })
    }

    /// Connects one client of this load.
    pub fn connect_client(&self, service: &Service) -> Client {
        let connection = Connection::open(service.address).unwrap();
        Client { connection, request: self.request.clone() }
    }
}

/// A client that sends a load's requests.
pub struct Client {
    connection: Connection,
    request: Request,
}

impl Client {
    /// Sends requests until `run_for` has passed. Returns how long each request took.
    fn run(&mut self, load: &Load, run_for: Duration) -> Vec<Duration> {
        let (started, mut latencies) = (Instant::now(), Vec::new());
        while started.elapsed() < run_for {
            latencies.push(self.send(load));
        }
        latencies
    }

    /// Sends one request, and returns how long it took.
    pub fn send(&mut self, load: &Load) -> Duration {
        if load.is_fresh {
            self.request.set_number(NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
        }
        let started = Instant::now();
        let response = self.connection.exchange(&self.request.bytes).unwrap();
        let elapsed = started.elapsed();
        assert_eq!(response.status, 200, "the reason is in service.log in the service's folder");
        assert!(!(load.is_fresh && response.is_cache_hit), "a new picture must not be a cache hit");
        elapsed
    }
}

/// Measures how long requests take that are sent to the fake NVIDIA directly, not through the service.
pub fn measure_directly(nvidia: &FakeNvidia, run_for: Duration) -> Percentiles {
    let (request, started) = (Request::inference(), Instant::now());
    let mut connection = Connection::open(nvidia.address).unwrap();
    let mut latencies = Vec::new();
    while started.elapsed() < run_for {
        let request_started = Instant::now();
        connection.exchange(&request.bytes).unwrap();
        latencies.push(request_started.elapsed());
    }
    Percentiles::of(latencies)
}
