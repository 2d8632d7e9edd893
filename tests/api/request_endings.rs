//! Requests release their memory and permits, however they end.

use std::{cell::Cell, time::Duration};

use futures_util::{FutureExt, future::join_all, stream};
use proptest::test_runner::{Config, TestRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Answer, FORM_CONTENT_TYPE, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp,
    connect_from, embedding, form, post_head, tiny, try_picture_number,
};

/// The number of the picture that [`Ending::Cached`] sends again and again.
const CACHED_PICTURE: usize = 7;

/// How a request ends.
#[derive(Debug, Clone, Copy)]
enum Ending {
    // These requests get an embedding.
    Uploaded,
    Base64,
    Fetched,
    Cached,
    /// Two requests for the same picture share one call to NVIDIA.
    Joined,
    /// The picture goes to a staging file.
    Large,
    // These requests are refused, at different stages.
    /// The declared length of the body exceeds the limit.
    DeclaredTooLarge,
    /// A body without a declared length exceeds the limit.
    TooLarge,
    InvalidForm,
    InvalidBase64,
    NoPicture,
    /// The picture's host closes the connection in the middle of the picture.
    DownloadFailed,
    RefusedByNvidia,
    // The clients of these requests stop sending, or close the connection.
    /// The client stops in the middle of its body, and waits for an answer.
    Stalled,
    ClosedWithinBody,
    ClosedAfterBody,
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
    Ending::InvalidForm,
    Ending::InvalidBase64,
    Ending::NoPicture,
    Ending::DownloadFailed,
    Ending::RefusedByNvidia,
    Ending::Stalled,
    Ending::ClosedWithinBody,
    Ending::ClosedAfterBody,
];

struct Servers {
    app: TestApp,
    picture_server: FakeServer,
    _nvidia: FakeNvidia,
}

