//! The S3 servers, the fault proxy and the fake metadata behave as other tests assume.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::s3::{Credentials, FakeMetadata, Fault, FaultProxy, MotoServer, RcloneServer};

fn object(key: &str) -> Value {
    json!({ "Key": key })
}

fn object_with_body(key: &str) -> Value {
    json!({ "Key": key, "Body": "0123456789" })
}

/// A copy of these credentials with a wrong secret.
fn with_wrong_secret(credentials: &Credentials) -> Credentials {
    Credentials { secret: "wrong".to_owned(), ..credentials.clone() }
}

#[tokio::test]
async fn the_user_of_moto_may_only_list_the_bucket_and_use_one_prefix_unless_deny_forbids_it() {
    let Some(moto) = MotoServer::start().await else { return };
    for (operation, parameters, expected) in [
        ("put_object", object_with_body("imagesvc/a"), "ok"),
        ("get_object", object("imagesvc/a"), "ok"),
        ("get_object", object("imagesvc/missing"), "NoSuchKey"),
        ("delete_object", object("imagesvc/a"), "ok"),
        ("put_object", object_with_body("other/a"), "AccessDenied"),
        ("get_object", object("other/a"), "AccessDenied"),
        ("list_objects_v2", json!({}), "ok"),
        ("delete_bucket", json!({}), "AccessDenied"),
    ] {
        assert_eq!(moto.attempt(operation, &parameters).await, expected, "{operation}");
    }
    moto.deny(&["s3:PutObject"]).await;
    // `attempt` acts as the user. The other methods here, also `delete_bucket`, act as an administrator.
    moto.write("imagesvc/b", b"b").await;
    let put = object_with_body("imagesvc/c");
    assert_eq!(moto.attempt("put_object", &put).await, "AccessDenied");
    assert_eq!(moto.attempt("get_object", &object("imagesvc/b")).await, "ok");
    // Each call of `deny` replaces the one before.
    moto.deny(&["s3:ListBucket"]).await;
    // S3 reports an object as missing only to users who may list the bucket.
    assert_eq!(moto.attempt("get_object", &object("imagesvc/missing")).await, "AccessDenied");
    moto.deny(&[]).await;
    assert_eq!(moto.attempt("put_object", &put).await, "ok");
    assert_eq!(moto.keys().await, ["imagesvc/b", "imagesvc/c"]);
    assert_eq!(moto.read("imagesvc/c").await.unwrap(), b"0123456789");
    moto.delete("imagesvc/c").await;
    assert_eq!(moto.read("imagesvc/c").await, None);
    moto.delete_bucket().await;
    assert_eq!(moto.attempt("put_object", &put).await, "NoSuchBucket");
}

#[tokio::test]
async fn moto_and_rclone_refuse_a_wrong_secret() {
    let Some(moto) = MotoServer::start().await else { return };
    let Some(rclone) = RcloneServer::start().await else { return };
    let put = object_with_body("imagesvc/downloads/a");
    for (user, address) in [(&moto.user, moto.address), (&rclone.user, rclone.address)] {
        let wrong = with_wrong_secret(user);
        // `attempt_as` runs boto3 in moto's process, but sends the request to `address`.
        let refused = moto.attempt_as(&wrong, address, "put_object", &put).await;
        assert_eq!(refused, "SignatureDoesNotMatch");
        assert_eq!(moto.attempt_as(user, address, "put_object", &put).await, "ok");
    }
    // `keys_in` leaves out the prefix and the folder.
    assert_eq!(moto.keys_in("downloads").await, ["a"]);
    assert_eq!(rclone.keys_in("downloads"), ["a"]);
    assert_eq!(std::fs::read(rclone.path_of("downloads/a")).unwrap(), b"0123456789");
}

#[tokio::test]
async fn signatures_stay_valid_through_the_proxy_and_each_fault_reaches_the_client() {
    let Some(moto) = MotoServer::start().await else { return };
    let Some(rclone) = RcloneServer::start().await else { return };
    for (user, upstream) in [(&moto.user, moto.address), (&rclone.user, rclone.address)] {
        let mut proxy = FaultProxy::start(upstream).await;
        let address = proxy.address;
        let put = async |key| {
            let parameters = object_with_body(&format!("imagesvc/{key}"));
            moto.attempt_as(user, address, "put_object", &parameters).await
        };
        let get = async |key| {
            let parameters = object(&format!("imagesvc/{key}"));
            moto.attempt_as(user, address, "get_object", &parameters).await
        };
        assert_eq!(put("whole").await, "ok");
        assert_eq!(proxy.lines(), ["PUT /test-pictures/imagesvc/whole"]);
        assert_eq!(proxy.requests()[0].header("content-length"), Some("10"));
        for (status, code) in [(403, "AccessDenied"), (404, "NoSuchBucket"), (503, "SlowDown")] {
            proxy.set(Fault::Error(status, code)).await;
            assert_eq!(put("refused").await, code);
        }
        proxy.set(Fault::CutRequest).await;
        assert_eq!(put("cut").await, "ConnectionClosedError");
        proxy.set(Fault::CutResponse).await;
        assert_eq!(get("whole").await, "ResponseStreamingError");
        proxy.set(Fault::Refuse).await;
        assert_eq!(put("refused").await, "EndpointConnectionError");
        proxy.set_for(Fault::Error(503, "SlowDown"), |request| request.method == "PUT").await;
        assert_eq!(get("whole").await, "ok");
        assert_eq!(put("refused").await, "SlowDown");
        proxy.clear().await;
        assert_eq!(get("whole").await, "ok");
        for key in ["refused", "cut"] {
            assert_eq!(get(key).await, "NoSuchKey");
        }
    }
}

