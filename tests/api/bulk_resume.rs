//! `imagesvc embed`: runs that end early, and the runs that continue them.

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::sync::watch;

use crate::support::{Bulk, FakeNvidia, Finished, ServiceProcess, embedding, tiny};

/// Sends a signal to a process.
fn signal(process: &std::process::Child, name: &str) {
    let kill = format!("kill -{name} {}", process.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// The paths of all rows. Asserts that no two of them are equal.
fn paths(rows: &[Value]) -> BTreeSet<String> {
    let paths: BTreeSet<_> = rows.iter().map(|row| row["path"].as_str().unwrap().into()).collect();
    assert_eq!(paths.len(), rows.len(), "a row must not be written twice");
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_at_fifty_random_moments_loses_and_repeats_no_row() {
    const KILLS: usize = 50;
    const PICTURES: usize = 500;
    const CONCURRENCY: usize = 4;
    let nvidia =
        FakeNvidia::healthy_except(|_| Some(embedding().after(Duration::from_millis(20)))).await;
    // With two calls of 20 ms at once, the calls for the 500 pictures take 5 s. The 50 killed runs
    // together last about 6 s or longer, including their starts.
    let bulk = Bulk::new(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", 2);
    bulk.write_pictures(PICTURES);
    bulk.write("photos/bad.png", "no picture");
    let arguments = format!("photos --out vectors.jsonl --concurrency {CONCURRENCY}");
    let mut random = fastrand::Rng::with_seed(19);
    let (mut runs_with_new_rows, mut rows_before) = (0, 0);
    let mut longest_wait_ms = 250;
    for _ in 0..KILLS {
        let mut process = bulk.start(&arguments);
        // The kill may come before the first call to NVIDIA, or after many pictures are embedded.
        tokio::time::sleep(Duration::from_millis(random.u64(5..=longest_wait_ms))).await;
        process.kill().unwrap();
        process.wait().unwrap();
        let output = std::fs::read_to_string(bulk.path("vectors.jsonl")).unwrap_or_default();
        let rows = output.matches('\n').count();
        assert!(rows >= rows_before, "no row must be lost");
        if rows > rows_before {
            runs_with_new_rows += 1;
        } else {
            // On a busy machine, a run needs more time before its first row.
            longest_wait_ms += 20;
        }
        rows_before = rows;
    }
    assert!(
        runs_with_new_rows >= 5,
        "at least five of the killed runs should write a row, not {runs_with_new_rows}"
    );
    let run = bulk.run(&arguments).expect_exit_code(1);
    assert_eq!(paths(&bulk.rows("vectors.jsonl")).len(), PICTURES, "{}", run.stderr);
    let failures = bulk.rows("vectors.failed.jsonl");
    assert_eq!(paths(&failures), BTreeSet::from(["photos/bad.png".to_owned()]));
    // A run that is killed may lose the embeddings of its running requests. The next run then sends
    // those pictures again.
    let most_calls = PICTURES + KILLS * CONCURRENCY;
    assert!(
        nvidia.count() <= most_calls,
        "at most {most_calls} calls should be made, not {}",
        nvidia.count()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_line_is_cut_off_and_its_row_is_written_again() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(3);
    bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    let complete_output = bulk.read("vectors.jsonl");
    // The file lacks the line break, the end of the last vector, or most of the last row (about 15 KB).
    for missing_len in [1, 20, 10_000] {
        bulk.write("vectors.jsonl", &complete_output[..complete_output.len() - missing_len]);
        let run = bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
        assert!(run.stderr.contains("1 embedded (1 cached), 0 failed"), "{}", run.stderr);
        assert!(run.stderr.contains("2 skipped"), "{}", run.stderr);
        assert_eq!(paths(&bulk.rows("vectors.jsonl")).len(), 3);
    }
    assert_eq!(nvidia.count(), 3, "the row's vector should come from the cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_the_list_contains_twice_gets_two_rows_even_if_several_runs_write_them() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write("a.png", tiny(1));
    bulk.write("list.txt", "a.png\na.png\n");
    bulk.run("list.txt --out vectors.jsonl --limit 1").expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 1);
    // The second run adds the second row, and the third run adds none.
    bulk.run("list.txt --out vectors.jsonl").expect_exit_code(0);
    bulk.run("list.txt --out vectors.jsonl").expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 2);
    // With --id, the field `id` says which of the rows with equal paths is missing.
    bulk.write("ids.csv", "id,path\n1,a.png\n2,a.png\n");
    bulk.run("ids.csv --id id --out ids.jsonl --limit 1").expect_exit_code(0);
    let run = bulk.run("ids.csv --id id --out ids.jsonl").expect_exit_code(0);
    assert!(run.stderr.contains("1 skipped"), "{}", run.stderr);
    assert_eq!(bulk.rows("ids.jsonl")[1]["id"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_run_works_another_one_with_its_output_or_its_cache_is_refused() {
    let (release, _) = watch::channel(false);
    let held = embedding().held_until(&release);
    let nvidia = FakeNvidia::healthy_except(move |_| Some(held.clone())).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    let first = bulk.start("photos --out vectors.jsonl");
    nvidia.wait_for(1).await;
    let second = bulk.run("photos --out vectors.jsonl").expect_exit_code(2);
    assert!(second.stderr.contains("vectors.jsonl is in use by another run"), "{}", second.stderr);
    // All runs of this test have the same cache folder.
    let third = bulk.run("photos --out other.jsonl").expect_exit_code(2);
    assert!(third.stderr.contains("in use by another imagesvc"), "{}", third.stderr);
    release.send(true).unwrap();
    Finished::from(first).expect_exit_code(0);
    assert_eq!(bulk.rows("vectors.jsonl").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_of_another_model_and_a_file_without_vectors_are_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(1);
    bulk.run("photos --sandbox --out vectors.jsonl").expect_exit_code(0);
    let before = bulk.read("vectors.jsonl");
    let run = bulk.run("photos --out vectors.jsonl").expect_exit_code(2);
    for model in ["sandbox/perceptual", "nvidia/nv-dinov2"] {
        assert!(run.stderr.contains(model), "{}", run.stderr);
    }
    assert_eq!(bulk.read("vectors.jsonl"), before);
    bulk.write("list.jsonl", "{\"path\": \"photos/0.png\"}\n");
    let run = bulk.run("photos --out list.jsonl").expect_exit_code(2);
    assert!(run.stderr.contains("list.jsonl, line 1: this is not a row"), "{}", run.stderr);
    assert_eq!(nvidia.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_finishes_its_running_calls_and_exits_with_130() {
    let (release, _) = watch::channel(false);
    let held = embedding().held_until(&release);
    let nvidia = FakeNvidia::healthy_except(move |_| Some(held.clone())).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(9);
    let process = bulk.start("photos --out vectors.jsonl --concurrency 3");
    nvidia.wait_for(3).await;
    signal(&process, "INT");
    // NVIDIA must reply only after the command has handled the signal, which takes less than 300 ms.
    // If it takes longer, the command writes more than three rows, and this test fails.
    tokio::time::sleep(Duration::from_millis(300)).await;
    release.send(true).unwrap();
    let run = Finished::from(process).expect_exit_code(130);
    assert!(run.stderr.contains("waiting for 3 running requests"), "{}", run.stderr);
    assert_eq!(paths(&bulk.rows("vectors.jsonl")).len(), 3);
    bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    assert_eq!(paths(&bulk.rows("vectors.jsonl")).len(), 9);
    assert_eq!(nvidia.count(), 9, "each picture should be sent once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_ends_the_run_without_waiting_for_its_calls() {
    let (release, _) = watch::channel(false);
    let held = embedding().held_until(&release);
    let nvidia = FakeNvidia::healthy_except(move |_| Some(held.clone())).await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(3);
    let mut process = bulk.start("photos --out vectors.jsonl");
    nvidia.wait_for(3).await;
    signal(&process, "INT");
    // Two signals that arrive together count as one, so the test sends more until the process ends.
    let started = Instant::now();
    while process.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(10), "the process must end within 10 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
        signal(&process, "INT");
    }
    Finished::from(process).expect_exit_code(130);
    assert_eq!(bulk.read("vectors.jsonl"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_cannot_grow_ends_with_a_complete_row_and_is_continued() {
    let nvidia = FakeNvidia::healthy().await;
    let bulk = Bulk::new(&nvidia);
    bulk.write_pictures(20);
    // The limit of 100 KiB on the size of files has the same effect as a full disk, because `trap ''`
    // lets the program ignore SIGXFSZ. The 20 rows would have about 300 KiB.
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" embed photos --out vectors.jsonl";
    // This command is not run: only its environment is used.
    let environment = bulk.command("");
    let mut shell = Command::new("bash");
    shell.args(["-c", script, ServiceProcess::PROGRAM]).current_dir(bulk.folder()).env_clear();
    shell.envs(environment.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let stopped = shell.output().unwrap();
    let stderr = String::from_utf8(stopped.stderr).unwrap();
    assert_eq!(stopped.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("the output cannot be written: File too large"), "{stderr}");
    let output = bulk.read("vectors.jsonl");
    assert!(output.ends_with("]}\n"), "the last row must be complete");
    assert!(output.len() <= 100 << 10, "the output must stay within the limit: {}", output.len());
    let row_count = paths(&bulk.rows("vectors.jsonl")).len();
    assert!((1..20).contains(&row_count), "some of the 20 rows should fit, not {row_count}");
    bulk.run("photos --out vectors.jsonl").expect_exit_code(0);
    assert_eq!(paths(&bulk.rows("vectors.jsonl")).len(), 20);
}
