//! `imagesvc nearest`: the rows that it prints, its exit codes, and its memory.

use std::{fs::File, process::Command, time::Duration};

use image_rs::ImageFormat;
use tokio::sync::watch;

use crate::support::{
    Bulk, CHELSEA, FakeNvidia, FakeServer, Finished, HUBBLE, ROCKET, Reply, TestApp, converted,
    embedding, memory_of, numbers, tiny,
};

/// A folder with three photographs, and with their vectors in `vectors.jsonl`. The sandbox computed
/// the vectors.
fn photographs() -> Bulk {
    let bulk = Bulk::without_nvidia();
    for (name, bytes) in [("rocket.jpg", ROCKET), ("cat.png", CHELSEA), ("stars.jpg", HUBBLE)] {
        bulk.write(&format!("photos/{name}"), bytes);
    }
    bulk.run("photos --sandbox --out vectors.jsonl").expect_exit_code(0);
    bulk
}

/// The cosines and labels that a run has printed.
fn printed(run: &Finished) -> Vec<(f64, &str)> {
    run.stdout
        .lines()
        .map(|line| {
            let (cosine, label) = line.split_once("  ").unwrap();
            let decimals = cosine.split_once('.').unwrap().1.len();
            assert_eq!(decimals, 4, "a cosine should have four decimals: {line}");
            (cosine.parse().unwrap(), label)
        })
        .collect()
}

fn labels(run: &Finished) -> Vec<&str> {
    printed(run).into_iter().map(|(_, label)| label).collect()
}

/// Writes the vectors of a `.jsonl` file as `.npy`.
fn write_npy(bulk: &Bulk, jsonl: &str, npy: &str) {
    let rows = bulk.rows(jsonl);
    let numbers = rows.iter().flat_map(|row| row["vector"].as_array().unwrap());
    let bytes: Vec<u8> =
        numbers.flat_map(|number| (number.as_f64().unwrap() as f32).to_le_bytes()).collect();
    bulk.write(npy, [npy_header(rows.len()), bytes].concat());
}

/// The header of a `.npy` file with this number of vectors.
fn npy_header(rows: usize) -> Vec<u8> {
    // 0x76 is the length of this text with its padding and the line break.
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 1536), }}");
    [&b"\x93NUMPY\x01\x00\x76\x00"[..], format!("{text:<117}\n").as_bytes()].concat()
}

/// A row as `embed` writes it for a path, with this model and vector. The values of the other fields
/// make no difference to `nearest`.
fn row(path: &str, model: &str, vector: &[String]) -> String {
    let vector = vector.join(",");
    format!(
        "{{\"path\":\"{path}\",\"sha256\":\"ab\",\"model\":\"{model}\",\"prepared\":\"original\",\
         \"width\":1,\"height\":1,\"vector\":[{vector}]}}\n"
    )
}

