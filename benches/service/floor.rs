//! Compares the processor time of a request with a floor. The floor is the processor time of nginx when it
//! forwards a request for one embedding to the fake NVIDIA and returns the answer. Processor times vary with
//! the machine and over time; their ratio hardly does.

use std::fs;

use tempfile::TempDir;

use crate::{
    Bench,
    child::Service,
    load::Load,
    nginx,
    pictures::{LARGE, SMALL},
    report::{heading, median, row},
    request::Request,
};

/// The number of rounds. Each measures two programs in turn. The median of the rounds' ratios counts.
pub const ROUNDS: u32 = 5;

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// The most memory that the pictures of a round, and the files of the vector cache, need.
const MEMORY_BYTES: u64 = 4 << 30;

/// A service whose folder is in memory. Dropping it removes the folder.
pub struct InMemory {
    pub service: Service,
    folder: TempDir,
}

impl InMemory {
    /// Removes the saved pictures, so that they do not fill the memory.
    pub fn remove_pictures(&self) {
        for entry in fs::read_dir(self.folder.path().join("downloads")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jpg") {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

impl Bench {
    /// Compares each route with nginx. nginx always passes on the inference request for a picture of 34 KB,
    /// even if the route receives 2 MB.
    pub fn floor(&mut self) {
        let folder = self.folder("nginx");
        let Some(nginx) = nginx::start(&folder, self.nvidia.address) else { return };
        let Some(in_memory) = self.start_in_memory() else { return };
        heading(
            "16 clients, the folder in memory; processor time against that of nginx",
            &["route", "picture", "sent", "nginx ms", "CPU ms", "times"],
        );
        let url = Request::url(&self.nvidia.picture_url(SMALL));
        // With `fresh`, each request sends another picture; with `again`, all send the same picture. The
        // number is the goal: at most this many times nginx's processor time.
        let goals = [
            ("upload", "34 KB", "fresh", Request::upload(SMALL), 6.0),
            ("base64", "34 KB", "fresh", Request::base64(SMALL), 6.5),
            ("url", "34 KB", "fresh", url, 9.0),
            ("upload", "34 KB", "again", Request::upload(SMALL), 2.8),
            ("upload", "2 MB", "fresh", Request::upload(LARGE), 120.0),
        ];
        // In all rounds together, each of the two programs gets load for twice `load_time`.
        let run_for = self.load_time / ROUNDS * 2;
        let load_of = |request, is_fresh| Load { request, is_fresh, clients: 16, run_for };
        let pass_through = load_of(Request::inference(), true);
        for (route, picture, sent, request, max_ratio) in goals {
            let load = load_of(request, sent == "fresh");
            let rounds = (0..ROUNDS).map(|_| {
                let floor = pass_through.run(&nginx, &self.nvidia).cpu.total();
                let cpu = load.run(&in_memory.service, &self.nvidia).cpu.total();
                in_memory.remove_pictures();
                // `median` sorts the rounds by this ratio. It is printed in the column `times`.
                [cpu / floor, floor, cpu]
            });
            let [ratio, floor, cpu] = median(rounds.collect());
            row(&[route.into(), picture.into(), sent.into()], &[floor, cpu, ratio]);
            let name = format!("{route}, {picture}, {sent}, in memory: times nginx");
            self.report.goal_at_most(&name, ratio, max_ratio);
        }
    }

    /// Starts a service whose folder is in memory, and warms it up. Returns `None`, and says why, if there
    /// is too little memory.
    pub fn start_in_memory(&self) -> Option<InMemory> {
        let free_bytes = rustix::fs::statvfs(MEMORY).map(|free| free.f_bavail * free.f_frsize);
        if free_bytes.unwrap_or_default() < MEMORY_BYTES {
            println!("\nskipped: {MEMORY} has less than {} GiB free", MEMORY_BYTES >> 30);
            return None;
        }
        let folder = tempfile::Builder::new().prefix("imagesvc-bench-").tempdir_in(MEMORY).unwrap();
        let service = Service::start(folder.path(), &self.nvidia, &[]);
        let in_memory = InMemory { service, folder };
        self.warm_up(&in_memory.service);
        in_memory.remove_pictures();
        Some(in_memory)
    }
}
