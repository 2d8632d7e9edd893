//! Measures the time and memory that decoding a picture in a child process needs, and how much
//! decoding delays other requests.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Bench,
    child::Service,
    load::{Load, LoadResult, Percentiles},
    photographs::{Photographs, one_pixel_pictures},
    report::{heading, row},
    request::Request,
};

/// The setting that turns off the cache in memory, which would add to the measured memory.
const NO_MEMORY_CACHE: (&str, &str) = ("IMAGESVC_CACHE_MEMORY", "0");

/// How many times the p99 of small uploads is measured, alone and beside decoders. The goal is for the
/// median ratio, so that other work on the machine matters less.
const ROUNDS: usize = 3;

impl Bench {
    pub fn decode(&mut self) {
        let photographs = Photographs::new();
        let service = Service::start(&self.folder("decode"), &self.nvidia, &[NO_MEMORY_CACHE]);
        thread::sleep(Duration::from_millis(500)); // until the start is complete
        let idle = service.memory();
        self.fresh_uploads().run(&service, &self.nvidia); // only the memory afterwards matters
        let after_uploads = service.memory();

        self.one_pixel(&service);
        heading(
            "12 megapixels, one after the other; processor time of the service and of the decoders, in ms",
            &["picture", "MB", "p50 ms", "service", "decoders", "CPU ms", "child MB", "peak MB"],
        );
        self.photograph("WebP", &photographs.webp, &service);
        self.photograph("TIFF", &photographs.tiff, &service);
        let (turned_cpu, turned_memory) = self.photograph("turned", &photographs.turned, &service);
        // An upright JPEG is decoded only to make it smaller, which `shrink` demands.
        let settings = [NO_MEMORY_CACHE, ("NVIDIA_LARGE_IMAGES", "shrink")];
        let shrinking_service =
            Service::start(&self.folder("decode-shrink"), &self.nvidia, &settings);
        self.photograph("JPEG", &photographs.jpeg, &shrinking_service);
        drop(shrinking_service);
        self.report.goal_at_most(
            "a turned JPEG of 12 megapixels, ms of processor time",
            turned_cpu,
            400.0,
        );
        self.report.goal_at_most(
            "a turned JPEG of 12 megapixels, MB in the child",
            turned_memory,
            120.0,
        );
        let after_decoding = service.memory();
        self.uploads_beside_decoders(&photographs, &service);

        thread::sleep(Duration::from_secs(1)); // until the last decoders have ended
        let after_both = service.memory();
        println!(
            "resident, MB: {idle:.1} after start, {after_uploads:.1} after uploads alone, {after_decoding:.1} after decoding, {after_both:.1} after both at once"
        );
        self.report.goal_at_most(
            "resident after both at once, MB over start",
            after_both - idle,
            16.0,
        );
    }

    /// Measures how long decoding a picture of one pixel takes. Uploads of a GIF, which is decoded, alternate
    /// with uploads of a PNG, which is not. So other work on the machine affects both equally.
    fn one_pixel(&mut self, service: &Service) {
        let (gif, png) = one_pixel_pictures();
        let [gif_load, png_load] = [gif, png].map(|picture| upload_load(&picture, self.load_time));
        let (mut gif_client, mut png_client) =
            (gif_load.connect_client(service), png_load.connect_client(service));
        let (mut decoded, mut not_decoded) = (Vec::new(), Vec::new());
        let (started, cpu_before) = (Instant::now(), service.cpu_of_decoders());
        while started.elapsed() < self.load_time {
            not_decoded.push(png_client.send(&png_load));
            decoded.push(gif_client.send(&gif_load));
        }
        // Each GIF was decoded by a child of its own.
        let child_count = decoded.len() as f64;
        let cpu = service.cpu_of_decoders().per_request_since(cpu_before, child_count);
        let (decoded, not_decoded) = (Percentiles::of(decoded), Percentiles::of(not_decoded));
        println!(
            "\n{child_count} uploads of a GIF and as many of a PNG, in turn, each of one pixel: {:.3} ms for the GIF (p99 {:.3}), {:.3} ms for the PNG, which is not decoded (p99 {:.3}); CPU of a child {:.3} ms",
            decoded.p50,
            decoded.p99,
            not_decoded.p50,
            not_decoded.p99,
            cpu.total()
        );
        self.report.goal_at_most("one child for one pixel, ms", decoded.p50 - not_decoded.p50, 4.0);
    }

