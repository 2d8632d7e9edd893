//! Random and mutated requests are answered, and never with a 500.

use ::base64::{Engine, prelude::BASE64_STANDARD};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::runtime::Runtime;

use crate::support::{Answer, FORM, FakeNvidia, TestApp};

/// A GIF of one pixel.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

/// Sends random inputs to one service, and checks each answer.
#[allow(clippy::needless_pass_by_value, reason = "closures read better that way")]
fn check<S: Strategy>(strategy: S, send: impl AsyncFn(&TestApp, S::Value) -> Answer) {
    let runtime = Runtime::new().unwrap();
    // No name resolves, so that random URLs cannot make the service connect anywhere.
    let (_nvidia, app) = runtime.block_on(async {
        let nvidia = FakeNvidia::healthy().await;
        let app = TestApp::builder(&nvidia)
            .lookup(|_| Err(std::io::ErrorKind::NotFound.into()))
            .start()
            .await;
        (nvidia, app)
    });
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&strategy, |input| {
        let answer = runtime.block_on(send(&app, input));
        prop_assert!(
            answer.status == 200 || (400..500).contains(&answer.status) || answer.status == 502,
            "{}",
            answer.text()
        );
        if answer.status != 200 {
            prop_assert!(answer.json()["detail"].is_string());
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn good_bodies() -> [Vec<u8>; 3] {
    let text = BASE64_STANDARD.encode(PIXEL);
    [
        format!(r#"{{"image_base64": "{text}", "filename": "a.gif"}}"#).into_bytes(),
        br#"{"image_url": "https://example.com/photo.jpg?size=1"}"#.to_vec(),
        [
            &b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.gif\"\r\nContent-Type: image/gif\r\n\r\n"[..],
            PIXEL,
            b"\r\n--x\r\nContent-Disposition: form-data; name=\"more\"\r\n\r\n1\r\n--x--\r\n",
        ]
        .concat(),
    ]
}

const ROUTES: [(&str, &str); 3] = [
    ("/vectorize-image-base64", "application/json"),
    ("/vectorize-image", "application/json"),
    ("/vectorize-image-upload", FORM),
];

#[test]
fn random_bytes_are_answered() {
    check(
        (0..3usize, proptest::collection::vec(any::<u8>(), 0..300)),
        async |app, (route, body)| {
            let (path, content_type) = ROUTES[route];
            app.post(path, content_type, body).await
        },
    );
}

#[test]
fn mutations_of_good_requests_are_answered() {
    let mutation =
        (any::<prop::sample::Index>(), 0..4usize, proptest::collection::vec(any::<u8>(), 0..8));
    check(
        (0..3usize, proptest::collection::vec(mutation, 1..5)),
        async |app, (route, mutations)| {
            let mut body = good_bodies()[route].clone();
            for (at, removed, inserted) in mutations {
                let at = at.index(body.len() + 1);
                let end = (at + removed).min(body.len());
                body.splice(at..end, inserted);
            }
            let (path, content_type) = ROUTES[route];
            app.post(path, content_type, body).await
        },
    );
}

#[test]
fn any_text_as_a_url_or_a_file_name_is_answered() {
    check((any::<String>(), any::<String>()), async |app, (address, name)| {
        let answer = app.by_url(&address).await;
        if ![400, 403, 502].contains(&answer.status) {
            return answer;
        }
        let body =
            serde_json::json!({ "image_base64": BASE64_STANDARD.encode(PIXEL), "filename": name });
        app.post("/vectorize-image-base64", "application/json", body.to_string()).await
    });
}

#[test]
fn any_content_type_is_answered() {
    check(("[ -~]{0,40}", 0..3usize), async |app, (rest, route)| {
        let content_type = format!("multipart/form-data{rest}");
        app.post(ROUTES[route].0, &content_type, good_bodies()[2].clone()).await
    });
}

#[tokio::test]
async fn unusual_json_is_answered() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(9000), close.repeat(9000));
    for body in [
        format!(r#"{{"image_url": {}}}"#, deep("[", "]")),
        format!(r#"{{"other": {}, "image_url": 1}}"#, deep("[", "]")),
        deep(r#"{"a":"#, "}"),
        format!(r#"{{"image_url": {}}}"#, "9".repeat(60_000)),
        r#"{"image_url": 1e999999999}"#.into(),
        r#"{"image_url": "a", "image_url": "b"}"#.into(),
        r#"{"image_url": "\ud800"}"#.into(),
        r#"{"image_url": "\udc00\ud800"}"#.into(),
        "\u{feff}{}".into(),
        "\u{feff}\u{feff}{}".into(),
        "null".into(),
        "{}{}".into(),
    ] {
        for path in ["/vectorize-image", "/vectorize-image-base64"] {
            let answer = app.post(path, "application/json", body.clone()).await;
            assert_eq!(answer.status, 422, "{body:.60}: {}", answer.text());
        }
    }
}