#[test]
fn the_original_of_a_scaled_or_recompressed_picture_is_printed_first() {
    let bulk = photographs();
    let scaled = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(120, 80);
    scaled.save(bulk.path("scaled.png")).unwrap();
    // A WebP despite its name: the service recognises the format by the first bytes.
    bulk.write("recompressed.jpg", converted(ROCKET, ImageFormat::WebP));
    for (picture, original) in [
        ("scaled.png", "photos/cat.png"),
        ("recompressed.jpg", "photos/rocket.jpg"),
        ("photos/stars.jpg", "photos/stars.jpg"),
    ] {
        let run =
            bulk.nearest(&format!("{picture} --in vectors.jsonl --sandbox")).expect_exit_code(0);
        let rows = printed(&run);
        assert_eq!((rows.len(), rows[0].1), (3, original), "{}", run.stdout);
        assert!(rows[0].0 > 0.95, "the original should be very similar: {}", run.stdout);
        assert!(
            rows.is_sorted_by(|a, b| a.0 >= b.0),
            "rows should be sorted by falling cosine: {}",
            run.stdout
        );
        if picture == original {
            // The file contains the vector of exactly this picture.
            assert!(run.stdout.starts_with("1.0000  photos/stars.jpg\n"), "{}", run.stdout);
        }
    }
    let run = bulk.nearest("scaled.png --in vectors.jsonl --sandbox --count 1").expect_exit_code(0);
    assert_eq!(labels(&run), ["photos/cat.png"]);
    // The command prints the folder in which it caches vectors, and saves no picture.
    assert!(run.stderr.contains(".cache/imagesvc"), "{}", run.stderr);
    assert!(!bulk.path("downloads").exists(), "`nearest` must create no downloads folder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_is_asked_for_the_vector_of_a_url() {
    let bulk = photographs();
    let picture_server = FakeServer::serving(ROCKET).await;
    let client_key = "k-1";
    let app = TestApp::sandbox()
        .may_fetch_from(&picture_server)
        .setting("IMAGESVC_API_KEYS", client_key)
        .start()
        .await;
    let arguments = format!("{} --in vectors.jsonl --to {}", picture_server.url("/a"), app.url(""));
    let refused = bulk.nearest(&arguments).expect_exit_code(2);
    assert!(refused.stderr.contains("set IMAGESVC_API_KEY"), "{}", refused.stderr);
    let bulk = bulk.setting("IMAGESVC_API_KEY", client_key);
    let run = bulk.nearest(&arguments).expect_exit_code(0);
    assert!(run.stdout.starts_with("1.0000  photos/rocket.jpg\n"), "{}", run.stdout);
    assert!(app.saved().is_empty(), "the picture must not be saved");
    assert_eq!(run.stderr, "", "the command should report nothing if it uses a running service");
}

#[test]
fn the_label_of_a_row_is_its_path_unless_an_option_selects_another_field() {
    let bulk = photographs();
    // The first name contains a line break, which is printed as `\u000a`.
    bulk.write(
        "list.jsonl",
        "{\"id\": 7, \"n\": {\"name\": \"a\\nb\"}, \"path\": \"photos/cat.png\"}\n\
         {\"id\": 8, \"n\": {\"name\": \"c\"}, \"path\": \"photos/rocket.jpg\"}\n",
    );
    bulk.run("list.jsonl --sandbox --out list-vectors.jsonl").expect_exit_code(0);
    let nearest = |option: &str| {
        let run = bulk.nearest(&format!(
            "photos/cat.png --in list-vectors.jsonl --sandbox --count 1 {option}"
        ));
        run.expect_exit_code(0).stdout
    };
    assert_eq!(nearest(""), "1.0000  photos/cat.png\n");
    assert_eq!(nearest("--id id"), "1.0000  7\n");
    assert_eq!(nearest("--field n.name"), "1.0000  a\\u000ab\n");
}

#[test]
fn nearest_needs_the_prefix_that_embed_was_run_with() {
    let bulk = photographs();
    bulk.write("list.jsonl", "{\"id\": 7, \"path\": \"photos/cat.png\"}\n");
    bulk.run("list.jsonl --sandbox --prefix p_ --out list-vectors.jsonl").expect_exit_code(0);
    let nearest = "photos/cat.png --in list-vectors.jsonl --sandbox";
    // The fields of labels are those of the list, so their names have no prefix.
    for (option, row) in [("", "1.0000  photos/cat.png\n"), ("--id id", "1.0000  7\n")] {
        let run = bulk.nearest(&format!("{nearest} --prefix p_ {option}")).expect_exit_code(0);
        assert_eq!(run.stdout, row);
    }
    let run = bulk.nearest(nearest).expect_exit_code(2);
    assert!(run.stderr.contains("list-vectors.jsonl, line 1: "), "{}", run.stderr);
}

#[test]
fn a_npy_file_gets_the_labels_of_the_jsonl_file_beside_it_if_their_row_counts_are_equal() {
    let bulk = photographs();
    write_npy(&bulk, "vectors.jsonl", "vectors.npy");
    write_npy(&bulk, "vectors.jsonl", "alone.npy");
    let nearest = |file: &str| {
        bulk.nearest(&format!("photos/cat.png --in {file} --sandbox")).expect_exit_code(0)
    };
    let expected = nearest("vectors.jsonl");
    assert_eq!(nearest("vectors.npy").stdout, expected.stdout);
    let alone = nearest("alone.npy");
    assert!(alone.stdout.starts_with("1.0000  row "), "{}", alone.stdout);
    // With a fourth row, the labels of the `.jsonl` file are not used for the three vectors.
    let three_rows = bulk.read("vectors.jsonl");
    let four_rows = three_rows.clone() + three_rows.lines().next().unwrap() + "\n";
    bulk.write("vectors.jsonl", four_rows);
    let numbered = nearest("vectors.npy");
    assert_eq!(numbered.stdout, alone.stdout);
    assert!(numbered.stderr.contains("vectors.jsonl has 4 rows, not 3"), "{}", numbered.stderr);
    // With three rows of another model, the command refuses the vectors.
    bulk.write("vectors.jsonl", three_rows.replace("sandbox/perceptual", "other"));
    let refused = bulk.nearest("photos/cat.png --in vectors.npy --sandbox").expect_exit_code(2);
    assert!(refused.stderr.contains("vectors.npy contains vectors of other"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_or_argument_exits_with_2_before_the_first_call_to_nvidia() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let good = row("a", "nvidia/nv-dinov2", &numbers());
    // A row that `embed` did not write, a row without its line break, and a row of another model.
    bulk.write("foreign.jsonl", "{\"path\": \"a\"}\n");
    bulk.write("torn.jsonl", &good[..good.len() - 1]);
    bulk.write("other.jsonl", row("a", "other/model", &numbers()));
    bulk.write("text.npy", "text");
    bulk.write("text.parquet", "text");
    bulk.write("good.jsonl", &good);
    for (arguments, message) in [
        ("--in missing.jsonl", "missing.jsonl: "),
        ("--in photos", ".jsonl, .npy or .parquet"),
        ("--in foreign.jsonl", "foreign.jsonl, line 1: this is not a row"),
        ("--in torn.jsonl", "torn.jsonl: it contains no vectors"),
        (
            "--in other.jsonl",
            "contains vectors of other/model, but this service computes vectors of nvidia/nv-dinov2",
        ),
        ("--in text.npy", "text.npy: this is not a .npy file"),
        ("--in text.parquet", "text.parquet: "),
        ("--in good.jsonl --count 0", "--count"),
        // No service listens on port 1.
        ("--in good.jsonl --to http://127.0.0.1:1", "does not answer"),
        ("", "--in"),
    ] {
        let run = bulk.nearest(&format!("photos/0.png {arguments}")).expect_exit_code(2);
        assert!(run.stderr.contains(message), "{arguments}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
    assert_eq!(nvidia.count(), 0);
    // The key is missing, and so is `a.png`. The command checks the key first.
    let without_key = Bulk::without_nvidia();
    without_key.write("good.jsonl", &good);
    let run = without_key.nearest("a.png --in good.jsonl").expect_exit_code(2);
    assert!(run.stderr.contains("NVIDIA_API_KEY"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_for_a_row_that_cannot_be_compared_contains_its_line() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let model = "nvidia/nv-dinov2";
    let good = row("a", model, &numbers());
    for (second_row, message) in [
        (
            row("b", model, &numbers()[..9]),
            "line 2: the vector has 9 numbers, but that of the picture has 1536",
        ),
        (row("b", "other", &numbers()), "line 2: its model is other, not nvidia/nv-dinov2"),
        ("{}\n".into(), "line 2: this is not a row"),
    ] {
        bulk.write("vectors.jsonl", format!("{good}{second_row}{good}"));
        let run = bulk.nearest("photos/0.png --in vectors.jsonl").expect_exit_code(2);
        assert!(run.stderr.contains(message), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_picture_fails_the_error_code_and_the_sentence_are_printed_and_the_exit_code_is_1() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("vectors.jsonl", row("a", "nvidia/nv-dinov2", &numbers()));
    bulk.write("text.jpg", "no picture");
    for (picture, message) in [
        ("text.jpg", "imagesvc nearest: text.jpg: unsupported_image: "),
        ("missing.jpg", "imagesvc nearest: missing.jpg: unreadable_file: The file cannot be read"),
        (".", "imagesvc nearest: .: unreadable_file: "),
        // The service does not fetch from loopback addresses.
        (
            "http://127.0.0.1:9/a.jpg",
            "imagesvc nearest: http://127.0.0.1:9/a.jpg: url_not_allowed: ",
        ),
    ] {
        let run = bulk.nearest(&format!("{picture} --in vectors.jsonl")).expect_exit_code(1);
        assert!(run.stderr.contains(message), "{picture}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_answers_503_or_502_is_asked_again_and_rows_are_printed_by_their_cosine() {
    // The first request is for the model. Of the three requests with the picture, two fail. `earlier` is
    // the number of requests before this one.
    let service = FakeServer::start(|request, earlier| match (request.line().as_str(), earlier) {
        ("GET /v1/models", _) => Reply::json(200, r#"{"data":[{"id":"m"}]}"#),
        (_, 1) => Reply::new(503, &[("retry-after", "1")], r#"{"code":"overloaded","detail":"Busy."}"#),
        (_, 2) => Reply::new(502, &[], r#"{"code":"embedding_unavailable","detail":"Down."}"#),
        _ => Reply::json(
            200,
            r#"{"sha256":"ab","model":"m","prepared":"original","width":4,"height":4,"vector":[0.5,-1]}"#,
        ),
    })
    .await;
    let bulk = Bulk::without_nvidia();
    bulk.write_pictures(1);
    let vector = |numbers: &[&str]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>();
    // The vector of the picture is (0.5, -1). The last row is incomplete.
    let rows = [
        row("zero", "m", &vector(&["0", "0"])),
        row("opposite", "m", &vector(&["-1", "2"])),
        row("same direction", "m", &vector(&["1", "-2"])),
        row("equal", "m", &vector(&["0.5", "-1"])),
        row("right angle", "m", &vector(&["2", "1"])),
        "{\"path\":\"torn".into(),
    ];
    bulk.write("vectors.jsonl", rows.concat());
    let run = bulk.nearest(&format!("photos/0.png --in vectors.jsonl --to {}", service.url("")));
    let run = run.expect_exit_code(0);
    // Rows with the same cosine are printed in the order of the file.
    assert_eq!(
        run.stdout,
        "1.0000  same direction\n1.0000  equal\n0.0000  zero\n0.0000  right angle\n\
         -1.0000  opposite\n"
    );
    assert!(run.stderr.contains("overloaded: Busy. Trying again in 1s."), "{}", run.stderr);
    assert_eq!(service.count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_and_sigterm_end_the_command_with_130() {
    let (release, _) = watch::channel(false);
    let shared_release = release.clone();
    let nvidia =
        FakeNvidia::healthy_except(move |_| Some(embedding().held_until(&shared_release))).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("photos/a.png", tiny(1));
    bulk.write("vectors.jsonl", row("a", "nvidia/nv-dinov2", &numbers()));
    // Each run makes one call, and waits for the reply. `calls` is the number of calls so far.
    for (calls, signal) in [(1, "INT"), (2, "TERM")] {
        let process = bulk.start_nearest("photos/a.png --in vectors.jsonl");
        nvidia.wait_for(calls).await;
        let kill = format!("kill -{signal} {}", process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let run = tokio::task::spawn_blocking(|| Finished::from(process)).await.unwrap();
        assert_eq!(run.expect_exit_code(130).stdout, "");
    }
    release.send_replace(true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_vectors_with_370_mb_is_searched_in_less_than_100_mib_of_memory() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let rows = 60_000;
    let header = npy_header(rows);
    bulk.write("vectors.npy", &header);
    let file = File::options().append(true).open(bulk.path("vectors.npy")).unwrap();
    // Each vector has 1536 numbers of 4 bytes. All are zeros in a sparse file, which takes almost
    // no space on the disk.
    file.set_len(header.len() as u64 + rows as u64 * 1536 * 4).unwrap();
    let mut process = bulk.start_nearest("photos/0.png --in vectors.npy --count 2");
    let mut peak = 0;
    while process.try_wait().unwrap().is_none() {
        peak = peak.max(memory_of(process.id()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let run = Finished::from(process).expect_exit_code(0);
    assert_eq!(run.stdout, "0.0000  row 1\n0.0000  row 2\n");
    assert!(peak > 0, "the memory was never measured");
    assert!(peak < 100 << 20, "the command should use less than 100 MiB, not {} MiB", peak >> 20);
}
