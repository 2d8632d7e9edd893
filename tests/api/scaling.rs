//! The policy, the lifecycle rules and the table of costs of `docs/scaling.md` are right on an S3 server,
//! and the permissions on the Valkey are those that the service needs.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use crate::support::{
    FakeNvidia, ROCKET, Replica,
    documents::{Document, root},
    s3::{FaultProxy, MotoServer},
    tiny, wait_for,
};

/// The JSON block of docs/scaling.md that contains `part`, with the name of the server's bucket in
/// place of the example's.
fn json_block(moto: &MotoServer, part: &str) -> Value {
    let page = Document::read("docs/scaling.md");
    let blocks = page.blocks().into_iter();
    let matching: Vec<_> =
        blocks.filter(|block| block.language == "json" && block.text.contains(part)).collect();
    let [block] = &matching[..] else { panic!("{} blocks contain {part}", matching.len()) };
    // The page and the server must use the same prefix.
    assert!(block.text.contains("imagesvc/"), "{}", block.place);
    assert_eq!(moto.prefix, "imagesvc");
    let text = block.text.replace("example-pictures", &moto.bucket);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", block.place))
}

/// Writes two objects as an administrator. Then calls each operation as the user that has the policy.
/// Returns the results: `ok`, or the code of the error.
async fn results(moto: &MotoServer) -> Vec<(&'static str, String)> {
    moto.write("imagesvc/vectors/a", b"a").await;
    moto.write("other/a", b"a").await;
    let mut results = Vec::new();
    for (name, operation, parameters) in [
        ("put", "put_object", json!({ "Key": "imagesvc/downloads/b", "Body": "b" })),
        ("get", "get_object", json!({ "Key": "imagesvc/vectors/a" })),
        ("get missing", "get_object", json!({ "Key": "imagesvc/vectors/missing" })),
        ("delete", "delete_object", json!({ "Key": "imagesvc/vectors/a" })),
        ("put elsewhere", "put_object", json!({ "Key": "other/b", "Body": "b" })),
        ("get elsewhere", "get_object", json!({ "Key": "other/a" })),
        ("delete elsewhere", "delete_object", json!({ "Key": "other/a" })),
        ("delete the bucket", "delete_bucket", json!({})),
        ("read the policy", "get_bucket_policy", json!({})),
    ] {
        results.push((name, moto.attempt(operation, &parameters).await));
    }
    results
}

/// The expected [`results`] with the page's policy, except that the operations `denied` are denied, too.
fn expected(denied: &[&str]) -> Vec<(&'static str, String)> {
    let results = [
        ("put", "ok"),
        ("get", "ok"),
        ("get missing", "NoSuchKey"),
        ("delete", "ok"),
        ("put elsewhere", "AccessDenied"),
        ("get elsewhere", "AccessDenied"),
        ("delete elsewhere", "AccessDenied"),
        ("delete the bucket", "AccessDenied"),
        ("read the policy", "AccessDenied"),
    ];
    let with_denied = |(name, result)| {
        if denied.contains(&name) { (name, "AccessDenied") } else { (name, result) }
    };
    results.map(with_denied).map(|(name, result)| (name, result.to_owned())).to_vec()
}

#[tokio::test]
async fn the_policy_of_docs_scaling_md_allows_what_the_service_needs_and_nothing_else() {
    let Some(moto) = MotoServer::start().await else { return };
    let policy = json_block(&moto, "\"Statement\"");
    moto.set_policy(&policy).await;
    assert_eq!(results(&moto).await, expected(&[]));
    // The service needs each of the policy's permissions.
    for (action, denied) in [
        ("s3:PutObject", &["put"][..]),
        ("s3:GetObject", &["get", "get missing"]),
        ("s3:DeleteObject", &["delete"]),
        ("s3:ListBucket", &["get missing"]), // without it, S3 hides whether an object exists
    ] {
        let text = policy.to_string();
        assert_eq!(text.matches(action).count(), 1, "{action}");
        let unneeded_action = "s3:GetBucketLocation"; // none of the operations needs it
        let without_action = text.replace(action, unneeded_action);
        moto.set_policy(&serde_json::from_str(&without_action).unwrap()).await;
        assert_eq!(results(&moto).await, expected(denied), "without {action}");
    }
}

