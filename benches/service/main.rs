//! Measures the service from outside: requests, starts, and load from many clients.
//!
//! `cargo bench --bench service` runs the release build as a process, with a fake NVIDIA and a fake
//! picture server, and prints tables. The fakes respond without delay, unless a part sets a delay. To run
//! only some parts of the benchmark, write their names after `--`, as in
//! `cargo bench --bench service -- disk load`.
//!
//! - `BENCH_SECONDS`: for how many seconds most loads run. The default is 3.
//! - `BENCH_PROGRAM`: the path of a build to measure instead of the release build.
//! - `BENCH_PROGRAM_BEFORE`: the path of an earlier build. The part `saving` measures the earlier and the
//!   new build alternately, and compares them.
//! - `BENCH_LIST_ROWS`: the number of rows of the long list in the part `bulk`. The default is a
//!   million, which takes some minutes.
//! - `BENCH_LOADS`: in the part `load`, only loads whose names contain this text are run. The name of
//!   a load is, for example, `upload 34 KB fresh`. A `fresh` picture is sent for the first time. A
//!   picture that is sent `again` is in the cache.
//!
//! The part `floor` compares the service's processor time for a request with nginx's. It is skipped if nginx
//! is not installed, or if `/dev/shm` has too little space.
//!
//! Times differ between machines and between runs, so compare times of the same run only. Wait some
//! minutes between two runs, because the removal of a run's folders can slow down the next run (see
//! `Bench::folder`). Memory and the number of calls are almost the same in every run.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod batch;
mod bulk;
mod child;
mod decode;
mod disk;
mod fake_nvidia;
mod floor;
mod http;
mod load;
mod nginx;
#[path = "../../tests/api/support/nvidia_api.rs"]
mod nvidia_api;
mod photographs;
mod pictures;
mod replicas;
mod report;
mod request;
mod samples;
mod saving;
mod scale;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use child::{Service, program};
use fake_nvidia::FakeNvidia;
use load::{Load, measure_directly};
use pictures::{LARGE, LARGEST, SMALL};
use report::{Report, heading, row};
use request::Request;

