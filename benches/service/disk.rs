//! Measures how long the disk alone needs to save a picture. No service can be faster.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{load::Percentiles, samples::jpeg};

/// What was measured while files were saved.
pub struct DiskResult {
    pub files_per_second: f64,
    pub latency: Percentiles,
    /// The processor time per file, in milliseconds.
    pub cpu: f64,
}

/// Saves files of this length as the service does: write, fsync, rename, fsync of the folder.
pub fn measure(folder: &Path, len: usize, threads: usize, time: Duration) -> DiskResult {
    let bytes = jpeg(len);
    fs::create_dir_all(folder.join("staged")).unwrap();
    let started = Instant::now();
    let (mut times, mut cpu) = (Vec::new(), 0.0);
    let work = |thread: usize| {
        let (cpu_before, mut times) = (thread_cpu(), Vec::new());
        while started.elapsed() < time {
            let save_started = Instant::now();
            save(folder, &format!("{thread}-{}", times.len()), &bytes);
            times.push(save_started.elapsed());
        }
        (times, thread_cpu() - cpu_before)
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        for thread in threads {
            let (thread_times, thread_cpu) = thread.join().unwrap();
            times.extend(thread_times);
            cpu += thread_cpu;
        }
    });
    let elapsed = started.elapsed().as_secs_f64();
    let files = times.len() as f64;
    let latency = Percentiles::of(times);
    DiskResult { files_per_second: files / elapsed, latency, cpu: cpu / files }
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
fn thread_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}
