//! Compares two services: one whose folder is as full as after long use, and one whose folder is new.

use std::{
    fs::{self, File},
    path::Path,
};

use crate::{
    Bench,
    child::Service,
    floor::ROUNDS,
    load::Load,
    report::{heading, median, row},
};

/// The number of pictures in the full folder.
const PICTURES: u64 = 100_000;

/// The size of each of these pictures, in bytes.
const PICTURE_BYTES: u64 = 34 * 1024;

/// The number of cached vectors in the full folder.
const VECTORS: u64 = 50_000;

/// The size of each vector's file, in bytes.
const VECTOR_BYTES: u64 = 19_000;

impl Bench {
    /// Measures how long a service with a full folder takes to start. Then compares its uploads with those
    /// of a service with a new folder.
    pub fn scale(&mut self) {
        let full_folder = self.folder("full");
        fill(&full_folder.join("downloads"));
        // The cache's limit is high enough for all vectors, so that the service removes none.
        let settings = [("IMAGESVC_CACHE_DISK", "4GiB")];
        let full_service = Service::start(&full_folder, &self.nvidia, &settings);
        let startup_ms = full_service.startup_time.as_secs_f64() * 1000.0;
        self.report.goal_at_most("start to first answer, full folder, ms", startup_ms, 30.0);
        self.warm_up(&full_service);
        let new_service = self.start_warm("new");
        heading(
            "16 clients, 34 KB, fresh; a folder with 100,000 pictures and 50,000 vectors, and a new folder",
            &["folder", "req/s", "CPU ms", "peak MB"],
        );
        // In all rounds together, each service is under load for twice the usual time.
        let load = Load { run_for: self.load_time / ROUNDS * 2, ..self.fresh_uploads() };
        let rounds = (0..ROUNDS).map(|_| {
            let [full_result, new_result] =
                [&full_service, &new_service].map(|service| load.run(service, &self.nvidia));
            let (cpu_full, cpu_new) = (full_result.cpu.total(), new_result.cpu.total());
            [
                // `median` sorts the rounds by this ratio.
                cpu_full / cpu_new,
                full_result.per_second,
                cpu_full,
                full_result.peak_memory,
                new_result.per_second,
                cpu_new,
                new_result.peak_memory,
            ]
        });
        let [ratio, full_figures @ .., new_per_second, new_cpu, new_memory] =
            median(rounds.collect());
        row(&["full".into()], &full_figures);
        row(&["new".into()], &[new_per_second, new_cpu, new_memory]);
        self.report.goal_at_most("CPU of an upload, full folder, times new folder", ratio, 1.1);
    }
}

/// Creates files with the names and sizes of saved pictures and cached vectors. The files contain only
/// zeros and are sparse, because the service reads only the files that a request needs.
fn fill(downloads: &Path) {
    fs::create_dir_all(downloads).unwrap();
    for n in 0..PICTURES {
        let name = format!("0191f0a0-0000-7000-8000-{n:012x}.jpg");
        File::create(downloads.join(name)).unwrap().set_len(PICTURE_BYTES).unwrap();
    }
    let vectors = downloads.join(".vectors");
    // The cache uses a subfolder for each first byte of a vector's key.
    for folder in 0..256 {
        fs::create_dir_all(vectors.join(format!("{folder:02x}"))).unwrap();
    }
    for n in 0..VECTORS {
        let folder = n % 256;
        let name = format!("{folder:02x}/{folder:02x}{n:014x}{:048x}", 0);
        File::create(vectors.join(name)).unwrap().set_len(VECTOR_BYTES).unwrap();
    }
    // These writes must not slow down the next measurement.
    rustix::fs::sync();
}
