//! Measures `imagesvc embed`: its speed, its memory for a long list, and how long a run takes whose rows
//! are all in the output already.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Bench,
    child::{memory_field, program},
    fake_nvidia::FakeNvidia,
    nvidia_api,
    pictures::{NUMBER_LEN, SMALL},
    report::{heading, row},
    samples::jpeg,
};

/// The number of pictures in the folder that [`Bench::folder_of_pictures`] embeds. All are different.
const PICTURES: u32 = 10_000;

/// The number of different pictures in the long list, which repeats them.
const LISTED_PICTURES: u32 = 8;

/// The number of rows of the long list, unless `BENCH_LIST_ROWS` is set.
const LISTED_ROWS: u32 = 1_000_000;

/// The number of rows of the output that is complete before the run.
const OUTPUT_ROWS: u32 = 100_000;

/// How often the memory of a run is read.
const MEMORY_INTERVAL: Duration = Duration::from_millis(20);

/// What was measured of a run.
struct Run {
    seconds: f64,
    /// The highest resident memory, in MB.
    peak_memory: f64,
}

impl Bench {
    pub fn bulk(&mut self) {
        heading(
            "imagesvc embed, which runs the service in its own process",
            &["run", "rows", "seconds", "rows/s", "peak MB"],
        );
        self.folder_of_pictures();
        self.long_list();
        self.continue_complete_output();
    }

    /// Embeds a folder of new pictures, and then the same folder into another output.
    fn folder_of_pictures(&mut self) {
        let folder = self.folder("pictures");
        write_pictures(&folder, PICTURES);
        rustix::fs::sync();
        for (name, goal) in [("fresh", 1_500.0), ("cached", 3_000.0)] {
            let out = format!("{name}.jsonl");
            let run = embed(&folder, &self.nvidia, &["photos", "--out", &out]);
            assert_eq!(count_lines(&folder.join(out)), PICTURES);
            let per_second = run.print(name, PICTURES);
            self.report.goal_at_least(&format!("embed, {name}: rows a second"), per_second, goal);
        }
    }

    /// Embeds a long list. The rows go to standard output, which [`embed`] discards: each row has about
    /// 30 KB.
    fn long_list(&mut self) {
        let rows = env::var("BENCH_LIST_ROWS").map_or(LISTED_ROWS, |text| text.parse().unwrap());
        let folder = self.folder("list");
        write_pictures(&folder, LISTED_PICTURES);
        let mut list = BufWriter::new(File::create(folder.join("list.jsonl")).unwrap());
        for n in 0..rows {
            writeln!(list, "{}", row_of(n, LISTED_PICTURES)).unwrap();
        }
        list.flush().unwrap();
        let run = embed(&folder, &self.nvidia, &["list.jsonl"]);
        run.print("list", rows);
        self.report.goal_at_most("embed, a long list: peak MB", run.peak_memory, 150.0);
    }

    /// Runs again with an output that already contains all rows of the source, so every row is skipped.
    fn continue_complete_output(&mut self) {
        let folder = self.folder("output");
        let out = folder.join("out.jsonl");
        write_list_and_output(&folder, &out);
        rustix::fs::sync();
        count_lines(&out); // now the file is in the page cache for both measurements
        let wc_started = Instant::now();
        assert_eq!(count_lines(&out), OUTPUT_ROWS);
        let wc_seconds = wc_started.elapsed().as_secs_f64();
        let run = embed(&folder, &self.nvidia, &["list.jsonl", "--out", "out.jsonl"]);
        assert_eq!(count_lines(&out), OUTPUT_ROWS, "no row must be added");
        run.print("skipped", OUTPUT_ROWS);
        println!(
            "an output of {:.1} GB: wc -l {wc_seconds:.2} s, a run that skips all rows {:.2} s",
            fs::metadata(&out).unwrap().len() as f64 / 1e9,
            run.seconds
        );
        fs::remove_file(out).unwrap();
        let extra_seconds = run.seconds - wc_seconds;
        let name = "embed, a complete output: seconds more than wc -l";
        self.report.goal_at_most(name, extra_seconds, 2.0);
    }
}

impl Run {
    /// Prints a row of the table. Returns the number of rows a second.
    fn print(&self, name: &str, rows: u32) -> f64 {
        let per_second = f64::from(rows) / self.seconds;
        row(&[name.into()], &[f64::from(rows), self.seconds, per_second, self.peak_memory]);
        per_second
    }
}

/// Runs `imagesvc embed` in a folder, with the cache in that folder.
fn embed(folder: &Path, nvidia: &FakeNvidia, arguments: &[&str]) -> Run {
    let log = File::options().create(true).append(true).open(folder.join("embed.log")).unwrap();
    let mut command = Command::new(program());
    command
        .arg("embed")
        .args(arguments)
        .env_clear()
        .envs(nvidia_api::settings(nvidia.address))
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    let started = Instant::now();
    let mut process = command.spawn().unwrap();
    let mut peak_memory = 0.0_f64;
    let status = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        peak_memory = memory_field(process.id(), "VmHWM:").unwrap_or(peak_memory);
        thread::sleep(MEMORY_INTERVAL);
    };
    let seconds = started.elapsed().as_secs_f64();
    assert!(status.success(), "{status}; see embed.log in {}", folder.display());
    Run { seconds, peak_memory }
}

/// Writes different pictures of 34 KB to the folder `photos`.
fn write_pictures(folder: &Path, count: u32) {
    let photos = folder.join("photos");
    fs::create_dir(&photos).unwrap();
    let mut picture = jpeg(SMALL);
    for n in 0..count {
        // The number replaces the last bytes. Only the header must stay valid: see [`jpeg`].
        let digits = format!("{n:0NUMBER_LEN$}");
        picture[SMALL - NUMBER_LEN..].copy_from_slice(digits.as_bytes());
        fs::write(photos.join(format!("{n}.jpg")), &picture).unwrap();
    }
}

/// Row `n` of a list, as a JSON object. The list repeats the first `pictures` pictures.
fn row_of(n: u32, pictures: u32) -> String {
    format!(r#"{{"name": "Person {n}", "path": "photos/{}.jpg", "n": {n}}}"#, n % pictures)
}

/// Writes a list, and an output that contains all rows of the list. The pictures themselves are not
/// needed, because the run skips all rows.
fn write_list_and_output(folder: &Path, out_path: &Path) {
    // Numbers of about 20 characters, so that a row has about 30 KB.
    let mut vector = String::new();
    for n in 0..1536_u32 {
        let comma = if n == 0 { "" } else { "," };
        write!(vector, "{comma}{}", (f64::from(n) * 12.9898).sin() / 20.0).unwrap();
    }
    let mut list = BufWriter::new(File::create(folder.join("list.jsonl")).unwrap());
    let mut out = BufWriter::new(File::create(out_path).unwrap());
    let sha256 = "0".repeat(64);
    for n in 0..OUTPUT_ROWS {
        let row = row_of(n, OUTPUT_ROWS);
        writeln!(list, "{row}").unwrap();
        let source_fields = row.strip_suffix('}').unwrap();
        writeln!(
            out,
            r#"{source_fields},"sha256":"{sha256}","model":"nvidia/nv-dinov2","prepared":"original","width":320,"height":240,"vector":[{vector}]}}"#
        )
        .unwrap();
    }
    list.flush().unwrap();
    out.flush().unwrap();
}

/// Counts the lines of a file with `wc`.
fn count_lines(path: &Path) -> u32 {
    let output = Command::new("wc").arg("-l").stdin(File::open(path).unwrap()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