    /// Measures uploads of one photograph. Returns the processor time of an upload in ms, for the service
    /// and the decoder together; and the peak memory of a decoder in MB.
    fn photograph(&self, name: &str, picture: &[u8], service: &Service) -> (f64, f64) {
        let load = upload_load(picture, self.load_time);
        let result = load.run(service, &self.nvidia);
        // The decoders' memory is measured separately, because `peak_of_decoders` takes processor time.
        let mut client = load.connect_client(service);
        let decoder_peak = service.peak_of_decoders(|| {
            for _ in 0..3 {
                client.send(&load);
            }
        });
        let (service_cpu, decoder_cpu) = (result.cpu.total(), result.decoder_cpu.total());
        let service_peak = result.peak_memory;
        row(
            &[name.into()],
            &[
                picture.len() as f64 / 1e6,
                result.latency.p50,
                service_cpu,
                decoder_cpu,
                service_cpu + decoder_cpu,
                decoder_peak,
                service_peak,
            ],
        );
        (service_cpu + decoder_cpu, decoder_peak)
    }

    /// Measures uploads of 34 KB without other load, and then while two more clients send pictures that must
    /// be decoded.
    fn uploads_beside_decoders(&mut self, photographs: &Photographs, service: &Service) {
        heading(
            "34 KB uploads of 16 clients: alone, and beside two clients that send a WebP and a TIFF of 12 megapixels",
            &["beside", "req/s", "p50 ms", "p99 ms", "decoded"],
        );
        let print_row = |beside: &str, result: &LoadResult, decoded_count: u64| {
            let LoadResult { per_second, latency, .. } = *result;
            row(&[beside.into()], &[per_second, latency.p50, latency.p99, decoded_count as f64]);
        };
        let small = self.fresh_uploads();
        let mut ratios = [0.0; ROUNDS];
        for ratio in &mut ratios {
            let alone = small.run(service, &self.nvidia);
            print_row("nothing", &alone, 0);
            let decoded_loads = [&photographs.webp, &photographs.tiff]
                .map(|picture| upload_load(picture, self.load_time));
            let (beside, decoded_count) =
                run_under_load(&decoded_loads, service, || small.run(service, &self.nvidia));
            print_row("decoding", &beside, decoded_count);
            *ratio = beside.latency.p99 / alone.latency.p99;
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ROUNDS / 2];
        self.report.goal_at_most("p99 of an upload, beside decoders against alone", median, 4.0);
    }
}

/// The load of one client that uploads without a pause. Each request contains a new picture: a copy of
/// `picture` whose last bytes are another number.
fn upload_load(picture: &[u8], run_for: Duration) -> Load {
    Load { request: Request::upload_of(picture), is_fresh: true, clients: 1, run_for }
}

/// Runs `work`. At the same time, one client for each load sends requests without a pause. Returns
/// the result of `work`, and how many requests of these clients were answered during `work`.
fn run_under_load<T>(loads: &[Load], service: &Service, work: impl FnOnce() -> T) -> (T, u64) {
    let (work_has_ended, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for load in loads {
            let (work_has_ended, answered) = (&work_has_ended, &answered);
            scope.spawn(move || {
                let mut client = load.connect_client(service);
                while !work_has_ended.load(Ordering::Relaxed) {
                    client.send(load);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(Duration::from_millis(500)); // until the first decodes run
        let answered_before = answered.load(Ordering::Relaxed);
        let result = work();
        let answered_during_work = answered.load(Ordering::Relaxed) - answered_before;
        work_has_ended.store(true, Ordering::Relaxed);
        (result, answered_during_work)
    })
}
