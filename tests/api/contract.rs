//! The OpenAPI document matches the service: a snapshot holds its whole text, and each route
//! answers exactly the errors that the document names there.

use std::{collections::BTreeSet, time::Duration};

use imagesvc::web::error::Code;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Config, FakeNvidia, FakeServer, ROCKET, Reply, TestApp, assert_problem, avif, base64_body,
    embedding, post_head,
};

const SNAPSHOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openapi.json");

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
    let mut kept = std::fs::read_to_string(SNAPSHOT).unwrap();
    if cfg!(not(feature = "heic")) {
        kept = kept.replace("BMP, TIFF or HEIC", "BMP or TIFF");
    }
    let change = kept.lines().zip(served.lines()).find(|(kept, served)| kept != served);
    assert!(
        kept == served,
        "the contract changed, first at {change:?}; if it was meant to: UPDATE_SNAPSHOT=1 cargo test --test api contract"
    );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Url,
    Base64,
    Upload,
}

impl Route {
    const ALL: [Self; 3] = [Self::Url, Self::Base64, Self::Upload];

    fn path(self) -> &'static str {
        match self {
            Self::Url => "/vectorize-image",
            Self::Base64 => "/vectorize-image-base64",
            Self::Upload => "/vectorize-image-upload",
        }
    }
}

/// The statuses and codes of the errors that the document names on a route.
fn documented(document: &Value, route: Route) -> BTreeSet<(u16, String)> {
    let responses = document["paths"][route.path()]["post"]["responses"].as_object().unwrap();
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

/// How a test provokes an error: the settings, NVIDIA's reply, and the request.
struct Scenario {
    settings: Vec<(&'static str, &'static str)>,
    change: fn(&mut Config),
    nvidia: Reply,
    send: Stimulus,
}

/// What a test sends to provoke an error.
enum Stimulus {
    Picture(Vec<u8>),
    /// A picture with an additional header.
    With(&'static str, &'static str),
    /// The same picture, this many times at once.
    Many(usize),
    /// A body that no route accepts.
    Malformed,
    /// A body that stops halfway.
    HalfBody,
    /// A picture, while the service is told to stop.
    Stopping,
    /// A picture, after the service's folder has been moved away.
    FolderGone,
    /// This URL, on the URL route.
    Url(&'static str),
    /// A text that is not Base64, on the Base64 route.
    BadBase64,
}

fn scenario(code: Code) -> Scenario {
    let picture = || Stimulus::Picture(ROCKET.to_vec());
    let plain = |nvidia, send| Scenario { settings: vec![], change: |_| {}, nvidia, send };
    let well = |send| plain(embedding(), send);
    let answered = |status| plain(Reply::status(status), picture());
    let set = |setting, nvidia, send| Scenario { settings: vec![setting], ..plain(nvidia, send) };
    match code {
        Code::ValidationFailed => well(Stimulus::Malformed),
        Code::InvalidUrl => well(Stimulus::Url("ftp://example.com/photo.jpg")),
        Code::UrlNotAllowed => well(Stimulus::Url("http://169.254.169.254/latest/meta-data/")),
        Code::DownloadFailed => well(Stimulus::Url("http://no-such-host.invalid/photo.jpg")),
        Code::DownloadTimeout => {
            set(("IMAGESVC_FETCH_TIMEOUT", "100ms"), embedding(), Stimulus::Url("{hanging}"))
        }
        Code::InvalidBase64 => well(Stimulus::BadBase64),
        Code::EmptyImage => well(Stimulus::Picture(Vec::new())),
        Code::UnsupportedImage => well(Stimulus::Picture(avif())),
        Code::ImageTooLarge => set(("IMAGESVC_MAX_IMAGE_BYTES", "1000"), embedding(), picture()),
        Code::InvalidHost => well(Stimulus::With("host", "not a host")),
        Code::UnsupportedContentEncoding => well(Stimulus::With("content-encoding", "gzip")),
        Code::UnsupportedTransferEncoding => {
            well(Stimulus::With("transfer-encoding", "gzip, chunked"))
        }
        Code::Unauthorized => set(("IMAGESVC_API_KEYS", "key"), embedding(), picture()),
        Code::CrossOrigin => well(Stimulus::With("origin", "https://evil.example")),
        Code::RateLimited => {
            set(("IMAGESVC_RATE_LIMIT_PER_MINUTE", "1"), embedding(), Stimulus::Many(2))
        }
        Code::Overloaded => Scenario {
            settings: vec![("IMAGESVC_MAX_IN_FLIGHT", "1"), ("IMAGESVC_REQUEST_TIMEOUT", "1s")],
            ..plain(Reply::Hang, Stimulus::Many(9))
        },
        Code::ShuttingDown => Scenario {
            change: |config| config.server.drain_timeout = Duration::from_millis(50),
            ..plain(Reply::Hang, Stimulus::Stopping)
        },
        Code::RequestTimeout => {
            set(("IMAGESVC_BODY_TIMEOUT", "100ms"), embedding(), Stimulus::HalfBody)
        }
        Code::EmbeddingRejected => answered(422),
        Code::EmbeddingUnauthorized => answered(401),
        Code::EmbeddingExhausted => answered(402),
        Code::EmbeddingRateLimited => answered(429),
        Code::EmbeddingUnavailable => answered(503),
        Code::EmbeddingTimeout => {
            set(("IMAGESVC_REQUEST_TIMEOUT", "200ms"), Reply::Hang, picture())
        }
        Code::EmbeddingInvalid => plain(Reply::json(200, "{}"), picture()),
        Code::StorageFull => {
            set(("IMAGESVC_MIN_FREE_BYTES", "900000000GiB"), embedding(), picture())
        }
        Code::StorageFailed => well(Stimulus::FolderGone),
        // The routes of pictures cannot answer these: they belong to other paths and methods.
        Code::NotFound | Code::MethodNotAllowed | Code::Internal => well(picture()),
    }
}

/// A request that sends a picture in the way that the route expects.
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
    }
}

