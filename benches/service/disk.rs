//! Measures how long the disk itself takes to keep a picture, which is a lower bound for any
//! service.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{load::Spread, samples::jpeg};

/// The cost of keeping files.
pub struct Floor {
    pub per_second: f64,
    pub latency: Spread,
    /// The processor time per file, in milliseconds.
    pub cpu: f64,
}

/// Keeps files of this length as the service does: write, fsync, rename, fsync of the folder.
pub fn measure(folder: &Path, len: usize, threads: usize, time: Duration) -> Floor {
    let bytes = jpeg(len);
    fs::create_dir_all(folder.join("staged")).unwrap();
    let begun = Instant::now();
    let (mut times, mut cpu) = (Vec::new(), 0.0);
    let work = |thread: usize| {
        let (before, mut times) = (own_cpu(), Vec::new());
        while begun.elapsed() < time {
            let started = Instant::now();
            keep(folder, &format!("{thread}-{}", times.len()), &bytes);
            times.push(started.elapsed());
        }
        (times, own_cpu() - before)
    };
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        for thread in threads {
            let done = thread.join().unwrap();
            times.extend(done.0);
            cpu += done.1;
        }
    });
    let elapsed = begun.elapsed().as_secs_f64();
    let files = times.len() as f64;
    Floor { per_second: files / elapsed, latency: Spread::of(times), cpu: cpu / files }
}

fn keep(folder: &Path, name: &str, bytes: &[u8]) {
    let staged = folder.join("staged").join(name);
    let mut file = File::create_new(&staged).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    fs::rename(&staged, folder.join(name)).unwrap();
    File::open(folder).unwrap().sync_all().unwrap();
}

/// The processor time of this thread, in milliseconds.
fn own_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}
