//! The OpenAPI document matches a snapshot. The routes for pictures and models return exactly the errors
//! that the document lists for them.

use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use imagesvc::web::error::Code;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    FakeBucket, FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem, avif, base64_body,
    embedding, post_head,
};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openapi.json");

/// The OpenAPI document of a service.
async fn document() -> Value {
    let nvidia = FakeNvidia::healthy().await;
    TestApp::start(&nvidia).await.get("/openapi.json").await.json()
}

#[tokio::test]
async fn every_change_of_the_contract_is_a_change_of_the_snapshot() {
    let served = serde_json::to_string_pretty(&document().await).unwrap() + "\n";
    if std::env::var_os("UPDATE_SNAPSHOT").is_some() {
        std::fs::write(SNAPSHOT, &served).unwrap();
    }
    let mut snapshot = std::fs::read_to_string(SNAPSHOT).unwrap();
    // The snapshot is that of a service with all formats.
    if cfg!(not(feature = "heic")) {
        snapshot = snapshot.replace("BMP, TIFF or HEIC", "BMP or TIFF");
    }
    let change = snapshot.lines().zip(served.lines()).find(|(before, after)| before != after);
    assert!(
        snapshot == served,
        "the contract changed, first at {change:?}; to accept the change, run \
         UPDATE_SNAPSHOT=1 cargo test --test api -- every_change_of_the_contract"
    );
}

/// A route that takes pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Url,
    Base64,
    Upload,
    Batch,
}

impl Route {
    const ALL: [Self; 4] = [Self::Url, Self::Base64, Self::Upload, Self::Batch];

    fn path(self) -> &'static str {
        match self {
            Self::Url => "/vectorize-image",
            Self::Base64 => "/vectorize-image-base64",
            Self::Upload => "/vectorize-image-upload",
            Self::Batch => "/v1/embeddings",
        }
    }
}

/// The statuses and codes of the errors that the OpenAPI document lists for an operation.
fn documented_errors(operation: &Value) -> BTreeSet<(u16, String)> {
    let responses = operation["responses"].as_object().unwrap();
    let errors = responses.iter().filter(|(status, _)| *status != "200");
    errors
        .flat_map(|(status, response)| {
            assert!(response["content"]["application/problem+json"].is_object(), "{status}");
            let codes = response["description"].as_str().unwrap().split(", ");
            let codes: Vec<_> = codes.map(|code| code.trim_matches('`').to_owned()).collect();
            codes.into_iter().map(|code| (status.parse().unwrap(), code))
        })
        .collect()
}

/// How a test provokes an error: the service's settings, NVIDIA's reply to every call, and the request.
struct Scenario {
    settings: Vec<(&'static str, &'static str)>,
    nvidia_reply: Reply,
    stimulus: Stimulus,
}

