//! Measures how long the disk alone needs to save a picture. The service cannot save a picture
//! faster.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{load::Percentiles, samples::jpeg};

/// The name of the next file. No file replaces an earlier one, because that would have a cost of its own.
static NEXT_NAME: AtomicU64 = AtomicU64::new(0);

/// What was measured while files were saved.
pub struct DiskResult {
    pub files_per_second: f64,
    pub latency: Percentiles,
    /// The processor time per file, in milliseconds.
    pub cpu: f64,
}

/// Saves files of `len` bytes on several threads, for the time `run_for`. Each is saved as the
/// service saves a picture: write, fsync, rename, fsync of the folder.
pub fn measure(folder: &Path, len: usize, thread_count: usize, run_for: Duration) -> DiskResult {
    let bytes = jpeg(len);
    fs::create_dir_all(folder.join("staged")).unwrap();
    let started = Instant::now();
    let save_files = || {
        let (cpu_before, mut latencies) = (cpu_of_this_thread(), Vec::new());
        while started.elapsed() < run_for {
            let save_started = Instant::now();
            save(folder, &NEXT_NAME.fetch_add(1, Ordering::Relaxed).to_string(), &bytes);
            latencies.push(save_started.elapsed());
        }
        (latencies, cpu_of_this_thread() - cpu_before)
    };
    let (mut all_latencies, mut total_cpu) = (Vec::new(), 0.0);
    thread::scope(|scope| {
        let save_files = &save_files;
        let handles: Vec<_> = (0..thread_count).map(|_| scope.spawn(save_files)).collect();
        for handle in handles {
            let (latencies, cpu) = handle.join().unwrap();
            all_latencies.extend(latencies);
            total_cpu += cpu;
        }
    });
    let elapsed = started.elapsed().as_secs_f64();
    let files = all_latencies.len() as f64;
    let latency = Percentiles::of(all_latencies);
    DiskResult { files_per_second: files / elapsed, latency, cpu: total_cpu / files }
}

fn save(folder: &Path, name: &str, bytes: &[u8]) {
    let staged = folder.join("staged").join(name);
    let mut file = File::create_new(&staged).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    fs::rename(&staged, folder.join(name)).unwrap();
    File::open(folder).unwrap().sync_all().unwrap();
}

/// The processor time of this thread, in milliseconds.
fn cpu_of_this_thread() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    // The first field is in nanoseconds.
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}