#[tokio::test]
async fn the_proxy_delays_or_holds_responses_and_moto_can_be_paused() {
    let Some(moto) = MotoServer::start().await else { return };
    let mut proxy = FaultProxy::start(moto.address).await;
    let url = format!("http://{}/", proxy.address);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let delay = Duration::from_millis(300); // without a fault, a response takes much less
    proxy.set(Fault::Delay(delay)).await;
    let started = std::time::Instant::now();
    client.get(&url).send().await.unwrap();
    assert!(started.elapsed() >= delay);
    proxy.set(Fault::Hold).await;
    assert!(timeout(delay, client.get(&url).send()).await.is_err());
    proxy.clear().await;
    moto.pause();
    assert!(timeout(delay, client.get(&url).send()).await.is_err());
    moto.resume();
    client.get(&url).send().await.unwrap();
    // The delayed request, the held one, the one during the pause, and the one after it.
    assert_eq!(proxy.wait_for(4).await.len(), 4);
    assert_eq!(proxy.count(), 4);
}

#[tokio::test]
async fn temporary_credentials_come_from_the_metadata_and_can_be_revoked() {
    let Some(moto) = MotoServer::start().await else { return };
    let [first, second] = [moto.assume_role().await, moto.assume_role().await];
    let lifetime = Duration::from_secs(60);
    let metadata = FakeMetadata::start(first.clone(), lifetime).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let path = "latest/meta-data/iam/security-credentials";
    let fetch = async |endpoint: &str| {
        let request = client.put(format!("{endpoint}/latest/api/token"));
        let request = request.header("x-aws-ec2-metadata-token-ttl-seconds", "600");
        let metadata_token = request.send().await.unwrap().text().await.unwrap();
        let get = async |url: String| {
            let request = client.get(url).header("x-aws-ec2-metadata-token", &metadata_token);
            request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap()
        };
        let role = get(format!("{endpoint}/{path}/")).await;
        let json = get(format!("{endpoint}/{path}/{role}")).await;
        let answer: Value = serde_json::from_str(&json).unwrap();
        let field = |name: &str| answer[name].as_str().unwrap().to_owned();
        Credentials {
            key_id: field("AccessKeyId"),
            secret: field("SecretAccessKey"),
            token: Some(field("Token")),
        }
    };
    let put = object_with_body("imagesvc/a");
    let attempt = async |credentials: &Credentials| {
        moto.attempt_as(credentials, moto.address, "put_object", &put).await
    };
    // moto imitates the metadata, too.
    for endpoint in [metadata.endpoint(), moto.metadata_endpoint()] {
        assert_eq!(attempt(&fetch(&endpoint).await).await, "ok");
    }
    let role_without_metadata_token =
        client.get(format!("{}/{path}/", metadata.endpoint())).send().await.unwrap();
    assert_eq!(role_without_metadata_token.status(), 401);
    metadata.rotate(second.clone(), lifetime);
    assert_eq!(fetch(&metadata.endpoint()).await, second);
    assert_eq!(metadata.credential_requests(), 2, "one before and one after the rotation");
    assert_eq!(metadata.lines()[0], "PUT /latest/api/token");
    moto.revoke(&first).await;
    assert_eq!(attempt(&first).await, "InvalidAccessKeyId");
    assert_eq!(attempt(&second).await, "ok");
}

#[tokio::test]
async fn the_settings_name_the_bucket_the_endpoint_and_the_credentials() {
    let Some(moto) = MotoServer::start().await else { return };
    let Some(rclone) = RcloneServer::start().await else { return };
    for (settings, user, address) in [
        (moto.settings(), &moto.user, moto.address),
        (rclone.settings(), &rclone.user, rclone.address),
    ] {
        let expected = [
            ("IMAGESVC_BUCKET", "s3://test-pictures/imagesvc".to_owned()),
            ("IMAGESVC_BUCKET_ENDPOINT", format!("http://{address}")),
            ("IMAGESVC_BUCKET_REGION", "eu-central-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", user.key_id.clone()),
            ("AWS_SECRET_ACCESS_KEY", user.secret.clone()),
        ];
        assert_eq!(settings, expected);
    }
}