/// What a test sends to provoke an error. If a stimulus does not apply to a route, the test sends a
/// picture instead.
enum Stimulus {
    Picture(Vec<u8>),
    /// A picture in a request with this header.
    WithHeader(&'static str, &'static str),
    /// The same picture in this many concurrent requests, so that the service refuses at least one.
    Concurrent(usize),
    /// A body that no route accepts.
    Malformed,
    /// A body of which only the first bytes arrive.
    UnfinishedBody,
    /// A picture. The service is stopped while the picture waits for NVIDIA.
    ThenStop,
    /// A picture, sent after the folder for incoming files was renamed.
    FolderGone,
    /// A picture, sent after the bucket has begun to fail.
    BucketFails,
    /// This URL, for the routes that take URLs. `{hanging}` stands for the URL of a host that never
    /// replies.
    Url(&'static str),
    /// A text that is not Base64, for the routes that take Base64.
    InvalidBase64,
    /// A body with this additional field, for the route for batches.
    BatchField(&'static str, Value),
}

/// The scenario that provokes this error.
fn scenario(code: Code) -> Scenario {
    let picture = || Stimulus::Picture(ROCKET.to_vec());
    let replying = |nvidia_reply, stimulus| Scenario { settings: vec![], nvidia_reply, stimulus };
    let healthy = |stimulus| replying(embedding(), stimulus);
    let nvidia_status = |status| replying(Reply::status(status), picture());
    let with_setting = |setting, nvidia_reply, stimulus| Scenario {
        settings: vec![setting],
        ..replying(nvidia_reply, stimulus)
    };
    match code {
        Code::ValidationFailed => healthy(Stimulus::Malformed),
        Code::InvalidUrl => healthy(Stimulus::Url("ftp://example.com/photo.jpg")),
        Code::UrlNotAllowed => healthy(Stimulus::Url("http://169.254.169.254/latest/meta-data/")),
        Code::DownloadFailed => healthy(Stimulus::Url("http://no-such-host.invalid/photo.jpg")),
        Code::DownloadTimeout => with_setting(
            ("IMAGESVC_FETCH_TIMEOUT", "100ms"),
            embedding(),
            Stimulus::Url("{hanging}"),
        ),
        Code::InvalidBase64 => healthy(Stimulus::InvalidBase64),
        Code::EmptyImage => healthy(Stimulus::Picture(Vec::new())),
        Code::UnsupportedImage => healthy(Stimulus::Picture(avif())),
        Code::ImageTooLarge => {
            with_setting(("IMAGESVC_MAX_IMAGE_BYTES", "1000"), embedding(), picture())
        }
        Code::InvalidHost => healthy(Stimulus::WithHeader("host", "not a host")),
        Code::UnsupportedContentEncoding => {
            healthy(Stimulus::WithHeader("content-encoding", "gzip"))
        }
        Code::UnsupportedTransferEncoding => {
            healthy(Stimulus::WithHeader("transfer-encoding", "gzip, chunked"))
        }
        Code::Unauthorized => with_setting(("IMAGESVC_API_KEYS", "key"), embedding(), picture()),
        Code::CrossOrigin => healthy(Stimulus::WithHeader("origin", "https://evil.example")),
        Code::RateLimited => with_setting(
            ("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1"),
            embedding(),
            Stimulus::Concurrent(2),
        ),
        // NVIDIA never replies, so one request keeps the only permit. The other request waits for
        // half of the request timeout, and is then refused.
        Code::Overloaded => Scenario {
            settings: vec![("IMAGESVC_MAX_IN_FLIGHT", "1"), ("IMAGESVC_REQUEST_TIMEOUT", "1s")],
            ..replying(Reply::Hang, Stimulus::Concurrent(2))
        },
        Code::ShuttingDown => {
            with_setting(("IMAGESVC_DRAIN_TIMEOUT", "50ms"), Reply::Hang, Stimulus::ThenStop)
        }
        Code::RequestTimeout => {
            with_setting(("IMAGESVC_BODY_TIMEOUT", "100ms"), embedding(), Stimulus::UnfinishedBody)
        }
        Code::EmbeddingRejected => nvidia_status(422),
        Code::EmbeddingUnauthorized => nvidia_status(401),
        Code::EmbeddingExhausted => nvidia_status(402),
        Code::EmbeddingRateLimited => nvidia_status(429),
        Code::EmbeddingUnavailable => nvidia_status(503),
        Code::EmbeddingTimeout => {
            with_setting(("IMAGESVC_REQUEST_TIMEOUT", "200ms"), Reply::Hang, picture())
        }
        Code::EmbeddingInvalid => replying(Reply::json(200, "{}"), picture()),
        // No disk has 900,000,000 GiB free.
        Code::StorageFull => {
            with_setting(("IMAGESVC_MIN_FREE_BYTES", "900000000GiB"), embedding(), picture())
        }
        Code::StorageFailed => healthy(Stimulus::FolderGone),
        Code::StorageUnavailable => healthy(Stimulus::BucketFails),
        Code::UnsupportedParameter => healthy(Stimulus::BatchField("dimensions", json!(512))),
        Code::ModelNotFound => healthy(Stimulus::BatchField("model", json!("gpt-4"))),
        // A POST to a picture route never causes the first two of these errors, and only a bug
        // causes the third. So the scenario is a request that succeeds.
        Code::NotFound | Code::MethodNotAllowed | Code::Internal => healthy(picture()),
    }
}

/// A request that sends a picture to a route. The URL route gets the URL of `picture_server`, which
/// must serve the same picture.
fn request(
    app: &TestApp,
    route: Route,
    picture: &[u8],
    picture_server: &FakeServer,
) -> RequestBuilder {
    let post = app.client.post(app.url(route.path()));
    match route {
        Route::Url => post.body(json!({ "image_url": picture_server.url("/photo") }).to_string()),
        Route::Base64 => post.body(base64_body(picture)),
        Route::Upload => app.upload_request(picture, "photo.jpg"),
        Route::Batch => {
            let picture = format!("data:image/jpeg;base64,{}", BASE64_STANDARD.encode(picture));
            post.body(json!({ "input": [picture] }).to_string())
        }
    }
}

/// Runs the scenario for an error on a route. Returns the status and code of the answer, or `None` for a
/// success. Does not check that the returned code is `code`: the caller compares all errors together.
async fn provoke(route: Route, code: Code) -> Option<(u16, String)> {
    let Scenario { settings, nvidia_reply, stimulus } = scenario(code);
    let picture = match &stimulus {
        Stimulus::Picture(picture) => picture.clone(),
        _ => ROCKET.to_vec(),
    };
    let fetched_picture = picture.clone();
    let picture_server = FakeServer::start(move |request, _| match request.target.as_str() {
        "/hangs" => Reply::Hang,
        _ => Reply::new(200, &[], &fetched_picture),
    })
    .await;
    let nvidia = FakeNvidia::replying(vec![nvidia_reply]).await;
    let builder = TestApp::builder(&nvidia).may_fetch_from(&picture_server).settings(&settings);
    let bucket = FakeBucket::start().await;
    let app = match stimulus {
        Stimulus::BucketFails => builder.bucket(&bucket).start().await,
        _ => builder.start().await,
    };
    let picture_request = || request(&app, route, &picture, &picture_server);
    let post = |body: String| app.client.post(app.url(route.path())).body(body);
    let answer = match stimulus {
        Stimulus::Picture(_) => app.send(picture_request()).await,
        Stimulus::WithHeader(name, value) => app.send(picture_request().header(name, value)).await,
        Stimulus::Concurrent(count) => {
            let mut answers: futures_util::stream::FuturesUnordered<_> =
                (0..count).map(|_| app.send(picture_request())).collect();
            // Takes the first error: with `Reply::Hang`, the other request later fails with another
            // error. If all requests succeed, `?` returns `None`.
            loop {
                let answer = futures_util::StreamExt::next(&mut answers).await?;
                if answer.status != 200 {
                    break answer;
                }
            }
        }
        Stimulus::Malformed => app.send(post("nonsense".into())).await,
        Stimulus::UnfinishedBody => {
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            stream.write_all(&post_head(route.path(), 1000, "")).await.unwrap();
            // The beginning of a form. The rest of the 1000 bytes never arrives.
            stream.write_all(b"--x\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let problem: Value = serde_json::from_str(body).unwrap();
            return Some((status, problem["code"].as_str().unwrap().to_owned()));
        }
        Stimulus::ThenStop => {
            let running_request = tokio::spawn(picture_request().send());
            nvidia.wait_for(1).await;
            app.stop().await;
            let response = running_request.await.unwrap().unwrap();
            let status = response.status().as_u16();
            let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            return Some((status, problem["code"].as_str().unwrap().to_owned()));
        }
        Stimulus::FolderGone => {
            let incoming = app.folder().join(".incoming");
            std::fs::rename(&incoming, app.folder().join("gone")).unwrap();
            app.send(picture_request()).await
        }
        Stimulus::BucketFails => {
            bucket.fail(|_| Some(FakeBucket::error(403, "AccessDenied")));
            app.send(picture_request()).await
        }
        Stimulus::Url(url) if matches!(route, Route::Url | Route::Batch) => {
            let url = url.replace("{hanging}", &picture_server.url("/hangs"));
            let field = if route == Route::Url { "image_url" } else { "input" };
            app.send(post(json!({ field: url }).to_string())).await
        }
        Stimulus::InvalidBase64 if matches!(route, Route::Base64 | Route::Batch) => {
            let field = if route == Route::Base64 { "image_base64" } else { "input" };
            // Without `data:,`, the route for batches would return `validation_failed`.
            app.send(post(json!({ field: "data:,***" }).to_string())).await
        }
        Stimulus::BatchField(name, value) if route == Route::Batch => {
            // The picture is empty, but the additional field is refused first.
            app.send(post(json!({ "input": "data:,", name: value }).to_string())).await
        }
        Stimulus::Url(_) | Stimulus::InvalidBase64 | Stimulus::BatchField(..) => {
            app.send(picture_request()).await
        }
    };
    if answer.status == 200 {
        return None;
    }
    let provoked_code = answer.json()["code"].as_str().unwrap().to_owned();
    let problem = assert_problem(&answer, answer.status, &provoked_code);
    // Of the routes for pictures, only that for batches describes the error in OpenAI's form, too.
    let openai_code = (route == Route::Batch).then_some(provoked_code.as_str());
    assert_eq!(problem["error"]["code"].as_str(), openai_code, "{problem}");
    Some((answer.status, provoked_code))
}

#[tokio::test]
async fn the_openapi_document_lists_exactly_the_errors_of_the_model_routes() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "key").start().await;
    let document = document().await;
    for (template, path) in
        [("/v1/models", "/v1/models"), ("/v1/models/{id}", "/v1/models/openai/gpt-4")]
    {
        let get = || app.client.get(app.url(path));
        let mut provoked = BTreeSet::new();
        for request in [get(), get().bearer_auth("key")] {
            let answer = app.send(request).await;
            if answer.status != 200 {
                let code = answer.json()["code"].as_str().unwrap().to_owned();
                assert_problem(&answer, answer.status, &code);
                provoked.insert((answer.status, code));
            }
        }
        let operation = &document["paths"][template]["get"];
        assert_eq!(provoked, documented_errors(operation), "{template}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_document_lists_exactly_the_errors_of_each_picture_route() {
    let document = document().await;
    for route in Route::ALL {
        let documented = documented_errors(&document["paths"][route.path()]["post"]);
        let mut provoked = BTreeSet::new();
        for code in Code::ALL {
            provoked.extend(provoke(route, *code).await);
        }
        // Only a bug causes the error `internal`, so no scenario provokes it.
        provoked.insert((500, "internal".to_owned()));
        assert_eq!(provoked, documented, "{route:?}");
    }
}

#[tokio::test]
async fn the_openapi_document_requires_a_nonempty_picture_or_url_and_1536_numbers() {
    let schemas = document().await["components"]["schemas"].take();
    for (schema, field) in [("ImageUrl", "image_url"), ("ImageBase64", "image_base64")] {
        assert_eq!(schemas[schema]["properties"][field]["minLength"], 1, "{field}");
    }
    let vector = &schemas["Answer"]["properties"]["vector"];
    assert_eq!((&vector["minItems"], &vector["maxItems"]), (&json!(1536), &json!(1536)));
    assert!(
        vector.get("example").is_none(),
        "the vector should have no example, which would need 1536 numbers: {vector}"
    );
}

#[tokio::test]
async fn the_openapi_document_describes_parameters_headers_and_the_client_key() {
    let document = document().await;
    let upload = &document["paths"]["/vectorize-image-upload"]["post"];
    let parameters: BTreeSet<_> = upload["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| parameter["name"].as_str().unwrap())
        .collect();
    assert_eq!(parameters, BTreeSet::from(["save", "backend", "Cache-Control", "x-request-id"]));
    let responses = upload["responses"].as_object().unwrap();
    for (status, response) in responses {
        let headers = &response["headers"];
        assert!(headers["x-request-id"].is_object(), "{status}");
        assert_eq!(headers["x-cache"].is_object(), status == "200", "{status}");
        assert_eq!(headers["www-authenticate"].is_object(), status == "401", "{status}");
        assert_eq!(headers["accept-encoding"].is_object(), status == "415", "{status}");
        assert_eq!(
            headers["retry-after"].is_object(),
            ["429", "502", "503"].contains(&status.as_str()),
            "{status}"
        );
    }
    assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
    // The key is optional, because a service may be run without keys.
    assert_eq!(upload["security"], json!([{}, { "key": [] }]));
    assert_eq!(document["paths"]["/metrics"]["get"]["security"], upload["security"]);
    for path in ["/health", "/ready"] {
        assert_eq!(
            document["paths"][path]["get"]["security"],
            json!([]),
            "{path} should need no key"
        );
    }
}