#[tokio::test]
async fn a_bucket_accepts_the_lifecycle_rules_of_docs_scaling_md() {
    let Some(moto) = MotoServer::start().await else { return };
    let configuration = json_block(&moto, "\"Rules\"");
    let applied = moto.set_lifecycle(&configuration).await;
    assert_eq!(applied, configuration["Rules"]);
    let prefixes: Vec<_> =
        applied.as_array().unwrap().iter().map(|rule| &rule["Filter"]["Prefix"]).collect();
    assert_eq!(
        prefixes,
        ["imagesvc/downloads/", "imagesvc/vectors/", "imagesvc/checks/", "imagesvc/"]
    );
}

/// The numbers of GET and PUT requests in the table of costs, row by row. A cell may contain words
/// after its number.
fn costs_on_the_page() -> Vec<[usize; 2]> {
    let page = Document::read("docs/scaling.md").text;
    let (_, table) = page.split_once("| Picture | GET | PUT |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        [cells[2], cells[3]].map(|cell| {
            let digits = cell.find(|c: char| !c.is_ascii_digit()).unwrap_or(cell.len());
            cell[..digits].parse().unwrap()
        })
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_picture_costs_the_requests_of_the_table_in_docs_scaling_md() {
    let Some(moto) = MotoServer::start().await else { return };
    let proxy = FaultProxy::start(moto.address).await; // causes no faults here
    let nvidia = FakeNvidia::healthy().await;
    let settings = moto.settings_through(proxy.address);
    let replica = Replica::start(&nvidia, &settings).await;
    let other_replica = Replica::start(&nvidia, &settings).await;
    let assert_costs =
        async |replica: &Replica, picture: &[u8], is_saved: bool, expected: [usize; 2]| {
            let requests_before = proxy.count();
            let answer = match is_saved {
                true => replica.upload(picture).await,
                false => replica.upload_unsaved(picture).await,
            };
            answer.assert_success();
            let costs = || {
                let lines = proxy.lines();
                ["GET", "PUT"].map(|method| {
                    lines[requests_before..].iter().filter(|line| line.starts_with(method)).count()
                })
            };
            // The service may write the vector to the bucket after it has answered.
            let condition = async || costs() == expected;
            wait_for("the number of requests", std::time::Duration::from_secs(10), condition).await;
        };
    let [new, unsaved, in_bucket, in_local_cache] = costs_on_the_page()[..] else {
        panic!("the table should have four rows")
    };
    assert_costs(&replica, ROCKET, true, new).await;
    assert_costs(&replica, &tiny(1), false, unsaved).await;
    // The local cache of `other_replica` is empty. `replica` has written this vector to the bucket.
    assert_costs(&other_replica, ROCKET, true, in_bucket).await;
    assert_costs(&other_replica, ROCKET, true, in_local_cache).await;
}

#[test]
fn the_permissions_on_the_valkey_are_those_that_the_service_needs_and_that_ci_tests() {
    let page = Document::read("docs/scaling.md").text;
    let (_, permissions) = page.split_once("ACL SETUSER imagesvc on >PASSWORD ").unwrap();
    let permissions = permissions.lines().next().unwrap();
    // `.ci/run` runs `deploy/replicas --check`, which fails if the service lacks a permission.
    let deploy_replicas = fs::read_to_string(root().join("deploy/replicas")).unwrap();
    let line = format!("\npermissions='{permissions}'\n");
    assert!(deploy_replicas.contains(&line), "deploy/replicas should contain {line}");

    // Every Lua script needs `evalsha` and `script|load`. `imagesvc check` needs `info`.
    let mut needed = BTreeSet::from(["evalsha", "script|load", "info"].map(str::to_owned));
    for entry in fs::read_dir(root().join("src/valkey")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "lua") {
            let text = fs::read_to_string(path).unwrap();
            let calls = text.split("redis.call('").skip(1);
            needed.extend(calls.map(|call| call.split('\'').next().unwrap().to_lowercase()));
        }
    }
    let allowed = permissions.split(' ').filter_map(|word| word.strip_prefix('+'));
    assert_eq!(allowed.map(str::to_owned).collect::<BTreeSet<_>>(), needed);
    assert!(permissions.starts_with("~{imagesvc}* -@all "), "{permissions}");
}
