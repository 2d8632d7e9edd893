//! Measures what decoding a picture in a child process costs, and how much it delays other
//! requests.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Bench,
    child::Service,
    load::{Cost, Load, Spread},
    photographs::{Photographs, pixels},
    report::{heading, row},
    request::Request,
};

/// The cache in memory is off, since its size would disturb the measurement of memory.
const SETTINGS: [(&str, &str); 1] = [("IMAGESVC_CACHE_MEMORY", "0")];

/// How often small uploads are measured, alone and beside decoders. The median of several rounds
/// evens out other work on the machine.
const ROUNDS: usize = 3;

impl Bench {
    pub fn decode(&mut self) {
        let photographs = Photographs::new();
        let service = Service::start(&self.folder("decode"), &self.nvidia, &SETTINGS);
        thread::sleep(Duration::from_millis(500));
        let idle = service.memory();
        self.fresh_uploads().run(&service, &self.nvidia); // settles
        let settled = service.memory();

        self.one_pixel(&service);
        heading(
            "12 megapixels, one after the other; processor time in ms, of the decoders beside the service",
            &["picture", "MB", "p50 ms", "service", "decoders", "CPU ms", "child MB", "peak MB"],
        );
        self.photograph("WebP", &photographs.webp, &service);
        self.photograph("TIFF", &photographs.tiff, &service);
        let (turned, child) = self.photograph("turned", &photographs.turned, &service);
        let shrink = [SETTINGS[0], ("NVIDIA_LARGE_IMAGES", "shrink")];
        let shrinking = Service::start(&self.folder("decode"), &self.nvidia, &shrink);
        self.photograph("JPEG", &photographs.jpeg, &shrinking);
        drop(shrinking);
        self.report.goal("a turned JPEG of 12 megapixels, ms of processor time", turned, 400.0);
        self.report.goal("a turned JPEG of 12 megapixels, MB in the child", child, 120.0);
        let decoded = service.memory();
        self.beside(&photographs, &service);

        thread::sleep(Duration::from_secs(1));
        let ended = service.memory();
        println!(
            "resident, MB: {idle:.1} after start, {settled:.1} after uploads alone, {decoded:.1} after decoding, {ended:.1} after both at once"
        );
        self.report.goal("resident after decoding, MB over start", ended - idle, 16.0);
    }

    /// Measures a decode of one pixel. Decoded and plain uploads alternate, so that other work on
    /// the machine affects both alike.
    fn one_pixel(&mut self, service: &Service) {
        let (gif, png) = pixels();
        let (decoded, plain) = (upload(&gif, self.time), upload(&png, self.time));
        let (mut decoder, mut other) = (decoded.client(service), plain.client(service));
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let (begun, cpu) = (Instant::now(), service.cpu_of_decoders());
        while begun.elapsed() < self.time {
            without.push(other.send(&plain));
            with.push(decoder.send(&decoded));
        }
        let children = with.len() as f64;
        let cpu = service.cpu_of_decoders().since(cpu, children);
        let (with, without) = (Spread::of(with), Spread::of(without));
        println!(
            "\n{children} uploads of one pixel, by turns: {:.3} ms as GIF (p99 {:.3}), {:.3} ms as PNG, which is not decoded (p99 {:.3}); CPU of a child {:.3} ms",
            with.p50,
            with.p99,
            without.p50,
            without.p99,
            cpu.all()
        );
        self.report.goal("one child for one pixel, ms", with.p50 - without.p50, 4.0);
    }

    /// Measures one photograph. Returns the processor time in ms, and the child's peak memory in
    /// MB.
    fn photograph(&self, name: &str, picture: &[u8], service: &Service) -> (f64, f64) {
        let load = upload(picture, self.time);
        let cost = load.run(service, &self.nvidia);
        // Measured separately, since watching takes processor time, too.
        let mut client = load.client(service);
        let child = service.peak_of_decoders(|| {
            for _ in 0..3 {
                client.send(&load);
            }
        });
        let (own, decoders) = (cost.cpu.all(), cost.decoders.all());
        row(
            &[name.into()],
            &[
                picture.len() as f64 / 1e6,
                cost.latency.p50,
                own,
                decoders,
                own + decoders,
                child,
                cost.peak_memory,
            ],
        );
        (own + decoders, child)
    }

    /// Measures small uploads, alone and beside two clients whose pictures are decoded without a
    /// pause.
    fn beside(&mut self, photographs: &Photographs, service: &Service) {
        heading(
            "34 KB uploads of 16 clients, alone and beside one of WebP and one of TIFF, of 12 megapixels",
            &["beside", "req/s", "p50 ms", "p99 ms", "decoded"],
        );
        let show = |name: &str, cost: &Cost, decoded: u64| {
            let Cost { per_second, latency, .. } = *cost;
            row(&[name.into()], &[per_second, latency.p50, latency.p99, decoded as f64]);
        };
        let small = self.fresh_uploads();
        let mut ratios = [0.0; ROUNDS];
        for ratio in &mut ratios {
            let alone = small.run(service, &self.nvidia);
            show("nothing", &alone, 0);
            let heavy =
                [&photographs.webp, &photographs.tiff].map(|picture| upload(picture, self.time));
            let (beside, decoded) =
                while_sent(&heavy, service, || small.run(service, &self.nvidia));
            show("decoding", &beside, decoded);
            *ratio = beside.latency.p99 / alone.latency.p99;
        }
        ratios.sort_by(f64::total_cmp);
        let name = "p99 of an upload, beside decoders against alone";
        self.report.goal(name, ratios[ROUNDS / 2], 4.0);
    }
}

/// The load of one client that sends a new picture with each request.
fn upload(picture: &[u8], time: Duration) -> Load {
    Load { request: Request::upload_of(picture), fresh: true, clients: 1, time }
}

/// Runs `work` while clients send these loads without a pause, and counts their answers meanwhile.
fn while_sent<T>(loads: &[Load], service: &Service, work: impl FnOnce() -> T) -> (T, u64) {
    let (ended, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for load in loads {
            let (ended, answered) = (&ended, &answered);
            scope.spawn(move || {
                let mut client = load.client(service);
                while !ended.load(Ordering::Relaxed) {
                    client.send(load);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_millis(500)); // until the first decodes run
        let before = answered.load(Ordering::Relaxed);
        let done = work();
        let meanwhile = answered.load(Ordering::Relaxed) - before;
        ended.store(true, Ordering::Relaxed);
        (done, meanwhile)
    })
}
