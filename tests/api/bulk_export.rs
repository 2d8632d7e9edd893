//! `imagesvc embed`: Parquet and NumPy files, which are made from the rows when a run ends.
//!
//! `tests/vectors` reads such files with other programs.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::{fs::symlink, process::ExitStatusExt},
    process::{Child, Command, ExitStatus},
};

#[cfg(feature = "parquet")]
use serde_json::Value;
use tokio::sync::watch;

use crate::support::{Bulk, FakeNvidia, FakeServer, Finished, Reply, ServiceProcess, embedding};

/// The signal that the kernel sends to a program that exceeds the limit on the size of files.
const SIGXFSZ: i32 = 25;

/// The length of a NumPy file's header in bytes.
const NPY_HEADER_LEN: usize = 128;

/// The length of a NumPy file with this many vectors, in bytes. A vector has 1536 floats of 4
/// bytes.
fn npy_len(rows: usize) -> usize {
    NPY_HEADER_LEN + rows * 1536 * 4
}

/// The length of a file in bytes.
fn file_len(bulk: &Bulk, name: &str) -> usize {
    fs::read(bulk.path(name)).unwrap().len()
}

/// The names of all visible files and folders, except `photos`, the folder with the pictures.
fn names(bulk: &Bulk) -> Vec<String> {
    let entries = fs::read_dir(bulk.folder()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        names.filter(|name| !name.starts_with('.') && name != "photos").collect();
    names.sort();
    names
}

/// Writes a `.jsonl` file with this many rows, as an earlier run would. Their pictures are not in the folder
/// `photos`.
fn write_rows(bulk: &Bulk, name: &str, rows: usize) {
    let vector = vec!["0.25"; 1536].join(",");
    let row = |n| {
        format!(
            "{{\"path\":\"{n}\",\"sha256\":\"ab\",\"model\":\"nvidia/nv-dinov2\",\
             \"prepared\":\"original\",\"width\":1,\"height\":1,\"vector\":[{vector}]}}\n"
        )
    };
    bulk.write(name, (0..rows).map(row).collect::<String>());
}

/// Sends a signal to a process.
fn signal(process: &Child, name: &str) {
    let kill = format!("kill -{name} {}", process.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Runs `imagesvc embed` in a shell, after these shell commands. Returns its status and its errors.
fn run_after(bulk: &Bulk, commands: &str, arguments: &str) -> (ExitStatus, String) {
    // This command is not run: only its environment is used.
    let environment = bulk.command("");
    let script = format!("{commands}; exec \"$0\" embed {arguments}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &script, ServiceProcess::PROGRAM]).current_dir(bulk.folder()).env_clear();
    shell.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.output().unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_made_from_all_rows_although_some_pictures_failed() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(3);
    bulk.write("photos/text.jpg", "no picture");
    let run = bulk.run("photos --out vectors.npy").expect_exit_code(1);
    assert!(run.stderr.contains("vectors.npy contains 3 rows"), "{}", run.stderr);
    assert_eq!(names(&bulk), ["vectors.failed.jsonl", "vectors.jsonl", "vectors.npy"]);
    assert_eq!((file_len(&bulk, "vectors.npy"), bulk.rows("vectors.jsonl").len()), (npy_len(3), 3));
    bulk.write_pictures(5); // the same three, and two new ones
    // `vectors.failed.jsonl` still contains `text.jpg`, which fails again, now because it is missing.
    fs::remove_file(bulk.path("photos/text.jpg")).unwrap();
    let run = bulk.run("photos vectors.failed.jsonl --out vectors.npy").expect_exit_code(1);
    assert!(run.stderr.contains("vectors.npy contains 5 rows"), "{}", run.stderr);
    assert_eq!(file_len(&bulk, "vectors.npy"), npy_len(5));
    assert_eq!(nvidia.count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_has_nothing_left_to_send_makes_the_file_again() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(2);
    bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    for _ in 0..2 {
        let run = bulk.run("photos --out vectors.npy").expect_exit_code(0);
        assert!(run.stderr.contains("2 skipped"), "{}", run.stderr);
        assert_eq!(file_len(&bulk, "vectors.npy"), npy_len(2));
        fs::remove_file(bulk.path("vectors.npy")).unwrap();
    }
    assert_eq!(nvidia.count(), 2);
    let dry_run = bulk.run("photos --dry-run --out vectors.npy").expect_exit_code(0);
    assert!(dry_run.stdout.contains("2 rows are in the output already"), "{}", dry_run.stdout);
    assert!(!bulk.path("vectors.npy").exists(), "a dry run must write nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_stopped_makes_no_file_and_says_so() {
    // This fake service embeds only the first picture, as a vector of one number. The error for the second
    // picture stops the run, because this error concerns all pictures. Request 0 is for the model.
    let service = FakeServer::start(|request, nth| match (request.line().as_str(), nth) {
        ("GET /v1/models", _) => Reply::json(200, r#"{"data":[{"id":"m"}]}"#),
        (_, 1) => Reply::json(
            200,
            r#"{"sha256":"ab","model":"m","prepared":"jpeg","width":4,"height":4,"vector":[0.5]}"#,
        ),
        _ => Reply::json(503, r#"{"code":"embedding_exhausted","detail":"Sentence."}"#),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(5);
    let arguments = format!("photos --concurrency 1 --out vectors.npy --to {}", service.url("/"));
    let run = bulk.run(&arguments).expect_exit_code(1);
    assert!(
        run.stderr.contains("vectors.npy was not made: run again to make it"),
        "{}",
        run.stderr
    );
    assert_eq!(names(&bulk), ["vectors.failed.jsonl", "vectors.jsonl"]);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 1);
    bulk.run(&format!("{arguments} --limit 0")).expect_exit_code(0);
    assert_eq!(
        file_len(&bulk, "vectors.npy"),
        NPY_HEADER_LEN + 4,
        "a limit of 0 should make the file of the existing row at once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_leaves_the_file_of_an_earlier_run_and_says_so() {
    let (release, _) = watch::channel(false);
    let held = embedding().held_until(&release);
    let nvidia = FakeNvidia::healthy_except(move |_| Some(held.clone())).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    // Without this file of rows, the run would refuse to replace `vectors.npy`.
    bulk.write("vectors.jsonl", "");
    bulk.write("vectors.npy", "earlier");
    let mut process = bulk.start("photos --out vectors.npy");
    nvidia.wait_for(1).await;
    signal(&process, "INT");
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("interrupted: waiting for 1 running requests")));
    release.send(true).unwrap();
    let last = lines.last().unwrap();
    assert_eq!(last, "vectors.npy is still of an earlier run: run again to make it");
    assert_eq!(process.wait().unwrap().code(), Some(130));
    assert_eq!(
        (bulk.read("vectors.npy").as_str(), bulk.rows("vectors.jsonl").len()),
        ("earlier", 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_the_file_is_made_leaves_the_earlier_file_and_the_next_run_makes_a_new_one() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    write_rows(&bulk, "vectors.jsonl", 40);
    for earlier in [None, Some("earlier")] {
        if let Some(text) = earlier {
            bulk.write("vectors.npy", text);
        }
        // The system kills a program that writes more than 100 KiB to a file. A NumPy file with 40
        // vectors has 240 KiB. `-c 0` prevents a core dump.
        let (status, stderr) =
            run_after(&bulk, "ulimit -c 0 -f 100", "photos --limit 0 --out vectors.npy");
        assert_eq!(status.signal(), Some(SIGXFSZ), "{stderr}");
        // The killed program has left a part under this name. The next complete run replaces it.
        assert!(file_len(&bulk, "vectors.npy.new") > 0);
        assert_eq!(fs::read_to_string(bulk.path("vectors.npy")).ok().as_deref(), earlier);
    }
    let run = bulk.run("photos --out vectors.npy").expect_exit_code(0);
    assert!(run.stderr.contains("vectors.npy contains 41 rows"), "{}", run.stderr);
    assert_eq!(file_len(&bulk, "vectors.npy"), npy_len(41));
    assert_eq!(names(&bulk), ["vectors.jsonl", "vectors.npy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_while_the_file_is_made_leaves_no_part_of_it() {
    let bulk = Bulk::new(&FakeNvidia::healthy().await);
    bulk.write_pictures(1);
    // With this many rows, making the file takes long enough for a signal to arrive.
    write_rows(&bulk, "vectors.jsonl", 4000);
    // On a busy machine, a signal may come too late. Then another run is tried, up to 20 times.
    for _ in 0..20 {
        let mut process = bulk.start("photos --limit 0 --out vectors.npy");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "making vectors.npy"));
        signal(&process, "INT");
        let last = lines.last().unwrap();
        if process.wait().unwrap().code() == Some(130) {
            assert_eq!(last, "vectors.npy was not made: run again to make it");
            assert_eq!(names(&bulk), ["vectors.jsonl"]);
            return;
        }
        assert_eq!(last, "vectors.npy contains 4000 rows");
        fs::remove_file(bulk.path("vectors.npy")).unwrap();
    }
    panic!("at least one of the runs should be interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_for_which_there_is_no_space_is_not_made_and_the_rows_stay() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(20);
    let formats: &[_] = if cfg!(feature = "parquet") { &["npy", "parquet"] } else { &["npy"] };
    bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    let rows = bulk.read("vectors.jsonl");
    for format in formats {
        let file = format!("vectors.{format}");
        bulk.write(&file, "earlier");
        // The limit of 100 KiB on the size of files has the same effect as a full disk, because `trap ''`
        // lets the program ignore SIGXFSZ. A file with 20 vectors has 120 KiB. The `.jsonl` file is larger,
        // but nothing is appended to it.
        let (status, stderr) =
            run_after(&bulk, "trap '' XFSZ; ulimit -f 100", &format!("photos --out {file}"));
        assert_eq!(status.code(), Some(1), "{stderr}");
        let message = format!("{file} cannot be made from vectors.jsonl: File too large");
        assert!(stderr.contains(&message), "{stderr}");
        assert_eq!(
            (bulk.read(&file).as_str(), bulk.read("vectors.jsonl")),
            ("earlier", rows.clone())
        );
        assert!(!bulk.path(&format!("{file}.new")).exists());
        bulk.run(&format!("photos --out {file}")).expect_exit_code(0);
        assert!(file_len(&bulk, &file) > 20 * 1536 * 4, "the file must contain all vectors");
    }
    assert_eq!(nvidia.count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_a_source_or_was_not_made_by_a_run_is_refused_unchanged() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    bulk.write("list.jsonl", "{\"path\": \"photos/0.png\"}\n");
    // No run has made this file: a run would also have made `foreign.jsonl`, with the rows.
    bulk.write("foreign.npy", "foreign");
    bulk.write("empty.jsonl", "");
    // A run with `--out link.npy` would write its rows to `link.jsonl`, and so to `empty.jsonl`.
    symlink("empty.jsonl", bulk.path("link.jsonl")).unwrap();
    fs::create_dir(bulk.path("folder.npy")).unwrap();
    // With this file, `--out folder.npy` is refused only because `folder.npy` is a folder.
    bulk.write("folder.jsonl", "");
    let before = names(&bulk);
    for (arguments, message) in [
        ("list.jsonl --out list.jsonl", "list.jsonl is also a source"),
        ("photos list.jsonl --out list.npy", "list.jsonl is also a source"),
        ("empty.jsonl --out photos/../link.npy", "link.jsonl is also a source"),
        ("photos --dry-run list.jsonl --out list.npy", "list.jsonl is also a source"),
        ("foreign.npy --out foreign.npy", "foreign.npy is also a source"),
        ("photos --out foreign.npy", "foreign.npy exists without foreign.jsonl"),
        ("photos --out folder.npy", "folder.npy is not a regular file"),
    ] {
        let run = bulk.run(arguments).expect_exit_code(2);
        assert!(run.stderr.contains(message), "{arguments}: {}", run.stderr);
    }
    // In the next run, standard input is the output file. In the last, standard output is the source.
    let open = |name: &str| File::options().append(true).read(true).open(bulk.path(name)).unwrap();
    let mut command = bulk.command("- --out empty.jsonl");
    let run =
        Finished::from(command.stdin(open("empty.jsonl")).spawn().unwrap()).expect_exit_code(2);
    assert!(run.stderr.contains("empty.jsonl is also a source"), "{}", run.stderr);
    let mut command = bulk.command("list.jsonl");
    let run =
        Finished::from(command.stdout(open("list.jsonl")).spawn().unwrap()).expect_exit_code(2);
    assert!(run.stderr.contains("standard output is also a source"), "{}", run.stderr);
    assert_eq!(names(&bulk), before);
    assert_eq!(bulk.read("list.jsonl"), "{\"path\": \"photos/0.png\"}\n");
    assert_eq!((bulk.read("foreign.npy").as_str(), nvidia.count()), ("foreign", 0));
}

#[cfg(feature = "parquet")]
#[tokio::test(flavor = "multi_thread")]
async fn a_parquet_file_contains_the_fields_and_vectors_of_the_rows() {
    use arrow_array::{cast::AsArray, types::Float32Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(2);
    let list = [
        r#"{"name": "Ada \"A\"", "path": "photos/0.png"}"#,
        r#"{"path": "photos/1.png", "n": 1.50}"#,
    ];
    bulk.write("list.jsonl", list.join("\n"));
    let run = bulk.run("list.jsonl --prefix dino_ --out people.parquet").expect_exit_code(0);
    assert!(run.stderr.contains("people.parquet contains 2 rows"), "{}", run.stderr);
    assert_eq!(names(&bulk), ["list.jsonl", "people.jsonl", "people.parquet"]);
    let file = File::open(bulk.path("people.parquet")).unwrap();
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let batch = reader.next().unwrap().unwrap();
    for (row_index, row) in bulk.rows("people.jsonl").iter().enumerate() {
        // A Parquet file contains the fields of the source as text. So the number `n` keeps its last zero,
        // which `row` has lost because it is parsed.
        let text_columns = ["name", "path", "n", "dino_sha256", "dino_model", "dino_prepared"];
        for name in text_columns {
            let found = batch[name].as_string::<i32>().iter().nth(row_index).unwrap();
            let expected = match &row[name] {
                Value::String(text) => Some(text.clone()),
                Value::Null => None,
                // Of these columns, only `n` is a number.
                _ => Some("1.50".into()),
            };
            assert_eq!(found, expected.as_deref(), "{name}");
        }
        let vector = batch["dino_vector"].as_fixed_size_list().value(row_index);
        let expected: Vec<f32> = row["dino_vector"]
            .as_array()
            .unwrap()
            .iter()
            .map(|number| number.to_string().parse().unwrap())
            .collect();
        assert_eq!(vector.as_primitive::<Float32Type>().values()[..], expected);
    }
    assert!(reader.next().is_none());
}