impl Servers {
    async fn start() -> Self {
        let picture_server = FakeServer::start(|request, _| match request.target.as_str() {
            "/broken.jpg" => {
                Reply::CloseAfter(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\nshort".to_vec())
            }
            _ => Reply::new(200, &[], ROCKET),
        })
        .await;
        let nvidia = FakeNvidia::healthy_except(|request| match try_picture_number(request) {
            Some(number) if is_refused(number) => Some(Reply::status(400)),
            // The call takes 20 ms, so that a second request for the same picture can join it.
            Some(_) => Some(embedding().after(Duration::from_millis(20))),
            None => None,
        })
        .await;
        Self {
            app: TestApp::builder(&nvidia)
                .may_fetch_from(&picture_server)
                .setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB")
                // Ends the requests of clients that stop sending.
                .setting("IMAGESVC_BODY_TIMEOUT", "300ms")
                .start()
                .await,
            picture_server,
            _nvidia: nvidia,
        }
    }

    /// Makes a request, or two for [`Ending::Joined`], and asserts that it ends in this way. `n` is the
    /// number of the request.
    async fn send_request(&self, ending: Ending, n: usize) {
        let (app, picture) = (&self.app, accepted_picture(n));
        // With the limit of 1 MiB for pictures, `base64_text::body_limit` allows JSON of about 1.6 MB.
        let too_large = bytes::Bytes::from(vec![b'A'; 2_000_000]);
        let post_base64 = || app.client.post(app.url("/vectorize-image-base64"));
        let status = |answer: Answer| answer.status;
        let is_as_expected = match ending {
            Ending::Uploaded => app.upload(&picture, "a.png").map(status).await == 200,
            Ending::Base64 => app.base64(&picture).map(status).await == 200,
            Ending::Fetched => {
                app.by_url(&self.picture_server.url("/a.jpg")).map(status).await == 200
            }
            Ending::Cached => app.upload(&tiny(CACHED_PICTURE), "a.png").map(status).await == 200,
            Ending::Joined => {
                let answers = join_all([app.base64(&picture), app.base64(&picture)]).await;
                answers.iter().all(|answer| answer.status == 200)
            }
            Ending::Large => app.upload(HUBBLE, "a.jpg").map(status).await == 200,
            Ending::DeclaredTooLarge => {
                app.send(post_base64().body(too_large)).map(status).await == 413
            }
            Ending::TooLarge => {
                let frame = Ok::<_, std::io::Error>(http_body::Frame::data(too_large));
                let chunked = http_body_util::StreamBody::new(stream::iter([frame]));
                let request = post_base64().body(reqwest::Body::wrap(chunked));
                app.send(request).map(status).await == 413
            }
            Ending::InvalidForm => {
                app.post("/vectorize-image-upload", FORM_CONTENT_TYPE, "--x\r\n").map(status).await
                    == 422
            }
            Ending::InvalidBase64 => {
                let request = post_base64().body(r#"{"image_base64":"%%%%"}"#);
                app.send(request).map(status).await == 400
            }
            Ending::NoPicture => app.upload(b"no picture", "a.png").map(status).await == 415,
            Ending::DownloadFailed => {
                app.by_url(&self.picture_server.url("/broken.jpg")).map(status).await == 502
            }
            Ending::RefusedByNvidia => {
                app.upload(&refused_picture(n), "a.png").map(status).await == 422
            }
            // The next two requests declare 900,000 bytes, which the limit of 1 MiB allows, but
            // send only 100,000.
            Ending::Stalled => {
                let mut stream = self.send_part(n, &form(HUBBLE)[..100_000], 900_000).await;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                answer.starts_with("HTTP/1.1 408 ")
            }
            Ending::ClosedWithinBody => {
                drop(self.send_part(n, &form(HUBBLE)[..100_000], 900_000).await);
                true
            }
            Ending::ClosedAfterBody => {
                let body = form(&picture);
                drop(self.send_part(n, &body, body.len()).await);
                true
            }
        };
        assert!(is_as_expected, "request {n} should end as {ending:?}");
    }

    /// Sends the head of an upload and `part` of its body, and returns the connection. Consecutive
    /// numbers `n` give different source addresses. So no address comes near its limit of 64
    /// connections.
    async fn send_part(&self, n: usize, part: &[u8], declared_length: usize) -> TcpStream {
        let source = [127, 0, 0, 2 + (n % 3) as u8];
        let mut stream = connect_from(source, self.app.address).await.unwrap();
        let head = post_head("/vectorize-image-upload", declared_length, "");
        stream.write_all(&head).await.unwrap();
        stream.write_all(part).await.unwrap();
        stream
    }
}

/// A picture that NVIDIA accepts, a different one for each request.
fn accepted_picture(n: usize) -> Vec<u8> {
    tiny(1000 * n)
}

/// A picture that NVIDIA refuses, a different one for each request.
fn refused_picture(n: usize) -> Vec<u8> {
    tiny(1000 * n + 400)
}

/// Whether the picture with this number is a [`refused_picture`].
fn is_refused(picture_number: usize) -> bool {
    picture_number % 1000 == 400
}

#[test]
fn requests_release_their_memory_and_permits_however_they_end() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let servers = runtime.block_on(Servers::start());
    let request_count = Cell::new(0);
    // Makes the requests at the same time. Then waits until all their memory and permits are released.
    let run_concurrently = |endings: &[Ending]| {
        runtime.block_on(async {
            join_all(endings.iter().map(|ending| {
                request_count.update(|count| count + 1);
                servers.send_request(*ending, request_count.get())
            }))
            .await;
            let gauges = ["buffered_bytes", "pictures_at_work", "pictures_waiting"];
            let all_are_zero = |value: &dyn Fn(&str) -> f64| {
                gauges.iter().all(|name| value(&format!("imagesvc_{name}")) == 0.0)
            };
            servers.app.wait_for(all_are_zero).await;
        });
    };
    // Each ending twice, all at the same time.
    run_concurrently(&[ENDINGS, ENDINGS].concat());
    let random_endings = proptest::collection::vec(proptest::sample::select(&ENDINGS[..]), 1..24);
    // Failures depend on timing, so it would be useless to store their inputs and to replay them.
    let config = Config { cases: 12, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&random_endings, |endings| {
        run_concurrently(&endings);
        Ok(())
    });
    result.unwrap();
}