/// Provokes an error on a route. Returns the status and code of the answer, or `None` if it is a
/// success.
async fn provoke(route: Route, code: Code) -> Option<(u16, String)> {
    let Scenario { settings, change, nvidia, send } = scenario(code);
    let bytes = match &send {
        Stimulus::Picture(bytes) => bytes.clone(),
        _ => ROCKET.to_vec(),
    };
    let served = bytes.clone();
    let picture_server = FakeServer::start(move |request, _| match request.target.as_str() {
        "/hangs" => Reply::Hang,
        _ => Reply::new(200, &[], &served),
    })
    .await;
    let nvidia = FakeNvidia::replying(vec![nvidia]).await;
    let app = TestApp::builder(&nvidia)
        .may_fetch_from(&picture_server)
        .settings(&settings)
        .configure(change)
        .start()
        .await;
    let sent = || request(&app, route, &bytes, &picture_server);
    let post = |body: String| app.client.post(app.url(route.path())).body(body);
    let answer = match send {
        Stimulus::Picture(_) => app.send(sent()).await,
        Stimulus::With(name, value) => app.send(sent().header(name, value)).await,
        Stimulus::Many(number) => {
            let mut answers: futures_util::stream::FuturesUnordered<_> =
                (0..number).map(|_| app.send(sent())).collect();
            loop {
                // The others may wait for NVIDIA for ever.
                let answer = futures_util::StreamExt::next(&mut answers).await?;
                if answer.status != 200 {
                    break answer;
                }
            }
        }
        Stimulus::Malformed => app.send(post("nonsense".into())).await,
        Stimulus::HalfBody => {
            let mut stream = TcpStream::connect(app.address).await.unwrap();
            stream.write_all(&post_head(route.path(), 1000, "")).await.unwrap();
            stream.write_all(b"--x\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let problem: Value = serde_json::from_str(body).unwrap();
            return Some((status, problem["code"].as_str().unwrap().to_owned()));
        }
        Stimulus::Stopping => {
            let sent = tokio::spawn(sent().send());
            nvidia.wait_for(1).await;
            app.stop().await;
            let response = sent.await.unwrap().unwrap();
            let status = response.status().as_u16();
            let problem: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
            return Some((status, problem["code"].as_str().unwrap().to_owned()));
        }
        Stimulus::FolderGone => {
            let incoming = app.folder().join(".incoming");
            std::fs::rename(&incoming, app.folder().join("gone")).unwrap();
            app.send(sent()).await
        }
        Stimulus::Url(address) if route == Route::Url => {
            let address = address.replace("{hanging}", &picture_server.url("/hangs"));
            app.send(post(json!({ "image_url": address }).to_string())).await
        }
        Stimulus::BadBase64 if route == Route::Base64 => {
            app.send(post(json!({ "image_base64": "***" }).to_string())).await
        }
        Stimulus::Url(_) | Stimulus::BadBase64 => app.send(sent()).await,
    };
    if answer.status == 200 {
        return None;
    }
    let code = answer.json()["code"].as_str().unwrap().to_owned();
    assert_problem(&answer, answer.status, &code);
    Some((answer.status, code))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_returns_exactly_the_errors_that_the_document_lists_for_it() {
    let document = document().await;
    for route in Route::ALL {
        let documented = documented(&document, route);
        let mut provoked = BTreeSet::new();
        for code in Code::ALL {
            provoked.extend(provoke(route, *code).await);
        }
        // A bug cannot be provoked from outside; src/web.rs tests how a panic is answered.
        provoked.insert((500, "internal".to_owned()));
        assert_eq!(provoked, documented, "{route:?}");
    }
}

#[tokio::test]
async fn required_strings_have_a_minimum_length_and_the_vector_has_no_example() {
    let schemas = document().await["components"]["schemas"].take();
    for (schema, field) in [("ImageUrl", "image_url"), ("ImageBase64", "image_base64")] {
        assert_eq!(schemas[schema]["properties"][field]["minLength"], 1, "{field}");
    }
    let vector = &schemas["Answer"]["properties"]["vector"];
    assert_eq!((&vector["minItems"], &vector["maxItems"]), (&json!(1536), &json!(1536)));
    assert!(vector.get("example").is_none(), "a valid example would need 1536 numbers: {vector}");
}

#[tokio::test]
async fn the_document_describes_the_headers_and_the_client_key() {
    let document = document().await;
    let upload = &document["paths"]["/vectorize-image-upload"]["post"];
    let parameters: BTreeSet<_> = upload["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap())
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
            ["429", "502", "503"].contains(&status.as_str())
        );
    }
    assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
    assert_eq!(upload["security"], json!([{}, { "key": [] }]));
    for open in ["/health", "/ready"] {
        assert_eq!(document["paths"][open]["get"]["security"], json!([]), "documented as open");
    }
    assert!(document["paths"]["/metrics"]["get"]["security"].is_array());
}
