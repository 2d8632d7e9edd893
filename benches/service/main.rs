//! Measures the service from outside: the cost of a request, of a start, and of many clients.
//!
//! `cargo bench --bench service` runs the packaged build as a process, with a fake NVIDIA and a
//! fake picture server that answer at once, and prints tables. Names of parts after `--` run only
//! those. `BENCH_SECONDS` (default 3) is how long each load lasts, `BENCH_PROGRAM` another build to
//! measure, `BENCH_ROWS` a part of the names of the loads to run (such as `upload 34 KB fresh`).
//! Times differ from machine to machine and from run to run: compare within a run, and leave some
//! minutes between two (`Bench::folder` says why). Memory and the number of calls hardly differ.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, unreachable_pub)]

mod batch;
mod child;
mod decode;
mod disk;
mod fake_nvidia;
mod http;
mod load;
#[path = "../../tests/api/support/nvidia_api.rs"]
mod nvidia_api;
mod photographs;
mod pictures;
mod report;
mod request;
mod samples;
mod scale;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use child::{Service, program};
use fake_nvidia::FakeNvidia;
use load::{Load, direct};
use pictures::{LARGE, LARGEST, SMALL};
use report::{Report, heading, row};
use request::Request;

/// A part of the benchmark: its name and its function.
type Part = (&'static str, fn(&mut Bench));

const PARTS: [Part; 8] = [
    ("start", Bench::start),
    ("disk", Bench::disk),
    ("load", Bench::load),
    ("batch", Bench::batch),
    ("latency", Bench::latency),
    ("memory", Bench::memory),
    ("decode", Bench::decode),
    ("scale", Bench::scale),
];

fn main() {
    let wanted: Vec<_> = env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let seconds = env::var("BENCH_SECONDS").map_or(3.0, |text| text.parse().unwrap());
    let mut bench = Bench {
        nvidia: FakeNvidia::start(),
        // On the same disk as the target folder, since the folder for temporary files may be in
        // memory.
        root: Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", process::id())),
        folders: 0,
        time: Duration::from_secs_f64(seconds),
        rows: env::var("BENCH_ROWS").unwrap_or_default(),
        report: Report::default(),
    };
    for (name, run) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|part| part == name) {
            run(&mut bench);
        }
    }
    bench.report.print();
}

