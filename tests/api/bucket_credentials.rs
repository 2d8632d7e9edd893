//! Where the credentials for the bucket come from, and what happens if they are wrong. S3 is moto,
//! which checks signatures and permissions.

use std::time::{Duration, Instant};

use tokio::{process::Command, time::timeout};

use crate::support::{
    FakeNvidia, ROCKET, Replica, ServiceProcess, Setting, assert_problem, bucket_warnings,
    free_address,
    s3::{Credentials, FakeMetadata, MotoServer},
    tiny,
};

/// The settings with which the service gets its credentials from this endpoint of an instance's
/// metadata.
fn with_metadata_endpoint(moto: &MotoServer, endpoint: String) -> Vec<Setting> {
    let mut settings = moto.settings_without_credentials();
    settings.push(("AWS_METADATA_ENDPOINT", endpoint));
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_an_instance_gives_the_credentials() {
    let Some(moto) = MotoServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let settings = with_metadata_endpoint(&moto, moto.metadata_endpoint());
    let replica = Replica::start(&nvidia, &settings).await;
    let saved = replica.upload(ROCKET).await;
    saved.assert_success();
    let key = format!("imagesvc/downloads/{}", saved.saved_as());
    assert_eq!(moto.read(&key).await.unwrap(), ROCKET);
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_credentials_in_the_environment_are_used_with_their_token() {
    let Some(moto) = MotoServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let temporary = moto.assume_role().await;
    assert!(temporary.token.is_some());
    let settings = [moto.settings_without_credentials(), temporary.settings()].concat();
    let replica = Replica::start(&nvidia, &settings).await;
    replica.upload(ROCKET).await.assert_success();
    assert_eq!(moto.keys_in("downloads").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_expire_are_replaced_while_pictures_are_uploaded() {
    let Some(moto) = MotoServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let [first, second] = [moto.assume_role().await, moto.assume_role().await];
    // The service asks for new credentials five minutes before the old ones expire: after three seconds.
    let lifetime = Duration::from_secs(300 + 3);
    let metadata = FakeMetadata::start(first.clone(), lifetime).await;
    let settings = with_metadata_endpoint(&moto, metadata.endpoint());
    let replica = Replica::start(&nvidia, &settings).await;
    assert_eq!(metadata.credential_requests(), 1);
    metadata.rotate(second, Duration::from_secs(3600));
    let started = Instant::now();
    let mut count = 0;
    let mut upload = async || {
        let saved = replica.upload(&tiny(count)).await;
        saved.assert_success();
        count += 1;
    };
    while metadata.credential_requests() < 2 {
        upload().await;
        assert!(started.elapsed() < Duration::from_secs(30), "new credentials should be fetched");
    }
    moto.revoke(&first).await;
    for _ in 0..5 {
        upload().await;
    }
    assert_eq!(metadata.credential_requests(), 2, "credentials should be reused until they expire");
    assert_eq!(moto.keys_in("downloads").await.len(), count);
    println!("{count} pictures were uploaded");
    let (_, log) = replica.stop().await;
    assert!(bucket_warnings(&log).is_empty(), "{:#?}", bucket_warnings(&log));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_the_service_starts_with_a_warning_that_says_where_to_set_them() {
    let Some(moto) = MotoServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    // Nobody listens at this endpoint.
    let endpoint = format!("http://{}", free_address().await);
    let replica = Replica::start(&nvidia, &with_metadata_endpoint(&moto, endpoint)).await;
    assert_problem(&replica.upload(ROCKET).await, 503, "storage_unavailable");
    replica.upload_unsaved(ROCKET).await.assert_success();
    let (_, log) = replica.stop().await;
    let message = "the bucket cannot be written to";
    let warning = log.iter().find(|line| line.contains(message)).unwrap();
    assert!(warning.contains("AWS_ACCESS_KEY_ID") && warning.contains("role"), "{warning}");
}

/// Runs the service, which must not start. Returns its log.
async fn log_of_refused_start(nvidia: &FakeNvidia, settings: Vec<Setting>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(ServiceProcess::PROGRAM);
    command
        .env_clear()
        .envs([("IMAGESVC_HOST", "127.0.0.1"), ("IMAGESVC_PORT", "0")])
        .env("IMAGESVC_MIN_FREE_BYTES", "0")
        .envs(nvidia.settings())
        .envs(settings)
        .current_dir(folder.path())
        .kill_on_drop(true);
    let output = timeout(Duration::from_secs(30), command.output()).await;
    let output = output.expect("the service should not start").unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_unusable_bucket_the_start_exits_with_1_and_names_the_setting_or_the_permission() {
    let Some(moto) = MotoServer::start().await else { return };
    let nvidia = FakeNvidia::healthy().await;
    let revoked = moto.assume_role().await;
    moto.revoke(&revoked).await;
    let unknown = Credentials { key_id: "AKIAUNKNOWN".to_owned(), ..moto.user.clone() };
    for (name, added) in [
        ("AWS_SECRET_ACCESS_KEY", vec![("AWS_SECRET_ACCESS_KEY", "wrong".to_owned())]),
        ("AWS_ACCESS_KEY_ID", unknown.settings()),
        ("AWS_ACCESS_KEY_ID", revoked.settings()),
        // The bucket is in another region.
        ("IMAGESVC_BUCKET_REGION", vec![("IMAGESVC_BUCKET_REGION", "us-east-1".to_owned())]),
        // The user's policy allows nothing outside of the prefix in `moto.settings()`.
        ("s3:PutObject", vec![("IMAGESVC_BUCKET", format!("s3://{}/other", moto.bucket))]),
    ] {
        // Of two values for one setting, the later one counts.
        let settings = [moto.settings(), added].concat();
        let log = log_of_refused_start(&nvidia, settings).await;
        assert!(log.contains("IMAGESVC_BUCKET cannot be used") && log.contains(name), "{log}");
    }
    moto.delete_bucket().await;
    let log = log_of_refused_start(&nvidia, moto.settings()).await;
    assert!(
        log.contains("IMAGESVC_BUCKET is the address of a bucket that does not exist"),
        "{log}"
    );
}
