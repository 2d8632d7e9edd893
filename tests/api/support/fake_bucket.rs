//! A fake S3 with one bucket in memory. It asserts that the service's requests are correct. Tests can
//! make it fail.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use url::Url;

use super::{FakeServer, Received, Reply};

/// The objects by their names.
type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Returns the error that a request gets, or `None` if the request succeeds.
type Fault = Box<dyn Fn(&Received) -> Option<Reply> + Send>;

/// How the bucket behaves at the moment.
enum Behaviour {
    /// Some requests fail, and have no effect.
    Failing(Fault),
    /// Requests of this method have their effect, but are never answered.
    LosingAnswers(&'static str),
    /// The first request of this method has its effect, but its connection is closed without an answer.
    /// Later requests of this method get this reply, and have no effect.
    LosingFirstAnswer {
        method: &'static str,
        has_lost_answer: AtomicBool,
        later: Box<dyn Fn() -> Reply + Send>,
    },
    /// Every answer is delayed by this time. With zero, the bucket works normally.
    Slow(Duration),
}

/// A running fake S3.
pub struct FakeBucket {
    pub server: FakeServer,
    objects: Objects,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl FakeBucket {
    const ACCESS_KEY: &'static str = "AKIDEXAMPLE";
    const SECRET_KEY: &'static str = "secret-example";
    const NAME: &'static str = "photos";
    const PREFIX: &'static str = "imagesvc/";

    pub async fn start() -> Self {
        let objects = Objects::default();
        let behaviour = Arc::new(Mutex::new(Behaviour::Slow(Duration::ZERO)));
        let (objects_of_server, current) = (Arc::clone(&objects), Arc::clone(&behaviour));
        let server = FakeServer::start(move |request, _| {
            // A service of another test may still call a server that had this port before.
            if !request.target.starts_with(&format!("/{}/", Self::NAME)) {
                return Self::error(404, "NoSuchBucket");
            }
            let name = checked_name(request);
            let current = current.lock().unwrap();
            if let Behaviour::Failing(fault) = &*current
                && let Some(reply) = fault(request)
            {
                return reply;
            }
            if let Behaviour::LosingFirstAnswer { method, has_lost_answer, later } = &*current
                && request.method == *method
                && has_lost_answer.load(Ordering::SeqCst)
            {
                return later();
            }
            let mut objects = objects_of_server.lock().unwrap();
            let reply = match request.method.as_str() {
                "PUT" => {
                    objects.insert(name, request.body.clone());
                    Reply::status(200)
                }
                "GET" => match objects.get(&name) {
                    Some(object) => Reply::new(200, &[], object),
                    None => Self::error(404, "NoSuchKey"),
                },
                "DELETE" => {
                    objects.remove(&name);
                    Reply::new(204, &[], "")
                }
                method => panic!("the service must not send {method}"),
            };
            match &*current {
                Behaviour::LosingAnswers(method) if request.method == *method => Reply::Hang,
                Behaviour::LosingFirstAnswer { method, has_lost_answer, .. }
                    if request.method == *method =>
                {
                    has_lost_answer.store(true, Ordering::SeqCst);
                    Reply::CloseAfter(Vec::new())
                }
                Behaviour::Slow(delay) if !delay.is_zero() => reply.after(*delay),
                _ => reply,
            }
        })
        .await;
        Self { server, objects, behaviour }
    }

    /// The settings with which the service uses this bucket.
    pub fn settings(&self) -> [(&'static str, String); 5] {
        [
            ("IMAGESVC_BUCKET", format!("s3://{}/{}", Self::NAME, Self::PREFIX)),
            ("IMAGESVC_BUCKET_ENDPOINT", self.server.url("")),
            ("IMAGESVC_BUCKET_REGION", "eu-central-1".into()),
            ("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY.into()),
        ]
    }

    /// An error response in the format of S3.
    pub fn error(status: u16, code: &str) -> Reply {
        let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        Reply::new(status, &[("content-type", "application/xml")], body)
    }

    /// From now on, requests get the errors that `fault` returns. If `fault` returns `None`, the request
    /// succeeds.
    pub fn fail(&self, fault: impl Fn(&Received) -> Option<Reply> + Send + 'static) {
        *self.behaviour.lock().unwrap() = Behaviour::Failing(Box::new(fault));
    }

    /// From now on, requests of this method have their effect, but are never answered.
    pub fn lose_answers_to(&self, method: &'static str) {
        *self.behaviour.lock().unwrap() = Behaviour::LosingAnswers(method);
    }

    /// The next request of this method has its effect, but its connection is closed without an answer.
    /// Later requests of this method get the reply `later`, and have no effect.
    pub fn lose_first_answer_to(
        &self,
        method: &'static str,
        later: impl Fn() -> Reply + Send + 'static,
    ) {
        *self.behaviour.lock().unwrap() = Behaviour::LosingFirstAnswer {
            method,
            has_lost_answer: AtomicBool::new(false),
            later: Box::new(later),
        };
    }

    /// From now on, every answer is delayed.
    pub fn delay(&self, delay: Duration) {
        *self.behaviour.lock().unwrap() = Behaviour::Slow(delay);
    }

    /// From now on, the bucket works normally.
    pub fn recover(&self) {
        self.delay(Duration::ZERO);
    }

    /// The objects in a folder, by their names within it.
    pub fn objects_in(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let prefix = format!("{}{folder}/", Self::PREFIX);
        let objects = self.objects.lock().unwrap();
        let objects = objects.iter().filter_map(|(name, bytes)| {
            Some((name.strip_prefix(&prefix)?.to_owned(), bytes.clone()))
        });
        objects.collect()
    }

    /// Replaces the bytes of every object in a folder.
    pub fn change_objects_in(&self, folder: &str, change: impl Fn(&mut Vec<u8>)) {
        let prefix = format!("{}{folder}/", Self::PREFIX);
        let mut objects = self.objects.lock().unwrap();
        objects
            .iter_mut()
            .filter(|(name, _)| name.starts_with(&prefix))
            .for_each(|(_, bytes)| change(bytes));
    }
}

/// Asserts that the URL has a signature of the right form, and that a PUT has a header with the checksum of
/// its body. Returns the object's name.
fn checked_name(request: &Received) -> String {
    let url = Url::parse("http://bucket").unwrap().join(&request.target).unwrap();
    let query: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(query["X-Amz-Algorithm"], "AWS4-HMAC-SHA256");
    let access_key = format!("{}/", FakeBucket::ACCESS_KEY);
    let credential = &query["X-Amz-Credential"];
    assert!(credential.starts_with(&access_key), "{credential}");
    assert!(credential.ends_with("/eu-central-1/s3/aws4_request"), "{credential}");
    assert_eq!(query["X-Amz-Signature"].len(), 64);
    assert_eq!(request.header("authorization"), None, "the URL alone must authorize the request");
    if request.method == "PUT" {
        assert_eq!(query["X-Amz-SignedHeaders"], "host;x-amz-checksum-sha256");
        let checksum = BASE64_STANDARD.encode(Sha256::digest(&request.body));
        assert_eq!(request.header("x-amz-checksum-sha256"), Some(checksum.as_str()));
    }
    let name = url.path().strip_prefix(&format!("/{}/", FakeBucket::NAME));
    let name = name.unwrap_or_else(|| panic!("{} must be in the bucket", url.path()));
    assert!(name.starts_with(FakeBucket::PREFIX), "{name} must have the prefix");
    name.to_owned()
}
