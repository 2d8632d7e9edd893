//! The service as a separate process, with the kernel's measurements of it.

use std::{
    env,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{fake_nvidia::FakeNvidia, http::Connection, nvidia_api};

/// The program to measure: this build, or the one that `BENCH_PROGRAM` names.
pub fn program() -> PathBuf {
    let program = env::var_os("BENCH_PROGRAM").unwrap_or(env!("CARGO_BIN_EXE_imagesvc").into());
    fs::canonicalize(program).unwrap() // absolute, since the service runs in another folder
}

/// The running service, killed when dropped.
pub struct Service {
    pub address: SocketAddr,
    /// The time from the start of the process to its first answer.
    pub started_in: Duration,
    process: Child,
}

/// Processor time, in milliseconds.
#[derive(Clone, Copy)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn all(self) -> f64 {
        self.user + self.system
    }

    /// The time since `then`, per request.
    pub fn since(self, then: Self, requests: f64) -> Self {
        Self {
            user: (self.user - then.user) / requests,
            system: (self.system - then.system) / requests,
        }
    }
}

impl Service {
    /// Starts the service in a folder, in front of the fake NVIDIA, and waits for its first answer.
    pub fn start(folder: &Path, nvidia: &FakeNvidia, settings: &[(&str, &str)]) -> Self {
        // The port is free now; another process is unlikely to take it before the service does.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = File::options().create(true).append(true).open(folder.join("service.log"));
        let mut command = Command::new(program());
        command
            .env_clear()
            .env("MALLOC_ARENA_MAX", "2") // as the unit and the image start it
            .env("IMAGESVC_HOST", "127.0.0.1")
            .envs([("IMAGESVC_LOG_FORMAT", "json"), ("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1024")])
            .env("IMAGESVC_PORT", address.port().to_string())
            .env("IMAGESVC_FETCH_ALLOW", nvidia.address.to_string())
            .envs(nvidia_api::settings(nvidia.address))
            .envs(settings.iter().copied())
            .current_dir(folder)
            .stderr(Stdio::from(log.unwrap()));
        let begun = Instant::now();
        let mut process = command.spawn().unwrap();
        while !answers(address) {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the service ended: {status}; see service.log in {}", folder.display());
            }
            thread::sleep(Duration::from_micros(200));
        }
        Self { address, started_in: begun.elapsed(), process }
    }

    /// The processor time of all threads so far.
    pub fn cpu(&self) -> Cpu {
        self.times(11)
    }

    /// The processor time of all decoders that have ended so far.
    pub fn cpu_of_decoders(&self) -> Cpu {
        self.times(13)
    }

    fn times(&self, first: usize) -> Cpu {
        let stat = fs::read_to_string(self.proc("stat")).unwrap();
        // The program's name is in parentheses and may hold anything; numbers follow it.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
        // The kernel reports hundredths of a second, whatever its own tick.
        Cpu { user: ticks(first) * 10.0, system: ticks(first + 1) * 10.0 }
    }

    /// The resident memory, in MB.
    pub fn memory(&self) -> f64 {
        status(self.process.id(), "VmRSS:").unwrap()
    }

    /// The peak of the resident memory since the last call of `forget_peak`, in MB.
    pub fn peak_memory(&self) -> f64 {
        status(self.process.id(), "VmHWM:").unwrap()
    }

    pub fn forget_peak(&self) {
        fs::write(self.proc("clear_refs"), "5").unwrap();
    }

    /// The peak of the resident memory of any decoder while `work` runs, in MB. It samples every
    /// half a millisecond, so it may miss a peak just before a decoder ends.
    pub fn peak_of_decoders(&self, work: impl FnOnce()) -> f64 {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = 0.0_f64;
                while !ended.load(Ordering::Relaxed) {
                    peak =
                        self.decoders().filter_map(|id| status(id, "VmHWM:")).fold(peak, f64::max);
                    thread::sleep(Duration::from_micros(500));
                }
                peak
            });
            work();
            ended.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        })
    }

    /// The ids of the decoders. A child that has not yet executed the program still has its
    /// parent's memory and does not count.
    fn decoders(&self) -> impl Iterator<Item = u32> {
        let threads = fs::read_dir(self.proc("task")).unwrap().flatten();
        let children =
            threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
        let ids: Vec<u32> = children
            .flat_map(|ids| {
                ids.split_whitespace().map(|id| id.parse().unwrap()).collect::<Vec<_>>()
            })
            .collect();
        ids.into_iter().filter(|id| {
            fs::read_to_string(format!("/proc/{id}/cmdline"))
                .is_ok_and(|line| line.contains("\0decode\0"))
        })
    }

    fn proc(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One value of a process's memory in MB, or `None` if it has ended.
fn status(process: u32, name: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6)
}

fn answers(address: SocketAddr) -> bool {
    let ask = |mut connection: Connection| {
        connection.exchange(b"GET /health HTTP/1.1\r\nHost: imagesvc\r\n\r\n")
    };
    Connection::open(address).and_then(ask).is_ok_and(|answer| answer.status == 200)
}
