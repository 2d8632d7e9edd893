//! Measures the cost of a load: clients that send one request after the other.

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

/// The time for work that follows a request: deletions, and writes to the cache on disk.
const SETTLE: Duration = Duration::from_millis(50);

/// The number of the next new picture.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A load: the request, and how it is sent.
pub struct Load {
    pub request: Request,
    /// Whether each request has a new picture.
    pub fresh: bool,
    pub clients: usize,
    pub time: Duration,
}

/// The cost of one load.
pub struct Cost {
    pub requests: u64,
    pub per_second: f64,
    /// In milliseconds.
    pub latency: Spread,
    /// The processor time of the service itself, per request.
    pub cpu: Cpu,
    /// The processor time of the decoders, per request.
    pub decoders: Cpu,
    /// The peak memory of the service, in MB.
    pub peak_memory: f64,
    /// The calls to NVIDIA per request.
    pub calls: f64,
}

/// The distribution of times, in milliseconds.
#[derive(Clone, Copy)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
}

impl Spread {
    pub fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |quantile: f64| {
            let index = (times.len() - 1) as f64 * quantile;
            times[index.round() as usize].as_secs_f64() * 1000.0
        };
        Self { p50: at(0.5), p99: at(0.99) }
    }
}

impl Load {
    /// Runs the load after a short warm-up that does not count.
    pub fn run(&self, service: &Service, nvidia: &FakeNvidia) -> Cost {
        let mut first = self.client(service);
        first.send(self);
        // The main thread waits at both barriers, too, and reads the counters in between.
        let (ready, start) = (Barrier::new(self.clients + 1), Barrier::new(self.clients + 1));
        thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = self.client(service);
                        client.run(self, self.time / 10);
                        ready.wait();
                        start.wait();
                        client.run(self, self.time)
                    })
                })
                .collect();
            ready.wait();
            thread::sleep(SETTLE);
            let (cpu, calls) = (service.cpu(), nvidia.calls());
            let decoders = service.cpu_of_decoders();
            service.forget_peak();
            let begun = Instant::now();
            start.wait();
            let times: Vec<_> =
                clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
            let elapsed = begun.elapsed();
            thread::sleep(SETTLE);
            let requests = times.len() as f64;
            Cost {
                requests: times.len() as u64,
                per_second: requests / elapsed.as_secs_f64(),
                latency: Spread::of(times),
                cpu: service.cpu().since(cpu, requests),
                decoders: service.cpu_of_decoders().since(decoders, requests),
                peak_memory: service.peak_memory(),
                calls: (nvidia.calls() - calls) as f64 / requests,
            }
        })
    }

    pub fn client(&self, service: &Service) -> Client {
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
    fn run(&mut self, load: &Load, time: Duration) -> Vec<Duration> {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            times.push(self.send(load));
        }
        times
    }

    pub fn send(&mut self, load: &Load) -> Duration {
        if load.fresh {
            self.request.set_number(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        let sent = Instant::now();
        let answer = self.connection.exchange(&self.request.bytes).unwrap();
        let took = sent.elapsed();
        assert_eq!(answer.status, 200, "see service.log");
        assert!(!(load.fresh && answer.is_hit), "a new picture was a hit");
        took
    }
}

/// Measures how long the fake NVIDIA itself takes, with the service's own request.
pub fn direct(nvidia: &FakeNvidia, time: Duration) -> Spread {
    let (request, begun) = (Request::inference(), Instant::now());
    let mut connection = Connection::open(nvidia.address).unwrap();
    let mut times = Vec::new();
    while begun.elapsed() < time {
        let sent = Instant::now();
        connection.exchange(&request.bytes).unwrap();
        times.push(sent.elapsed());
    }
    Spread::of(times)
}
