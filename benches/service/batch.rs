//! Measures batches: their processor time, how long another picture takes while a batch is
//! processed, and how soon a batch that cannot be served in time is refused.

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

/// The number of pictures in a batch, all different: the most that the service accepts by default.
const PICTURES: u64 = 32;

impl Bench {
    pub fn batch(&mut self) {
        self.cpu_of_batch();
        self.single_picture_beside_batch();
        self.refusal_of_batch();
    }

    /// Compares the processor time of a batch of cached pictures with that of single requests for as
    /// many pictures. Every request has a fixed cost: that of a health check. A batch has this cost only
    /// once, so the sum for the single requests contains it only once, too.
    fn cpu_of_batch(&mut self) {
        heading(
            "4 clients, keep-alive; pictures that are in the cache",
            &["request", "req/s", "p50 ms", "user ms", "sys ms", "CPU ms"],
        );
        let service = self.start_warm("batch");
        let cpu_per_request = |name: &str, request| {
            let load = Load { request, is_fresh: false, clients: 4, run_for: self.load_time };
            let result = load.run(&service, &self.nvidia);
            let cpu = result.cpu;
            let figures =
                [result.per_second, result.latency.p50, cpu.user, cpu.system, cpu.total()];
            row(&[name.into()], &figures);
            cpu.total()
        };
        let health = cpu_per_request("health", Request::health());
        let single = cpu_per_request("base64", Request::base64(SMALL));
        let batch = cpu_per_request("batch", Request::batch(SMALL, PICTURES));
        let single_requests = PICTURES as f64 * (single - health) + health;
        self.report.goal_at_most(
            "CPU of a batch against single requests",
            batch / single_requests,
            1.6,
        );
    }

    /// Measures how long an upload takes while the pictures of a batch wait for calls to NVIDIA.
    fn single_picture_beside_batch(&mut self) {
        let folder = self.folder("beside");
        // Of the eight calls that may run at once, a batch makes at most three quarters: six. So its 32
        // pictures need six rounds of calls, 2.4 s. An upload that waits for all six rounds takes about
        // 2.6 s. The goal is at most half of that.
        let settings = [("NVIDIA_MAX_CONCURRENCY", "8")];
        let service = Service::start(&folder, &self.nvidia, &settings);
        self.nvidia.set_delay(Duration::from_millis(400));
        let address = service.address;
        let batch_thread = thread::spawn(move || {
            let batch_started = Instant::now();
            let request = Request::batch(SMALL, PICTURES);
            let response = Connection::open(address).unwrap().exchange(&request.bytes).unwrap();
            assert_eq!(response.status, 200);
            batch_started.elapsed().as_secs_f64()
        });
        thread::sleep(Duration::from_millis(200)); // until the batch's first calls are running
        let upload_started = Instant::now();
        let mut connection = Connection::open(service.address).unwrap();
        let response = connection.exchange(&Request::upload(SMALL).bytes).unwrap();
        assert_eq!(response.status, 200);
        let single_s = upload_started.elapsed().as_secs_f64();
        let batch_s = batch_thread.join().unwrap();
        self.nvidia.set_delay(Duration::ZERO);
        println!(
            "fake NVIDIA of 400 ms, 8 calls at once: a batch of {PICTURES} new pictures {batch_s:.2} s, a single picture beside it {single_s:.2} s"
        );
        self.report.goal_at_most("a single picture beside a batch, s", single_s, 1.3);
    }

    /// Measures the time from the last byte of a batch to its refusal. The batch needs more calls than
    /// the limit on calls per minute allows within one request's time.
    fn refusal_of_batch(&mut self) {
        let folder = self.folder("refusal");
        let settings = [("NVIDIA_REQUESTS_PER_MINUTE", "10")];
        let service = Service::start(&folder, &self.nvidia, &settings);
        let mut connection = Connection::open(service.address).unwrap();
        let request = Request::batch(SMALL, PICTURES).bytes;
        let (all_but_last, last_byte) = request.split_at(request.len() - 1);
        connection.send(all_but_last).unwrap();
        thread::sleep(Duration::from_millis(100)); // until the service has read these bytes
        let started = Instant::now();
        let response = connection.exchange(last_byte).unwrap();
        assert_eq!(response.status, 422);
        let elapsed_ms = started.elapsed().as_secs_f64() * 1000.0;
        self.report.goal_at_most(
            "refusal of a batch that needs too many calls, ms",
            elapsed_ms,
            50.0,
        );
    }
}
