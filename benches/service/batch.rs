//! Measures batches: what they cost, how long another picture waits beside one, and how soon a
//! batch that cannot be served is refused.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Bench,
    child::Service,
    http::Connection,
    load::Load,
    pictures::SMALL,
    report::{heading, row},
    request::Request,
};

/// The pictures of a batch, the default limit.
const PICTURES: u64 = 32;

impl Bench {
    pub fn batch(&mut self) {
        self.cost_of_batch();
        self.single_beside_batch();
        self.refusal_of_batch();
    }

    /// Compares a batch of cached pictures with the same pictures sent one by one, less the
    /// requests that the batch spares.
    fn cost_of_batch(&mut self) {
        heading(
            "4 clients, keep-alive; pictures that are in the cache",
            &["request", "req/s", "p50 ms", "user ms", "sys ms", "CPU ms"],
        );
        let service = self.start_warm("batch");
        let cost = |name: &str, request| {
            let load = Load { request, is_fresh: false, clients: 4, time: self.load_time };
            let result = load.run(&service, &self.nvidia);
            let cpu = result.cpu;
            let figures =
                [result.per_second, result.latency.p50, cpu.user, cpu.system, cpu.total()];
            row(&[name.into()], &figures);
            cpu.total()
        };
        let request = cost("health", Request::health());
        let single = cost("base64", Request::base64(SMALL));
        let batch = cost("batch", Request::batch(SMALL, PICTURES));
        let one_by_one = PICTURES as f64 * (single - request) + request;
        self.report.goal("CPU of a batch against single requests", batch / one_by_one, 1.6);
    }

    fn single_beside_batch(&mut self) {
        let folder = self.folder("beside");
        let settings = [("NVIDIA_MAX_CONCURRENCY", "8")];
        let service = Service::start(&folder, &self.nvidia, &settings);
        self.nvidia.set_delay(Duration::from_millis(400));
        let address = service.address;
        let batch = thread::spawn(move || {
            let sent = Instant::now();
            let request = Request::batch(SMALL, PICTURES);
            let response = Connection::open(address).unwrap().exchange(&request.bytes).unwrap();
            assert_eq!(response.status, 200);
            sent.elapsed().as_secs_f64()
        });
        thread::sleep(Duration::from_millis(200)); // the batch fills the queue first
        let sent = Instant::now();
        let mut connection = Connection::open(service.address).unwrap();
        let response = connection.exchange(&Request::upload(SMALL).bytes).unwrap();
        assert_eq!(response.status, 200);
        let single = sent.elapsed().as_secs_f64();
        let batch = batch.join().unwrap();
        self.nvidia.set_delay(Duration::ZERO);
        println!(
            "fake NVIDIA of 400 ms, 8 calls at once: a batch of {PICTURES} new pictures {batch:.2} s, a single one beside it {single:.2} s"
        );
        self.report.goal("a single picture beside a batch, s", single, 1.3);
    }

    fn refusal_of_batch(&mut self) {
        let folder = self.folder("refusal");
        let settings = [("NVIDIA_REQUESTS_PER_MINUTE", "10")];
        let service = Service::start(&folder, &self.nvidia, &settings);
        let mut connection = Connection::open(service.address).unwrap();
        let body = Request::batch(SMALL, PICTURES).bytes;
        let (most, last) = body.split_at(body.len() - 1);
        connection.send(most).unwrap();
        thread::sleep(Duration::from_millis(100));
        let sent = Instant::now();
        let response = connection.exchange(last).unwrap();
        assert_eq!(response.status, 422);
        let took = sent.elapsed().as_secs_f64() * 1000.0;
        self.report.goal("a batch beyond the pace is refused after, ms", took, 50.0);
    }
}
