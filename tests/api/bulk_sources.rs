//! `imagesvc embed`: files with odd names, files that cannot be read, lists of every kind, equal pictures,
//! limited runs, and a full output.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::symlink},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{Bulk, FakeNvidia, FakeServer, Finished, Reply, tiny};

#[tokio::test(flavor = "multi_thread")]
async fn files_with_odd_names_become_rows_and_files_that_cannot_be_read_become_failures() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    let odd_names = [
        "-rf.png",
        "a b.png",
        "tab\there.png",
        "new\nline.png",
        "quote\"back\\slash.png",
        "ü漢字🦀.png",
        "\u{1b}[31mred.png",
        "http:/x.png",
        "UPPER.PNG",
        "folder.png/inner.png",
        "deep/er/and/deeper.png",
    ];
    for (n, name) in odd_names.iter().enumerate() {
        bulk.write(&format!("photos/{name}"), tiny(n));
    }
    // The command ignores hidden files, hidden folders, and files with another extension.
    for name in [".hidden.png", ".git/x.png", "deep/.x/y.png", "notes.txt", "photo.svg"] {
        bulk.write(&format!("photos/{name}"), tiny(100));
    }
    bulk.write("elsewhere/outside.png", tiny(200));
    let photo = |name: &str| bulk.path(&format!("photos/{name}"));
    // The command follows a link to a picture, but no link to a folder.
    symlink(bulk.path("elsewhere/outside.png"), photo("link.png")).unwrap();
    symlink(bulk.path("elsewhere"), photo("linked_folder")).unwrap();
    symlink(bulk.path("photos"), photo("deep/circle")).unwrap();
    // The files from here on become failures.
    symlink("nowhere.png", photo("broken_link.png")).unwrap();
    symlink("loop.png", photo("loop.png")).unwrap();
    bulk.write("photos/empty.png", "");
    let pipe = Command::new("mkfifo").arg(photo("pipe.png")).status().unwrap();
    assert!(pipe.success());
    let not_utf8 = bulk.path("photos").join(OsStr::from_bytes(b"\xff.png"));
    fs::write(not_utf8, tiny(300)).unwrap();

    let picture_count = odd_names.len() + 1; // with link.png
    // The second run tries only the failures again, and leaves the same rows and failures.
    for embedded in [picture_count, 0] {
        let run = bulk.run("photos --out vectors.jsonl").expect_exit_code(1);
        let counts = format!("{embedded} embedded (0 cached), 5 failed");
        assert!(run.stderr.contains(&counts), "{}", run.stderr);
        let rows = bulk.rows("vectors.jsonl");
        let path_of = |row: &Value| row["path"].as_str().unwrap().to_owned();
        let paths: BTreeSet<String> = rows.iter().map(path_of).collect();
        let expected_paths: BTreeSet<String> =
            odd_names.iter().chain(&["link.png"]).map(|name| format!("photos/{name}")).collect();
        assert_eq!(paths, expected_paths);
        assert_eq!(rows.len(), expected_paths.len(), "each path should have one row");
        let failures = bulk.rows("vectors.failed.jsonl");
        let codes: BTreeMap<_, _> = failures
            .iter()
            .map(|row| (row["path"].as_str().unwrap(), row["error"]["code"].as_str().unwrap()))
            .collect();
        let expected_codes = [
            ("photos/broken_link.png", "unreadable_file"),
            ("photos/empty.png", "empty_image"),
            ("photos/loop.png", "unreadable_file"),
            ("photos/pipe.png", "unreadable_file"),
            ("photos/\u{fffd}.png", "invalid_name"),
        ];
        assert_eq!(codes, BTreeMap::from(expected_codes));
        assert_eq!(failures.len(), expected_codes.len(), "each path should have one failure");
    }
    assert_eq!(nvidia.count(), picture_count);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_reads_lists_of_every_kind_with_byte_order_marks_and_quotes() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|request, _| {
        Reply::new(200, &[], tiny(request.target.trim_matches('/').parse().unwrap()))
    })
    .await;
    let bulk = Bulk::new(&nvidia).setting("IMAGESVC_FETCH_ALLOW", picture_server.address);
    bulk.write_pictures(8);
    let url = |n: usize| picture_server.url(&format!("/{n}"));
    bulk.write("a.txt", format!("\u{feff}photos/0.png\r\n\r\n{}\r\n", url(100)));
    let csv_rows = format!("photos/1.png,\"a \"\"b\"\",\nc\"\r\n{},\r\n", url(101));
    bulk.write("b.csv", format!("\u{feff}url,n\r\n{csv_rows}"));
    bulk.write("c.tsv", format!("n\tphoto\na \"b\",c\tphotos/2.png\nd\t{}\n", url(102)));
    let json_object = r#"{"image": "photos/3.png", "deep": {"n": [1, {}]}, "\u00e4": null}"#;
    bulk.write("d.json", format!("\u{feff}[\n{json_object}]"));
    let jsonl_object = r#"{"path": "photos/4.png", "n": 12345678901234567890.10, "n2": -0.0}"#;
    bulk.write("e.jsonl", format!("{jsonl_object}\r\n\n{{\"photo\": \"photos/5.png\"}}"));
    let arguments = "a.txt b.csv c.tsv d.json e.jsonl photos/6.png - --out vectors.jsonl";
    let mut process = bulk.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
    process.stdin.take().unwrap().write_all("\u{feff}photos/7.png\n".as_bytes()).unwrap();
    let run = Finished::from(process).expect_exit_code(0);
    assert!(run.stderr.contains("11 embedded (0 cached), 0 failed"), "{}", run.stderr);
    let output = bulk.read("vectors.jsonl");
    // The fields of each row's source, which come before the added fields.
    for source_fields in [
        r#"{"path":"photos/0.png""#,
        r#"{"url":"photos/1.png","n":"a \"b\",\nc""#,
        r#"{"n":"a \"b\",c","photo":"photos/2.png""#,
        json_object.strip_suffix('}').unwrap(),
        jsonl_object.strip_suffix('}').unwrap(),
        r#"{"photo": "photos/5.png""#,
        r#"{"path":"photos/6.png""#,
        r#"{"path":"photos/7.png""#,
        &format!(r#"{{"url":"{}""#, url(100)),
        &format!(r#"{{"url":"{}","n":"""#, url(101)),
        &format!(r#"{{"n":"d","photo":"{}""#, url(102)),
    ] {
        let start = format!("{source_fields},\"sha256\":\"");
        assert!(
            output.lines().any(|line| line.starts_with(&start)),
            "a row should begin with {source_fields}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_list_that_cannot_be_read_to_its_end_the_other_sources_are_still_read() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(3);
    bulk.write("torn.json", "[{\"path\": \"photos/0.png\"}, {\"path\": \"photos/1.png\"");
    bulk.write("list.txt", "photos/2.png\n");
    let dry_run = bulk.run("torn.json list.txt --dry-run").expect_exit_code(2);
    assert!(dry_run.stdout.starts_with("2 pictures to send"), "{}", dry_run.stdout);
    assert!(dry_run.stderr.contains("torn.json: "), "{}", dry_run.stderr);
    bulk.run("torn.json --out vectors.jsonl").expect_exit_code(1);
    // The row of the first list is skipped now.
    let run = bulk.run("torn.json list.txt --out vectors.jsonl").expect_exit_code(1);
    let rows = bulk.rows("vectors.jsonl");
    let paths: BTreeSet<_> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert_eq!(paths, BTreeSet::from(["photos/0.png", "photos/2.png"]));
    assert!(run.stderr.contains("torn.json: "), "{}", run.stderr);
    assert!(run.stderr.contains("unreadable_source"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_from_a_named_pipe_is_read_and_its_writer_does_not_fail() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let pipe = bulk.folder().join("list.txt");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Blank lines make the list longer than a pipe's buffer. So the writer would fail if the command stopped
    // reading early.
    let list = "photos/0.png\n".to_owned() + &"\n".repeat(200_000);
    let writer = std::thread::spawn(move || fs::write(pipe, list));
    bulk.run("list.txt --out vectors.jsonl").expect_exit_code(0);
    writer.join().unwrap().unwrap();
    assert_eq!(bulk.rows("vectors.jsonl").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pictures_are_sent_to_nvidia_once_and_all_but_the_first_count_as_cached() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    for n in 0..50 {
        bulk.write(&format!("photos/{n}.png"), tiny(n % 2));
    }
    let run = bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    assert_eq!(nvidia.count(), 2);
    assert!(run.stderr.contains("50 embedded (48 cached), 0 failed"), "{}", run.stderr);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_run_with_a_limit_takes_the_next_pictures() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(5);
    // Each run adds two rows, until there is a row for each of the five pictures.
    for rows in [2, 4, 5, 5] {
        bulk.run("photos --out vectors.jsonl --limit 2").expect_exit_code(0);
        assert_eq!(bulk.rows("vectors.jsonl").len(), rows);
    }
    assert_eq!(nvidia.count(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_output_that_is_full_stops_the_run() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(50);
    // On Linux, every write to /dev/full fails because of a full disk.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let process = bulk.command("photos --concurrency 2").stdout(full).spawn().unwrap();
    let run = Finished::from(process).expect_exit_code(1);
    assert!(run.stderr.contains("the output cannot be written: No space left"), "{}", run.stderr);
    assert!(nvidia.count() < 50, "the run must not send all 50 pictures");
}
