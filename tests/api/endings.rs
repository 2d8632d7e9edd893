//! Requests give back everything that they hold, however they end.

use std::{cell::RefCell, time::Duration};

use futures_util::{FutureExt, future::join_all, stream};
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Answer, FORM, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, connect_from, embedding,
    form, post_head, tiny, try_picture_number,
};

/// The number of a picture that every sequence sends.
const KNOWN: usize = 7;

/// How a request ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// These end with an embedding.
    Uploaded,
    Base64,
    Fetched,
    /// With the embedding of a picture that was sent before, or is sent twice at once.
    Cached,
    Joined,
    /// With an embedding, by way of a staging file.
    Large,
    /// These are refused, each at a later stage.
    DeclaredTooLarge,
    TooLarge,
    NoForm,
    NoBase64,
    NoPicture,
    NotFetched,
    RefusedByNvidia,
    /// The client stalls, or leaves within the body or after it.
    Slow,
    LeftWithinBody,
    LeftAfterBody,
}

const ENDINGS: [Ending; 16] = [
    Ending::Uploaded,
    Ending::Base64,
    Ending::Fetched,
    Ending::Cached,
    Ending::Joined,
    Ending::Large,
    Ending::DeclaredTooLarge,
    Ending::TooLarge,
    Ending::NoForm,
    Ending::NoBase64,
    Ending::NoPicture,
    Ending::NotFetched,
    Ending::RefusedByNvidia,
    Ending::Slow,
    Ending::LeftWithinBody,
    Ending::LeftAfterBody,
];

struct Servers {
    app: TestApp,
    picture_server: FakeServer,
    _nvidia: FakeNvidia,
}

impl Servers {
    async fn start() -> Self {
        let picture_server = FakeServer::start(|request, _| match request.target.as_str() {
            "/gone" => {
                Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\nshort".to_vec())
            }
            _ => Reply::new(200, &[], ROCKET),
        })
        .await;
        let nvidia = FakeNvidia::with_uploads(|request| match try_picture_number(request) {
            Some(number) if number % 1000 == 400 => Some(Reply::status(400)),
            Some(_) => Some(embedding().after(Duration::from_millis(20))),
            None => None,
        })
        .await;
        Self {
            app: TestApp::builder(&nvidia)
                .may_fetch_from(&picture_server)
                .setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB")
                .setting("IMAGESVC_BODY_TIMEOUT", "300ms")
                .start()
                .await,
            picture_server,
            _nvidia: nvidia,
        }
    }

    /// Makes one request that ends in this way.
    async fn end(&self, ending: Ending, n: usize) {
        let (app, picture) = (&self.app, tiny(1000 * n));
        let too_much = bytes::Bytes::from(vec![b'A'; 2_000_000]);
        let base64 = || app.client.post(app.url("/vectorize-image-base64"));
        let status = |answer: Answer| answer.status;
        let ended = match ending {
            Ending::Uploaded => app.upload(&picture, "a.png").map(status).await == 200,
            Ending::Base64 => app.base64(&picture).map(status).await == 200,
            Ending::Fetched => {
                app.by_url(&self.picture_server.url("/a.jpg")).map(status).await == 200
            }
            Ending::Cached => app.upload(&tiny(KNOWN), "a.png").map(status).await == 200,
            Ending::Joined => {
                let both = join_all([app.base64(&picture), app.base64(&picture)]).await;
                both.iter().all(|answer| answer.status == 200)
            }
            Ending::Large => app.upload(HUBBLE, "a.jpg").map(status).await == 200,
            Ending::DeclaredTooLarge => app.send(base64().body(too_much)).map(status).await == 413,
            Ending::TooLarge => {
                let frame = Ok::<_, std::io::Error>(http_body::Frame::data(too_much));
                let body = http_body_util::StreamBody::new(stream::iter([frame]));
                app.send(base64().body(reqwest::Body::wrap(body))).map(status).await == 413
            }
            Ending::NoForm => {
                app.post("/vectorize-image-upload", FORM, "--x\r\n").map(status).await == 422
            }
            Ending::NoBase64 => {
                app.send(base64().body(r#"{"image_base64":"%%%%"}"#)).map(status).await == 400
            }
            Ending::NoPicture => app.upload(b"no picture", "a.png").map(status).await == 415,
            Ending::NotFetched => {
                app.by_url(&self.picture_server.url("/gone")).map(status).await == 502
            }
            Ending::RefusedByNvidia => {
                app.upload(&tiny(1000 * n + 400), "a.png").map(status).await >= 400
            }
            Ending::Slow => self.send_part(n, &form(HUBBLE)[..100_000], true).await.contains("408"),
            Ending::LeftWithinBody => {
                self.send_part(n, &form(HUBBLE)[..100_000], false).await.is_empty()
            }
            Ending::LeftAfterBody => self.send_part(n, &form(&picture), false).await.is_empty(),
        };
        assert!(ended, "not {ending:?}");
    }

    /// Sends a part of an upload, then waits for the answer or leaves at once.
    async fn send_part(&self, n: usize, part: &[u8], waits: bool) -> String {
        let source = [127, 0, 0, 2 + (n % 3) as u8];
        let mut stream = connect_from(source, self.app.address).await.unwrap();
        let length = if part.len() > 50_000 { 900_000 } else { part.len() };
        let head = post_head("/vectorize-image-upload", length, "");
        stream.write_all(&head).await.unwrap();
        stream.write_all(part).await.unwrap();
        let mut answer = String::new();
        if waits {
            stream.read_to_string(&mut answer).await.unwrap();
        }
        answer
    }
}

#[test]
fn requests_release_their_memory_and_permits_however_they_end() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let servers = runtime.block_on(Servers::start());
    let next = RefCell::new(0);
    let sequences = proptest::collection::vec(proptest::sample::select(&ENDINGS[..]), 1..24);
    // Failures are not stored: they depend on timing, so replaying them proves nothing.
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    let mut all = ENDINGS.to_vec();
    all.extend(ENDINGS);
    let run = |sequence: Vec<Ending>| {
        runtime.block_on(async {
            join_all(sequence.into_iter().map(|ending| {
                *next.borrow_mut() += 1;
                servers.end(ending, *next.borrow())
            }))
            .await;
            let held = ["buffered_bytes", "pictures_at_work", "pictures_waiting"];
            let is_free = |value: &dyn Fn(&str) -> f64| {
                held.iter().all(|name| value(&format!("imagesvc_{name}")) == 0.0)
            };
            servers.app.wait_for(is_free).await;
        });
    };
    run(all);
    let sequences = TestRunner::new(config).run(&sequences, |sequence| {
        run(sequence);
        Ok(())
    });
    sequences.unwrap();
}