/// The state that all parts share.
struct Bench {
    nvidia: FakeNvidia,
    root: PathBuf,
    folders: u32,
    time: Duration,
    /// Only loads whose names contain this are run.
    rows: String,
    report: Report,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Bench {
    /// Creates an empty folder for a service. Folders are removed only at the end: for minutes
    /// after a removal, a file system without a journal creates files more slowly, since it looks
    /// for inodes that were not freed recently.
    fn folder(&mut self, name: &str) -> PathBuf {
        self.folders += 1;
        let folder = self.root.join(format!("{}-{name}", self.folders));
        fs::create_dir_all(&folder).unwrap();
        // Earlier writes must not slow down the next measurement.
        rustix::fs::sync();
        folder
    }

    /// Starts a service and warms it up. In a new folder, the file system takes several times as
    /// long for the first thousands of files.
    fn settled(&mut self, name: &str) -> Service {
        let service = Service::start(&self.folder(name), &self.nvidia, &[]);
        self.fresh_uploads().run(&service, &self.nvidia);
        service
    }

    fn fresh_uploads(&self) -> Load {
        Load { request: Request::upload(SMALL), fresh: true, clients: 16, time: self.time }
    }

    fn start(&mut self) {
        let folder = self.folder("start");
        let started = |_| Service::start(&folder, &self.nvidia, &[]).started_in;
        let times = load::Spread::of((0..15).map(started).collect());
        let service = Service::start(&folder, &self.nvidia, &[]);
        thread::sleep(Duration::from_millis(500));
        let size = fs::metadata(program()).unwrap().len() as f64 / 1e6;
        self.report.goal("start to first answer, ms", times.p50, 60.0);
        self.report.goal("resident after start, MB", service.memory(), 12.0);
        self.report.goal("program, MB", size, 16.0);
    }

    fn disk(&mut self) {
        heading(
            "the disk alone: write, fsync, rename, fsync of the folder",
            &["bytes", "threads", "files/s", "p50 ms", "p99 ms", "CPU ms"],
        );
        for (name, len) in [("34 KB", SMALL), ("2 MB", LARGE)] {
            for threads in [1, 16] {
                let folder = self.folder("disk");
                let floor = disk::measure(&folder, len, threads, self.time / 2);
                let latency = floor.latency;
                row(
                    &[name.into(), threads.to_string()],
                    &[floor.per_second, latency.p50, latency.p99, floor.cpu],
                );
            }
        }
    }

    fn load(&mut self) {
        let service = self.settled("load");
        heading(
            "16 clients, keep-alive; processor time of the service alone, a request",
            &[
                "route", "picture", "kept", "req/s", "p50 ms", "p99 ms", "user ms", "sys ms",
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
                for (kept, fresh) in [("fresh", true), ("again", false)] {
                    if !format!("{route} {picture} {kept}").contains(&self.rows) {
                        continue;
                    }
                    let request = request.clone();
                    let load = Load { request, fresh, clients: 16, time: self.time };
                    let cost = load.run(&service, &self.nvidia);
                    let cpu = cost.cpu;
                    row(
                        &[route.into(), picture.into(), kept.into()],
                        &[
                            cost.per_second,
                            cost.latency.p50,
                            cost.latency.p99,
                            cpu.user,
                            cpu.system,
                            cpu.all(),
                            cost.peak_memory,
                            cost.calls,
                        ],
                    );
                    self.report.cost(route, picture, kept, &cost);
                }
            }
        }
        println!("resident with all that the cache remembers: {:.1} MB", service.memory());
    }

    fn latency(&mut self) {
        let disk = disk::measure(&self.folder("disk"), SMALL, 1, self.time / 2).latency.p50;
        let service = self.settled("latency");
        let load = Load { clients: 1, ..self.fresh_uploads() };
        for delay in [0, 20] {
            self.nvidia.delay(Duration::from_millis(delay));
            let direct = direct(&self.nvidia, self.time / 2).p50;
            let through = load.run(&service, &self.nvidia).latency.p50;
            println!(
                "one client, fake NVIDIA of {delay} ms: {direct:.3} ms direct, {through:.3} ms through the service; disk {disk:.3} ms"
            );
            let goal = if delay == 0 { 1.0 + disk } else { 1.0 };
            let name = format!("added latency, fake NVIDIA of {delay} ms, ms");
            self.report.goal(&name, through - direct, goal);
        }
        self.nvidia.delay(Duration::ZERO);
    }

    /// Measures memory with the cache in memory off, since its size is a setting.
    fn memory(&mut self) {
        let settings = [("IMAGESVC_CACHE_MEMORY", "0")];
        let folder = self.folder("memory");
        let service = Service::start(&folder, &self.nvidia, &settings);
        self.fresh_uploads().run(&service, &self.nvidia);
        thread::sleep(Duration::from_secs(1));
        self.report.goal("resident after load, MB", service.memory(), 16.0);

        let folder = self.folder("memory");
        let service = Service::start(&folder, &self.nvidia, &settings);
        let idle = service.memory();
        let load = Load {
            request: Request::upload(LARGEST),
            fresh: true,
            clients: 64,
            time: Duration::from_millis(1), // one request per client, after the warm-up
        };
        let cost = load.run(&service, &self.nvidia);
        println!(
            "64 uploads of 20 MB at once: {} sent, {:.0} a second",
            cost.requests, cost.per_second
        );
        let more = cost.peak_memory - idle;
        self.report.goal("64 uploads of 20 MB at once, MB over idle", more, 32.0);
    }

    fn scale(&mut self) {
        let (settled, folder) = (self.settled("empty"), self.folder("full"));
        let run = |service: &Service| self.fresh_uploads().run(service, &self.nvidia);
        let empty = run(&settled);
        drop(settled);
        scale::fill(&folder.join("downloads"));
        // The cache has room for all vectors, so that none is removed.
        let service = Service::start(&folder, &self.nvidia, &[("IMAGESVC_CACHE_DISK", "4GiB")]);
        let started = service.started_in.as_secs_f64() * 1000.0;
        run(&service); // a warm-up, as the other service had
        let full = run(&service);
        println!(
            "100,000 pictures and 50,000 vectors kept: {:.0} req/s, {:.3} CPU ms, {:.1} MB (none kept: {:.0}, {:.3}, {:.1})",
            full.per_second,
            full.cpu.all(),
            full.peak_memory,
            empty.per_second,
            empty.cpu.all(),
            empty.peak_memory
        );
        self.report.goal("start to first answer, all kept, ms", started, 60.0);
        self.report.goal(
            "CPU of an upload, all kept against none",
            full.cpu.all() / empty.cpu.all(),
            1.1,
        );
    }
}
