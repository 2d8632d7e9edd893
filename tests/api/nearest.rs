//! `imagesvc nearest`: the rows that it prints, its exit codes, and its memory.

use std::{fs::File, process::Command, time::Duration};

use image_rs::ImageFormat;
use tokio::sync::watch;

use crate::support::{
    Bulk, CHELSEA, FakeNvidia, FakeServer, Finished, HUBBLE, ROCKET, Reply, TestApp, converted,
    embedding, memory_of, numbers, tiny,
};

/// A folder with three photographs, and their vectors of the sandbox in `vectors.jsonl`.
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
            assert_eq!(cosine.split_once('.').unwrap().1.len(), 4, "{line}");
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

fn npy_header(rows: usize) -> Vec<u8> {
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 1536), }}");
    [&b"\x93NUMPY\x01\x00\x76\x00"[..], format!("{text:<117}\n").as_bytes()].concat()
}

/// A row of `embed` for a path, with this model and vector.
fn row(path: &str, model: &str, vector: &[String]) -> String {
    let vector = vector.join(",");
    format!(
        "{{\"path\":\"{path}\",\"sha256\":\"ab\",\"model\":\"{model}\",\"prepared\":\"original\",\
         \"width\":1,\"height\":1,\"vector\":[{vector}]}}\n"
    )
}

