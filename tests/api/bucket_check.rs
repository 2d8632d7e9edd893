//! `imagesvc check` with a bucket on moto, a stand-in for S3 that also enforces permissions.

use std::{process::Output, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::support::{ServiceProcess, Setting, free_address, s3::MotoServer};

/// Runs `imagesvc check` with these settings. Returns the exit code, and the results for the bucket,
/// each in one line.
async fn check(settings: Vec<Setting>) -> (Option<i32>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(ServiceProcess::PROGRAM);
    command
        .args(["check", "--sandbox"])
        .env_clear()
        .envs([("IMAGESVC_HOST", "127.0.0.1"), ("IMAGESVC_PORT", "0")])
        .env("IMAGESVC_MIN_FREE_BYTES", "0")
        .envs(settings)
        .current_dir(folder.path())
        .kill_on_drop(true);
    let output = timeout(Duration::from_secs(30), command.output()).await;
    let Output { status, stdout, .. } = output.expect("the check should end in time").unwrap();
    // Joins the lines of each long result: all lines but its first are indented.
    let text = String::from_utf8(stdout).unwrap().replace("\n                ", " ");
    let results = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let of_bucket = |line: &String| line.split(' ').nth(1) == Some("bucket");
    (status.code(), results.filter(of_bucket).collect())
}

#[tokio::test]
async fn with_all_permissions_an_object_is_written_read_and_removed() {
    let Some(moto) = MotoServer::start().await else { return };
    let expected =
        "ok bucket s3://test-pictures/imagesvc: an object was written, read and removed".to_owned();
    assert_eq!(check(moto.settings()).await, (Some(0), vec![expected]));
    assert!(moto.keys().await.is_empty(), "nothing should remain");
}

#[tokio::test]
async fn each_missing_permission_is_named_and_no_other() {
    let Some(moto) = MotoServer::start().await else { return };
    for (permission, state, exit_code) in [
        ("s3:PutObject", "FAULT", 1),
        ("s3:GetObject", "FAULT", 1),
        ("s3:ListBucket", "FAULT", 1),
        ("s3:DeleteObject", "note", 0),
    ] {
        moto.deny(&[permission]).await; // allows all others
        let (code, results) = check(moto.settings()).await;
        let [only] = &results[..] else { panic!("{permission}: {results:#?}") };
        assert_eq!(code, Some(exit_code), "{only}");
        assert!(
            only.starts_with(state) && only.ends_with(&format!("allow {permission}")),
            "{only}"
        );
    }
}

#[tokio::test]
async fn each_wrong_setting_is_named() {
    let Some(moto) = MotoServer::start().await else { return };
    let unused_address = free_address().await;
    for (name, value) in [
        ("AWS_SECRET_ACCESS_KEY", "wrong".to_owned()),
        ("AWS_ACCESS_KEY_ID", "AKIAUNKNOWN".to_owned()),
        ("IMAGESVC_BUCKET_REGION", "us-east-1".to_owned()),
        ("IMAGESVC_BUCKET_ENDPOINT", format!("http://{unused_address}")),
    ] {
        let (code, results) = check([moto.settings(), vec![(name, value)]].concat()).await;
        assert_eq!(code, Some(1));
        let is_named = |line: &String| line.starts_with("FAULT") && line.contains(name);
        assert!(results.iter().any(is_named), "{results:#?}");
    }
    moto.delete_bucket().await;
    let (code, results) = check(moto.settings()).await;
    assert_eq!(code, Some(1));
    // Because of the space, a setting such as `IMAGESVC_BUCKET_REGION` does not match.
    assert!(results.iter().any(|line| line.contains("IMAGESVC_BUCKET ")), "{results:#?}");
}