/// A part of the benchmark: its name and its function.
type Part = (&'static str, fn(&mut Bench));

const PARTS: [Part; 12] = [
    ("start", Bench::start),
    ("disk", Bench::disk),
    ("load", Bench::load),
    ("floor", Bench::floor),
    ("saving", Bench::saving),
    ("batch", Bench::batch),
    ("latency", Bench::latency),
    ("replicas", Bench::replicas),
    ("memory", Bench::memory),
    ("decode", Bench::decode),
    ("scale", Bench::scale),
    ("bulk", Bench::bulk),
];

fn main() {
    // Cargo adds the flag `--bench`.
    let selected_parts: Vec<_> =
        env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let seconds = env::var("BENCH_SECONDS").map_or(3.0, |text| text.parse().unwrap());
    let mut bench = Bench {
        nvidia: FakeNvidia::start(),
        // In the target folder, because the system's temporary folder may be in memory.
        root: Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", process::id())),
        folder_count: 0,
        load_time: Duration::from_secs_f64(seconds),
        load_filter: env::var("BENCH_LOADS").unwrap_or_default(),
        report: Report::default(),
    };
    for (name, run) in PARTS {
        if selected_parts.is_empty() || selected_parts.iter().any(|part| part == name) {
            run(&mut bench);
        }
    }
    bench.report.print();
}

/// The state that all parts share.
struct Bench {
    nvidia: FakeNvidia,
    /// The folder that contains all folders of the benchmark.
    root: PathBuf,
    /// The number of folders created so far.
    folder_count: u32,
    /// How long a load runs, unless a part sets another time.
    load_time: Duration,
    /// Only loads whose names contain this text are run.
    load_filter: String,
    report: Report,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Bench {
    /// Creates an empty folder.
    ///
    /// Folders are removed only at the end. After a removal, ext4 without a journal creates files
    /// more slowly for minutes, because it avoids recently freed inodes.
    fn folder(&mut self, name: &str) -> PathBuf {
        self.folder_count += 1;
        let folder = self.root.join(format!("{}-{name}", self.folder_count));
        fs::create_dir_all(&folder).unwrap();
        // Earlier writes must not slow down the next measurement.
        rustix::fs::sync();
        folder
    }

    /// Starts a service with a new folder, and warms it up.
    fn start_warm(&mut self, name: &str) -> Service {
        let service = Service::start(&self.folder(name), &self.nvidia, &[]);
        self.warm_up(&service);
        service
    }

    /// Sends requests to a service before it is measured. In a new folder, the file system is several
    /// times slower for the first few thousand files.
    fn warm_up(&self, service: &Service) {
        self.fresh_uploads().run(service, &self.nvidia);
    }

    /// 16 clients that upload new small pictures.
    fn fresh_uploads(&self) -> Load {
        let request = Request::upload(SMALL);
        Load { request, is_fresh: true, clients: 16, run_for: self.load_time }
    }

    /// Measures the time of a start, the memory after it, and the size of the program's file.
    fn start(&mut self) {
        let folder = self.folder("start");
        let startup_time = |_| Service::start(&folder, &self.nvidia, &[]).startup_time;
        let startup_times = load::Percentiles::of((0..15).map(startup_time).collect());
        let service = Service::start(&folder, &self.nvidia, &[]);
        thread::sleep(Duration::from_millis(500)); // until the service has cleaned up its folders
        let program_mb = fs::metadata(program()).unwrap().len() as f64 / 1e6;
        self.report.goal_at_most("start to first answer, ms", startup_times.p50, 30.0);
        self.report.goal_at_most("resident after start, MB", service.memory(), 13.0);
        self.report.goal_at_most("program, MB", program_mb, 24.0);
    }

    /// Measures the disk without the service.
    fn disk(&mut self) {
        heading(
            "the disk alone: write, fsync, rename, fsync of the folder",
            &["bytes", "threads", "files/s", "p50 ms", "p99 ms", "CPU ms"],
        );
        for (name, len) in [("34 KB", SMALL), ("2 MB", LARGE)] {
            for threads in [1, 16] {
                let folder = self.folder("disk");
                let result = disk::measure(&folder, len, threads, self.load_time / 2);
                let latency = result.latency;
                row(
                    &[name.into(), threads.to_string()],
                    &[result.files_per_second, latency.p50, latency.p99, result.cpu],
                );
            }
        }
    }

    /// Measures each route for single pictures, with small and large, new and cached pictures.
    fn load(&mut self) {
        let service = self.start_warm("load");
        heading(
            "16 clients, keep-alive; processor time of the service alone, per request",
            &[
                "route", "picture", "sent", "req/s", "p50 ms", "p99 ms", "user ms", "sys ms",
                "CPU ms", "peak MB", "calls",
            ],
        );
        let routes = |len| {
            [
                ("upload", Request::upload(len)),
                ("base64", Request::base64(len)),
                ("url", Request::url(&self.nvidia.picture_url(len))),
            ]
        };
        for (picture, len) in [("34 KB", SMALL), ("2 MB", LARGE)] {
            for (route, request) in routes(len) {
                for (sent, is_fresh) in [("fresh", true), ("again", false)] {
                    if !format!("{route} {picture} {sent}").contains(&self.load_filter) {
                        continue;
                    }
                    let request = request.clone();
                    let load = Load { request, is_fresh, clients: 16, run_for: self.load_time };
                    let result = load.run(&service, &self.nvidia);
                    let cpu = result.cpu;
                    row(
                        &[route.into(), picture.into(), sent.into()],
                        &[
                            result.per_second,
                            result.latency.p50,
                            result.latency.p99,
                            cpu.user,
                            cpu.system,
                            cpu.total(),
                            result.peak_memory,
                            result.calls,
                        ],
                    );
                    self.report.add_load(route, picture, sent, &result);
                }
            }
        }
        println!("resident after these loads, including the cache: {:.1} MB", service.memory());
    }

    /// Measures the time that the service adds to a call to NVIDIA.
    fn latency(&mut self) {
        let disk_ms = disk::measure(&self.folder("disk"), SMALL, 1, self.load_time / 2).latency.p50;
        let service = self.start_warm("latency");
        let load = Load { clients: 1, ..self.fresh_uploads() };
        for delay in [0, 20] {
            self.nvidia.set_delay(Duration::from_millis(delay));
            let direct_ms = measure_directly(&self.nvidia, self.load_time / 2).p50;
            let through_ms = load.run(&service, &self.nvidia).latency.p50;
            println!(
                "one client, fake NVIDIA of {delay} ms: {direct_ms:.3} ms direct, {through_ms:.3} ms through the service; disk {disk_ms:.3} ms"
            );
            // The service saves the picture while it waits for NVIDIA. If NVIDIA responds at once,
            // the service still waits for the disk.
            let max_added_ms = if delay == 0 { 1.0 + disk_ms } else { 1.0 };
            let name = format!("added latency, fake NVIDIA of {delay} ms, ms");
            self.report.goal_at_most(&name, through_ms - direct_ms, max_added_ms);
        }
        self.nvidia.set_delay(Duration::ZERO);
    }

    /// Measures the service's memory. The cache in memory is off, because it would only add the size
    /// that its setting allows.
    fn memory(&mut self) {
        let settings = [("IMAGESVC_CACHE_MEMORY", "0")];
        let folder = self.folder("memory");
        let service = Service::start(&folder, &self.nvidia, &settings);
        self.fresh_uploads().run(&service, &self.nvidia);
        thread::sleep(Duration::from_secs(1)); // until the memory of the load is freed
        self.report.goal_at_most("resident after load, MB", service.memory(), 16.0);

        let folder = self.folder("memory");
        let service = Service::start(&folder, &self.nvidia, &settings);
        let idle = service.memory();
        let load = Load {
            request: Request::upload(LARGEST),
            is_fresh: true,
            clients: 64,
            // So short that each client sends one request as its warm-up, and one that is measured.
            run_for: Duration::from_millis(1),
        };
        let result = load.run(&service, &self.nvidia);
        println!(
            "64 uploads of 20 MB at once: {} sent, {:.0} a second",
            result.requests, result.per_second
        );
        let over_idle = result.peak_memory - idle;
        self.report.goal_at_most("64 uploads of 20 MB at once, MB over idle", over_idle, 28.0);
    }
}
