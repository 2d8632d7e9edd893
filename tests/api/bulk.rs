//! `imagesvc embed`: sources, rows and failures.

use std::{io::Write, process::Stdio};

use serde_json::{Value, json};

use crate::support::{
    Bulk, CHELSEA, FakeNvidia, FakeServer, Finished, HUBBLE, ROCKET, Reply, tiny,
};

/// The names of a row's members, in the order of the text. The vector must be the last member.
fn member_names(line: &str) -> Vec<String> {
    let before_numbers = line.split("[").next().unwrap();
    // Each part except the last ends with a name.
    let parts = before_numbers.split("\":");
    let mut names: Vec<_> = parts.map(|part| part.rsplit('"').next().unwrap().to_owned()).collect();
    names.pop();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_becomes_one_row_per_picture_and_a_jpg_without_a_picture_becomes_a_failure() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("photos/rocket.jpg", ROCKET);
    bulk.write("photos/nested/large.JPG", HUBBLE);
    bulk.write("photos/nested/large.png", CHELSEA);
    bulk.write("photos/text.jpg", "no picture");
    // The extension is not that of a picture, so the command ignores this file.
    bulk.write("photos/notes.txt", "no picture");
    let run = bulk.run("photos --out missing_folder/../vectors.jsonl");
    assert_eq!(run.code, Some(2), "a missing folder in --out should be refused: {}", run.stderr);
    let run = bulk.run("photos --out vectors.jsonl").expect_exit_code(1);
    let rows = bulk.rows("vectors.jsonl");
    let mut paths: Vec<_> = rows.iter().map(|row| row["path"].as_str().unwrap()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["photos/nested/large.JPG", "photos/nested/large.png", "photos/rocket.jpg"]);
    for (row, line) in rows.iter().zip(bulk.read("vectors.jsonl").lines()) {
        assert_eq!(row["vector"].as_array().unwrap().len(), 1536);
        assert_eq!(row["model"], "nvidia/nv-dinov2");
        assert_eq!(
            member_names(line),
            ["path", "sha256", "model", "prepared", "width", "height", "vector"]
        );
    }
    let [failure] = &bulk.rows("vectors.failed.jsonl")[..] else { panic!("{}", run.stderr) };
    assert_eq!(failure["path"], "photos/text.jpg");
    assert_eq!(failure["error"]["code"], "unsupported_image");
    assert_eq!(failure["error"]["retryable"], false);
    assert!(run.stderr.contains("3 embedded (0 cached), 1 failed"), "{}", run.stderr);
    let example = "1 x unsupported_image, for example photos/text.jpg: ";
    assert!(run.stderr.contains(example), "{}", run.stderr);
    // The command says where its cache is.
    assert!(run.stderr.contains(".cache/imagesvc"), "{}", run.stderr);
    assert!(!bulk.path("downloads").exists(), "no picture must be saved without --save");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_lists_keep_their_own_fields_unchanged() {
    let nvidia = FakeNvidia::healthy().await;
    let picture_server = FakeServer::start(|request, _| {
        let n = request.target.trim_matches('/').parse().unwrap();
        Reply::new(200, &[], tiny(n))
    })
    .await;
    let bulk = Bulk::new(&nvidia).setting("IMAGESVC_FETCH_ALLOW", picture_server.address);
    bulk.write("1.png", tiny(1));
    let url = |n: usize| picture_server.url(&format!("/{n}"));
    bulk.write("people.csv", format!("name,photo\n\"Ada, \"\"A\"\"\",{}\nBob,1.png\n", url(2)));
    // The spaces and the last zero of 1.50 must stay.
    let object = format!(r#"{{"n": 1.50, "images": {{"profile_image": "{}"}} }}"#, url(3));
    bulk.write("people.jsonl", format!("{object}\n"));
    bulk.write("people.json", format!("[\n{object},\n{object}\n]"));
    bulk.run("people.csv --out csv.jsonl").expect_exit_code(0);
    let mut rows = bulk.rows("csv.jsonl");
    rows.sort_by_key(|row| row["name"].to_string());
    assert_eq!(rows[0]["name"], "Ada, \"A\"");
    assert_eq!((&rows[1]["name"], &rows[1]["photo"]), (&json!("Bob"), &json!("1.png")));
    let run = bulk.run(
        "people.jsonl people.json --field images.profile_image --prefix dino_ --out json.jsonl",
    );
    let run = run.expect_exit_code(0);
    for line in bulk.read("json.jsonl").lines() {
        let unchanged = object.strip_suffix('}').unwrap();
        assert!(line.starts_with(&format!("{unchanged},\"dino_sha256\":\"")), "{line:.200}");
        assert!(serde_json::from_str::<Value>(line).unwrap()["dino_vector"].is_array());
    }
    // The three objects contain the same URL.
    assert!(run.stderr.contains("3 embedded (2 cached)"), "{}", run.stderr);
    assert_eq!(nvidia.count(), 3, "each of the pictures 1, 2 and 3 must be sent to NVIDIA once");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_on_standard_input_become_rows_on_standard_output_and_failures_on_standard_error() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(2);
    let mut process = bulk.command("-").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(b"photos/0.png\n\nphotos/1.png\nphotos/missing.png").unwrap();
    drop(input);
    let run = Finished::from(process).expect_exit_code(1);
    assert_eq!(run.stdout.lines().count(), 2);
    assert!(run.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
    assert!(
        run.stderr.contains(r#"{"path":"photos/missing.png","error":{"code":"unreadable_file","#)
    );
    // The row of a failure is JSON, even if the list's object has tabs between its parts.
    bulk.write("tabs.jsonl", "{\t\"path\":\t\"photos/missing.png\"}\n");
    let run = bulk.run("tabs.jsonl").expect_exit_code(1);
    let row = run.stderr.lines().find(|line| line.starts_with('{')).unwrap();
    let row: Value = serde_json::from_str(row).unwrap();
    assert_eq!(row["error"]["code"], json!("unreadable_file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_save_a_picture_becomes_a_row_and_the_downloads_folder_is_created() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let run = bulk.run("photos/0.png --save").expect_exit_code(0);
    assert_eq!(run.stdout.lines().count(), 1);
    assert!(bulk.path("downloads").is_dir(), "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failures_file_can_be_a_source_and_is_removed_after_a_run_without_failures() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write(
        "list.jsonl",
        "{\"n\": 1.0, \"path\": \"a.png\"}\n{\"n\": 2, \"path\": \"b.png\"}\nbad\n",
    );
    bulk.write("b.png", tiny(2));
    // `a.png` is missing, and the last line is not JSON.
    bulk.run("list.jsonl --out vectors.jsonl").expect_exit_code(1);
    assert_eq!(bulk.rows("vectors.failed.jsonl").len(), 2);
    bulk.write("a.png", tiny(1));
    bulk.run("vectors.failed.jsonl --out vectors.jsonl").expect_exit_code(1);
    let [failure] = &bulk.rows("vectors.failed.jsonl")[..] else { panic!("one row should fail") };
    assert_eq!((&failure["source"], &failure["line"]), (&json!("list.jsonl"), &json!(3)));
    let rows = bulk.read("vectors.jsonl");
    assert!(rows.contains("{\"n\": 1.0, \"path\": \"a.png\",\"sha256\""), "{rows:.500}");
    assert_eq!(rows.lines().count(), 2);
    // The new list has no bad line, and a run keeps the failures of lines that it does not try again. So
    // the test itself removes the failure of the bad line.
    std::fs::remove_file(bulk.path("vectors.failed.jsonl")).unwrap();
    bulk.write("list.jsonl", "{\"path\": \"a.png\"}\n{\"path\": \"c.png\"}\n");
    bulk.run("list.jsonl --out vectors.jsonl").expect_exit_code(1);
    let failures = bulk.rows("vectors.failed.jsonl");
    assert_eq!(failures.len(), 1, "only c.png should fail, because it is missing");
    bulk.write("c.png", tiny(3));
    bulk.run("list.jsonl --out vectors.jsonl").expect_exit_code(0);
    let entries = std::fs::read_dir(bulk.folder()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, [".cache", "a.png", "b.png", "c.png", "list.jsonl", "vectors.jsonl"]);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 3, "a row that exists must not be added again");
}

#[test]
fn a_dry_run_counts_without_a_key_and_without_writing() {
    let bulk = Bulk::without_nvidia().setting("NVIDIA_REQUESTS_PER_MINUTE", 40);
    bulk.write_pictures(10);
    bulk.write("list.txt", "http://localhost/a\nphotos/1.png\n");
    // The folder has ten pictures. One of them is also in the list, and counts twice.
    let run = bulk.run("photos list.txt --dry-run --out vectors.jsonl").expect_exit_code(0);
    assert!(run.stdout.contains("12 pictures to send: 11 files and 1 URLs"), "{}", run.stdout);
    // Twelve pictures at 40 a minute take 18 s.
    assert!(
        run.stdout.contains("with NVIDIA_REQUESTS_PER_MINUTE=40, at most 18s"),
        "{}",
        run.stdout
    );
    assert!(!bulk.path("vectors.jsonl").exists() && !bulk.path(".cache").exists());
    bulk.write("list.json", r#"[{"url": "http://localhost/b"}]"#);
    // In the second case, the limit is reached at the end of a source: the list has one picture.
    for (arguments, count) in [("photos list.txt", 3), ("list.json photos", 1), ("photos", 0)] {
        let run = bulk.run(&format!("{arguments} --dry-run --limit {count}")).expect_exit_code(0);
        let expected = format!("{count} pictures to send");
        assert!(run.stdout.starts_with(&expected), "{arguments}: {}", run.stdout);
    }
}

#[test]
fn a_dry_run_names_the_limit_on_calls_and_this_replicas_part_of_it() {
    let bulk = Bulk::without_nvidia()
        .setting("NVIDIA_REQUESTS_PER_MINUTE", 40)
        .setting("IMAGESVC_REPLICAS", 3);
    bulk.write_pictures(13);
    let run = bulk.run("photos --dry-run").expect_exit_code(0);
    // A third of 40 calls, rounded down, is 13 calls a minute, so 13 pictures take a minute.
    let limit = "with this replica's part of NVIDIA_REQUESTS_PER_MINUTE=40, which is 13 with \
                 IMAGESVC_REPLICAS=3, at most 1m; ";
    assert!(run.stdout.contains(limit), "{}", run.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_in_the_arguments_or_sources_exits_with_2_before_a_picture_is_sent() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    // This list has a field with the name of a field that `embed` adds.
    bulk.write("taken.jsonl", "{\"path\": \"photos/0.png\", \"vector\": 1}\n");
    bulk.write("broken.json", "{}");
    std::fs::create_dir(bulk.folder().join("x.failed.jsonl")).unwrap();
    for (arguments, message) in [
        ("missing", "missing: "),
        ("photos --out vectors.csv", "must end in .jsonl, .parquet or .npy"),
        ("photos --concurrency 0", "concurrency"),
        ("photos --to nowhere", "--to"),
        // Nobody listens on port 1.
        ("photos --to http://127.0.0.1:1", "does not answer"),
        ("taken.jsonl --out vectors.jsonl", "set --prefix"),
        ("broken.json --out vectors.jsonl", "list of objects"),
        // The file of failures is a folder.
        ("photos --out x.jsonl", "x.failed.jsonl: "),
        // The source is broken, too, but the output is opened first.
        ("broken.json --out missing_folder/x.jsonl", "x.jsonl: "),
    ] {
        let run = bulk.run(arguments).expect_exit_code(2);
        assert!(run.stderr.contains(message), "{arguments}: {}", run.stderr);
    }
    assert_eq!(nvidia.count(), 0);
    let without_key = Bulk::without_nvidia();
    without_key.write_pictures(1);
    assert!(without_key.run("photos").expect_exit_code(2).stderr.contains("NVIDIA_API_KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_output_file_one_picture_becomes_one_row_on_standard_output() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("rocket.jpg", ROCKET);
    let run = bulk.run("rocket.jpg").expect_exit_code(0);
    let row: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&row["path"], &row["width"]), (&json!("rocket.jpg"), &json!(640)));
    assert_eq!(row["vector"].as_array().unwrap().len(), 1536);
    assert!(run.stdout.ends_with("]}\n") && run.stdout.lines().count() == 1);
    let entries = std::fs::read_dir(bulk.folder()).unwrap();
    assert_eq!(entries.count(), 2, "only the picture and the cache must exist");
}
