//! Runs the service as a separate process, and reads its processor time and memory from the kernel.

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

/// The program to measure: the one that `BENCH_PROGRAM` names if it is set, else that of this build.
pub fn program() -> PathBuf {
    program_of("BENCH_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_imagesvc").into())
}

/// The program whose path is in this environment variable. `None` if the variable is not set.
pub fn program_of(variable: &str) -> Option<PathBuf> {
    // An absolute path, because the service runs in another folder.
    env::var_os(variable).map(|program| fs::canonicalize(program).unwrap())
}

/// A running service. Dropping it kills the process. The nginx of [`crate::nginx`] is also a `Service`,
/// because it is measured in the same way.
pub struct Service {
    pub address: SocketAddr,
    /// The time from the start of the process until it was healthy.
    pub startup_time: Duration,
    process: Child,
}

/// Processor time in milliseconds: in the program's own code, and in the kernel.
#[derive(Clone, Copy)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn total(self) -> f64 {
        self.user + self.system
    }

    /// The difference from an earlier value, divided by the number of requests in between.
    pub fn per_request_since(self, earlier: Self, requests: f64) -> Self {
        Self {
            user: (self.user - earlier.user) / requests,
            system: (self.system - earlier.system) / requests,
        }
    }
}

impl Service {
    /// Starts [`program`] as a service in a folder, and waits until it is healthy. The service calls
    /// the fake NVIDIA.
    pub fn start(folder: &Path, nvidia: &FakeNvidia, settings: &[(&str, &str)]) -> Self {
        Self::start_program(&program(), folder, nvidia, settings)
    }

    /// Like [`Self::start`], but starts the program at this path.
    pub fn start_program(
        program: &Path,
        folder: &Path,
        nvidia: &FakeNvidia,
        settings: &[(&str, &str)],
    ) -> Self {
        let address = free_address();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("MALLOC_ARENA_MAX", "2") // as in the systemd unit and the container image
            .env("IMAGESVC_HOST", "127.0.0.1")
            .env("IMAGESVC_LOG_FORMAT", "json")
            // All connections of the benchmark come from the same address.
            .env("IMAGESVC_MAX_CONNECTIONS_PER_PEER", "1024")
            .env("IMAGESVC_PORT", address.port().to_string())
            // The fake NVIDIA also serves the pictures of the requests with a URL.
            .env("IMAGESVC_FETCH_ALLOW", nvidia.address.to_string())
            .envs(nvidia_api::settings(nvidia.address))
            .envs(settings.iter().copied());
        Self::spawn(command, address, folder)
    }

    /// Starts a server, and waits until it is healthy. Its log is appended to `service.log` in the folder.
    pub fn spawn(mut command: Command, address: SocketAddr, folder: &Path) -> Self {
        let log = File::options().create(true).append(true).open(folder.join("service.log"));
        command.current_dir(folder).stderr(Stdio::from(log.unwrap()));
        let started = Instant::now();
        let mut process = command.spawn().unwrap();
        while !is_healthy(address) {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the service ended: {status}; see service.log in {}", folder.display());
            }
            thread::sleep(Duration::from_micros(200));
        }
        Self { address, startup_time: started.elapsed(), process }
    }

    /// The processor time of all threads of the service so far, without the decoders.
    pub fn cpu(&self) -> Cpu {
        self.read_cpu(11) // utime and stime
    }

    /// The processor time of all decoders that have ended so far.
    pub fn cpu_of_decoders(&self) -> Cpu {
        self.read_cpu(13) // cutime and cstime: the times of the children that have ended
    }

    /// Reads two fields of `/proc/<id>/stat`: the user time at index `user_field`, and the system
    /// time at the next index. Index 0 is the first field after the program's name.
    fn read_cpu(&self, user_field: usize) -> Cpu {
        let stat = fs::read_to_string(self.proc_path("stat")).unwrap();
        // The name is in parentheses, and may itself contain spaces and parentheses.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // The kernel reports these times in hundredths of a second, whatever its timer frequency
        // is.
        let millis = |field: usize| fields[field].parse::<f64>().unwrap() * 10.0;
        Cpu { user: millis(user_field), system: millis(user_field + 1) }
    }

    /// The resident memory, in MB.
    pub fn memory(&self) -> f64 {
        memory_field(self.process.id(), "VmRSS:").unwrap()
    }

    /// The peak of the resident memory since the last call of [`Self::reset_peak_memory`], in MB.
    pub fn peak_memory(&self) -> f64 {
        memory_field(self.process.id(), "VmHWM:").unwrap()
    }

    /// Starts a new measurement for [`Self::peak_memory`].
    pub fn reset_peak_memory(&self) {
        fs::write(self.proc_path("clear_refs"), "5").unwrap(); // 5 resets `VmHWM`
    }

    /// The highest resident memory of any one decoder while `work` runs, in MB. This reads the peaks
    /// every half millisecond, so it may miss a peak just before a decoder ends.
    pub fn peak_of_decoders(&self, work: impl FnOnce()) -> f64 {
        let work_has_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut peak = 0.0_f64;
                while !work_has_ended.load(Ordering::Relaxed) {
                    peak = self
                        .decoders()
                        .filter_map(|id| memory_field(id, "VmHWM:"))
                        .fold(peak, f64::max);
                    thread::sleep(Duration::from_micros(500));
                }
                peak
            });
            work();
            work_has_ended.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        })
    }

    /// The process ids of the decoders. Leaves out a child between fork and exec, because it still has
    /// the memory of the service.
    fn decoders(&self) -> impl Iterator<Item = u32> {
        let threads = fs::read_dir(self.proc_path("task")).unwrap().flatten();
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

    /// The path in `/proc` of a file about the service's process.
    fn proc_path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.process.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // This fails if the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An address whose port is free now. Another process is unlikely to use it before the server does.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Reads a memory field of `/proc/<id>/status` in MB. Returns `None` if the process has ended.
pub fn memory_field(process_id: u32, name: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    // The kernel writes kB, but means KiB.
    Some(line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6)
}

/// Whether the server responds to a health check with a success.
fn is_healthy(address: SocketAddr) -> bool {
    let check = |mut connection: Connection| {
        connection.exchange(b"GET /health HTTP/1.1\r\nHost: imagesvc\r\n\r\n")
    };
    Connection::open(address).and_then(check).is_ok_and(|response| response.status == 200)
}
