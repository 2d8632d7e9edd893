//! Measures what it costs to save a picture so that it survives a loss of power. Compares the folder on
//! disk with a folder in memory, and this program with an earlier one.

use crate::{
    Bench,
    child::{Service, program_of},
    disk,
    floor::ROUNDS,
    load::Load,
    pictures::SMALL,
    report::{heading, median, row},
};

impl Bench {
    pub fn saving(&mut self) {
        self.cost_of_disk();
        self.speed_on_disk();
    }

    /// Compares the processor time that the disk adds with that of saving the same bytes without the
    /// service. The column `times` is the quotient of both.
    fn cost_of_disk(&mut self) {
        let Some(memory) = self.start_in_memory() else { return };
        let on_disk = self.start_warm("saving");
        heading(
            "16 clients, 34 KB, fresh; processor time with the folder in memory and on disk, and of the disk alone",
            &["in memory", "on disk", "alone", "times"],
        );
        let folder = self.folder("alone");
        // In all rounds together, each service gets load for twice `load_time`.
        let run_for = self.load_time / ROUNDS * 2;
        let load = Load { run_for, ..self.fresh_uploads() };
        // 16 threads save, as 16 clients send in `load`.
        let measure_alone = || disk::measure(&folder, SMALL, 16, run_for / 2).cpu;
        measure_alone(); // in a new folder, the first few thousand files are slower
        let rounds = (0..ROUNDS).map(|_| {
            let cpu_in_memory = load.run(&memory.service, &self.nvidia).cpu.total();
            memory.remove_pictures();
            let cpu_on_disk = load.run(&on_disk, &self.nvidia).cpu.total();
            let cpu_alone = measure_alone();
            // `median` sorts the rounds by this ratio.
            [(cpu_on_disk - cpu_in_memory) / cpu_alone, cpu_in_memory, cpu_on_disk, cpu_alone]
        });
        let [ratio_to_alone, in_memory, on_disk, alone] = median(rounds.collect());
        row(&[], &[in_memory, on_disk, alone, ratio_to_alone]);
        let name = "upload, 34 KB, fresh: CPU of the disk, times alone";
        self.report.goal_at_most(name, ratio_to_alone, 1.5);
    }

    /// Measures the speed of uploads, and compares it with that of the earlier program if there is one.
    fn speed_on_disk(&mut self) {
        heading(
            "34 KB, fresh, the folder on disk; requests a second of 16 clients, and the latency of one",
            &["program", "req/s", "p50 ms"],
        );
        // Both programs start with a new folder, because its age matters.
        let service = self.start_warm("this");
        let before = program_of("BENCH_PROGRAM_BEFORE").map(|program| {
            let folder = self.folder("before");
            let earlier = Service::start_program(&program, &folder, &self.nvidia, &[]);
            self.warm_up(&earlier);
            earlier
        });
        // In all rounds together, each program gets each of these two loads for twice `load_time`.
        let from_16_clients = Load { run_for: self.load_time / ROUNDS * 2, ..self.fresh_uploads() };
        let from_one_client = Load { clients: 1, ..from_16_clients.clone() };
        let per_second = |service: &Service| from_16_clients.run(service, &self.nvidia).per_second;
        let p50 = |service: &Service| from_one_client.run(service, &self.nvidia).latency.p50;
        let (mut speeds, mut latencies) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            speeds.push(compare(&service, before.as_ref(), per_second));
            latencies.push(compare(&service, before.as_ref(), p50));
        }
        let [speed_ratio, speed, speed_before] = median(speeds);
        let [latency_ratio, latency, latency_before] = median(latencies);
        row(&["this".into()], &[speed, latency]);
        if before.is_some() {
            row(&["before".into()], &[speed_before, latency_before]);
            let name = "16 clients, on disk: requests a second, times before";
            self.report.goal_at_least(name, speed_ratio, 1.6);
            // No worse than before: two runs of the same program may differ by 5 %.
            let name = "one client, on disk: p50, times before";
            self.report.goal_at_most(name, latency_ratio, 1.05);
        }
    }
}

/// Measures the service, and then the earlier program. Returns the ratio and both figures. Without an
/// earlier program, 1 replaces its figure, and the ratio is the figure of the service. [`median`] sorts the
/// rounds by the ratio.
fn compare(
    service: &Service,
    before: Option<&Service>,
    measure: impl Fn(&Service) -> f64,
) -> [f64; 3] {
    let figure = measure(service);
    let figure_before = before.map_or(1.0, measure);
    [figure / figure_before, figure, figure_before]
}