#[test]
fn a_scaled_and_recompressed_picture_finds_its_original_first() {
    let bulk = photographs();
    let scaled = image_rs::load_from_memory(CHELSEA).unwrap().thumbnail(120, 80);
    scaled.save(bulk.path("scaled.png")).unwrap();
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
        assert!(rows[0].0 > 0.95 && rows.is_sorted_by(|a, b| a.0 >= b.0), "{}", run.stdout);
        if picture == original {
            assert!(run.stdout.starts_with("1.0000  photos/stars.jpg\n"), "{}", run.stdout);
        }
    }
    let one = bulk.nearest("scaled.png --in vectors.jsonl --sandbox --count 1").expect_exit_code(0);
    assert_eq!(labels(&one), ["photos/cat.png"]);
    assert!(one.stderr.contains(".cache/imagesvc") && !bulk.path("downloads").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_is_asked_for_the_vector_of_a_url() {
    let bulk = photographs();
    let origin = FakeServer::serving(ROCKET).await;
    let app = TestApp::sandbox()
        .may_fetch_from(&origin)
        .setting("IMAGESVC_API_KEYS", "first")
        .start()
        .await;
    let arguments = format!("{} --in vectors.jsonl --to {}", origin.url("/a"), app.url(""));
    let refused = bulk.nearest(&arguments).expect_exit_code(2);
    assert!(refused.stderr.contains("set IMAGESVC_API_KEY"), "{}", refused.stderr);
    let bulk = bulk.setting("IMAGESVC_API_KEY", "first");
    let run = bulk.nearest(&arguments).expect_exit_code(0);
    assert!(run.stdout.starts_with("1.0000  photos/rocket.jpg\n"), "{}", run.stdout);
    assert!(app.saved().is_empty(), "the picture must not be saved");
    assert_eq!(run.stderr, "", "a running service has nothing to report");
}

#[test]
fn rows_of_a_list_are_printed_with_their_id_or_field_and_prefix() {
    let bulk = photographs();
    bulk.write(
        "list.jsonl",
        "{\"id\": 7, \"n\": {\"name\": \"a\\nb\"}, \"path\": \"photos/cat.png\"}\n\
         {\"id\": 8, \"n\": {\"name\": \"c\"}, \"path\": \"photos/rocket.jpg\"}\n",
    );
    bulk.run("list.jsonl --sandbox --prefix p_ --out list-vectors.jsonl").expect_exit_code(0);
    let nearest = |more: &str| {
        let run = bulk.nearest(&format!(
            "photos/cat.png --in list-vectors.jsonl --sandbox --prefix p_ --count 1 {more}"
        ));
        run.expect_exit_code(0).stdout
    };
    assert_eq!(nearest(""), "1.0000  photos/cat.png\n");
    assert_eq!(nearest("--id id"), "1.0000  7\n");
    assert_eq!(nearest("--field n.name"), "1.0000  a\\nb\n");
    let run = bulk.nearest("photos/cat.png --in list-vectors.jsonl --sandbox").expect_exit_code(2);
    assert!(run.stderr.contains("list-vectors.jsonl, line 1: "), "{}", run.stderr);
}

#[test]
fn rows_of_a_npy_file_have_the_labels_of_the_jsonl_file_beside_it_if_the_numbers_agree() {
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
    let one_more = bulk.read("vectors.jsonl");
    let one_more = one_more.clone() + one_more.lines().next().unwrap() + "\n";
    bulk.write("vectors.jsonl", one_more);
    let numbered = nearest("vectors.npy");
    assert_eq!(numbered.stdout, alone.stdout);
    assert!(numbered.stderr.contains("vectors.jsonl has 4 rows, not 3"), "{}", numbered.stderr);
    let other = bulk.read("vectors.jsonl").replace("sandbox/perceptual", "other");
    bulk.write(
        "vectors.jsonl",
        other.lines().take(3).map(|line| line.to_owned() + "\n").collect::<String>(),
    );
    let refused = bulk.nearest("photos/cat.png --in vectors.npy --sandbox").expect_exit_code(2);
    assert!(refused.stderr.contains("vectors.npy contains vectors of other"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_exits_with_2_before_the_picture_is_paid() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let good = row("a", "nvidia/nv-dinov2", &numbers());
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
        ("--in good.jsonl --to http://127.0.0.1:1", "does not answer"),
        ("", "--in"),
    ] {
        let run = bulk.nearest(&format!("photos/0.png {arguments}")).expect_exit_code(2);
        assert!(run.stderr.contains(message), "{arguments}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
    assert_eq!(nvidia.count(), 0);
    let without_key = Bulk::without_nvidia();
    without_key.write("good.jsonl", &good);
    let run = without_key.nearest("a.png --in good.jsonl").expect_exit_code(2);
    assert!(run.stderr.contains("NVIDIA_API_KEY"), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_does_not_fit_is_named_with_its_line() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let model = "nvidia/nv-dinov2";
    let good = row("a", model, &numbers());
    for (second, message) in [
        (
            row("b", model, &numbers()[..9]),
            "line 2: its vector has 9 numbers, but that of the picture has 1536",
        ),
        (row("b", "other", &numbers()), "line 2: its model is other, not nvidia/nv-dinov2"),
        ("{}\n".into(), "line 2: this is not a row"),
    ] {
        bulk.write("vectors.jsonl", format!("{good}{second}{good}"));
        let run = bulk.nearest("photos/0.png --in vectors.jsonl").expect_exit_code(2);
        assert!(run.stderr.contains(message), "{}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_that_fails_exits_with_1_and_the_code_and_sentence_of_the_service() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("vectors.jsonl", row("a", "nvidia/nv-dinov2", &numbers()));
    bulk.write("text.jpg", "no picture");
    for (picture, message) in [
        ("text.jpg", "imagesvc nearest: text.jpg: unsupported_image: "),
        ("missing.jpg", "imagesvc nearest: missing.jpg: unreadable_file: The file cannot be read"),
        (".", "imagesvc nearest: .: unreadable_file: "),
        ("http://127.0.0.1:9/a.jpg", "imagesvc nearest: http://127.0.0.1:9/a.jpg: "),
    ] {
        let run = bulk.nearest(&format!("{picture} --in vectors.jsonl")).expect_exit_code(1);
        assert!(run.stderr.contains(message), "{picture}: {}", run.stderr);
        assert_eq!(run.stdout, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_service_is_asked_again_after_the_time_in_its_retry_after() {
    let nvidia = FakeNvidia::healthy().await;
    let service = FakeServer::start(|request, nth| match (request.line().as_str(), nth) {
        ("GET /v1/models", _) => Reply::json(200, r#"{"data":[{"id":"m"}]}"#),
        (_, 1) => Reply::new(503, &[("retry-after", "1")], r#"{"code":"overloaded","detail":"Busy."}"#),
        (_, 2) => Reply::new(502, &[], r#"{"code":"embedding_unavailable","detail":"Down."}"#),
        _ => Reply::json(
            200,
            r#"{"sha256":"ab","model":"m","prepared":"original","width":4,"height":4,"vector":[0.5,-1]}"#,
        ),
    })
    .await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let vector = |numbers: &[&str]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = [
        row("zero", "m", &vector(&["0", "0"])),
        row("opposite", "m", &vector(&["-1", "2"])),
        row("same", "m", &vector(&["1", "-2"])),
        row("equal", "m", &vector(&["0.5", "-1"])),
        row("right angle", "m", &vector(&["2", "1"])),
        "{\"path\":\"torn".into(),
    ];
    bulk.write("vectors.jsonl", text.concat());
    let run = bulk.nearest(&format!("photos/0.png --in vectors.jsonl --to {}", service.url("")));
    let run = run.expect_exit_code(0);
    assert_eq!(
        run.stdout,
        "1.0000  same\n1.0000  equal\n0.0000  zero\n0.0000  right angle\n-1.0000  opposite\n"
    );
    assert!(run.stderr.contains("overloaded: Busy. Trying again in 1s."), "{}", run.stderr);
    assert_eq!(service.count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_command_with_130() {
    let (release, _) = watch::channel(false);
    let held = release.clone();
    let nvidia = FakeNvidia::healthy_except(move |_| Some(embedding().held_until(&held))).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("photos/a.png", tiny(1));
    bulk.write("vectors.jsonl", row("a", "nvidia/nv-dinov2", &numbers()));
    for signal in ["INT", "TERM"] {
        let process = bulk.start_nearest("photos/a.png --in vectors.jsonl");
        nvidia.wait_for(if signal == "INT" { 1 } else { 2 }).await;
        let kill = format!("kill -{signal} {}", process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let run = tokio::task::spawn_blocking(|| Finished::from(process)).await.unwrap();
        assert_eq!(run.expect_exit_code(130).stdout, "");
    }
    release.send_replace(true);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rows_need_no_more_memory_than_few() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let rows = 60_000;
    let header = npy_header(rows);
    bulk.write("vectors.npy", &header);
    let file = File::options().append(true).open(bulk.path("vectors.npy")).unwrap();
    // A sparse file of zeros: 370 MB that take no space on the disk.
    file.set_len(header.len() as u64 + rows as u64 * 1536 * 4).unwrap();
    let mut process = bulk.start_nearest("photos/0.png --in vectors.npy --count 2");
    let mut peak = 0;
    while process.try_wait().unwrap().is_none() {
        peak = peak.max(memory_of(process.id()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let run = Finished::from(process).expect_exit_code(0);
    assert_eq!(run.stdout, "0.0000  row 1\n0.0000  row 2\n");
    assert!((1..100 << 20).contains(&peak), "the command used {} MiB", peak >> 20);
}
