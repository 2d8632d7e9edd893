//! The metadata of an EC2 instance (IMDSv2), which hands out the credentials of the instance's role.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::Credentials;
use crate::support::{FakeServer, Received, Reply};

/// A fake of the metadata. It demands a session token, like an instance that allows only IMDSv2, and
/// hands out the current credentials.
pub struct FakeMetadata {
    server: FakeServer,
    current: Arc<Mutex<Current>>,
}

struct Current {
    credentials: Credentials,
    expiration: SystemTime,
}

const ROLE: &str = "service-role";
const CREDENTIALS_PATH: &str = "/latest/meta-data/iam/security-credentials/";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const LIFETIME_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

impl FakeMetadata {
    /// The token that the metadata demands. The credentials contain another one.
    pub const TOKEN: &str = "session-token-of-the-fake-metadata";

    /// Hands out these credentials, which expire after `lifetime`.
    pub async fn start(credentials: Credentials, lifetime: Duration) -> Self {
        let expiration = SystemTime::now() + lifetime;
        let current = Arc::new(Mutex::new(Current { credentials, expiration }));
        let shared = Arc::clone(&current);
        let script = move |request: &Received, _: usize| reply(request, &shared.lock().unwrap());
        Self { server: FakeServer::start(script).await, current }
    }

    /// From now on, hands out these credentials, which expire after `lifetime`.
    pub fn rotate(&self, credentials: Credentials, lifetime: Duration) {
        let expiration = SystemTime::now() + lifetime;
        *self.current.lock().unwrap() = Current { credentials, expiration };
    }

    /// The value of `AWS_METADATA_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    /// The number of requests for the credentials.
    pub fn credential_requests(&self) -> usize {
        let line = format!("GET {CREDENTIALS_PATH}{ROLE}");
        self.server.lines().iter().filter(|found| **found == line).count()
    }

    /// The method and the target of each request.
    pub fn lines(&self) -> Vec<String> {
        self.server.lines()
    }
}

fn reply(request: &Received, current: &Current) -> Reply {
    let line = request.line();
    if line == "PUT /latest/api/token" {
        let lifetime = request.header(LIFETIME_HEADER).and_then(|text| text.parse::<u32>().ok());
        return match lifetime {
            // EC2 accepts a lifetime of at most six hours. The fake states ten minutes, whatever was
            // requested, but its token never expires.
            Some(1..=21_600) => Reply::new(200, &[(LIFETIME_HEADER, "600")], FakeMetadata::TOKEN),
            _ => Reply::status(400),
        };
    }
    if request.header(TOKEN_HEADER) != Some(FakeMetadata::TOKEN) {
        return Reply::status(401);
    }
    if line == format!("GET {CREDENTIALS_PATH}") {
        return Reply::new(200, &[("content-type", "text/plain")], ROLE);
    }
    if line != format!("GET {CREDENTIALS_PATH}{ROLE}") {
        return Reply::status(404);
    }
    let Credentials { key_id, secret, token } = &current.credentials;
    let body = json!({
        "Code": "Success",
        "LastUpdated": rfc_3339(SystemTime::now()),
        "Type": "AWS-HMAC",
        "AccessKeyId": key_id,
        "SecretAccessKey": secret,
        "Token": token.as_deref().expect("the credentials of a role have a token"),
        "Expiration": rfc_3339(current.expiration),
    });
    Reply::json(200, body.to_string())
}

fn rfc_3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
