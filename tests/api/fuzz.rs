//! The service answers random, mutated and unusual requests, and never with a 500.

use ::base64::{Engine, prelude::BASE64_STANDARD};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::runtime::Runtime;

use crate::support::{Answer, FORM_CONTENT_TYPE, FakeNvidia, TestApp};

/// A GIF of one pixel.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x01D\0;";

/// Sends random inputs to a service, and asserts that each is answered with a success, a client
/// error, or a 502 for a failed download.
#[allow(clippy::needless_pass_by_value, reason = "callers need no `&`")]
fn assert_answered<S: Strategy>(strategy: S, send: impl AsyncFn(&TestApp, S::Value) -> Answer) {
    let runtime = Runtime::new().unwrap();
    // The look-up of every host name fails, so that random URLs lead to no real host.
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
        // A failed test writes no file with its input.
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&strategy, |input| {
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
    result.unwrap_or_else(|error| panic!("{error}"));
}

/// The routes that take pictures, with their content types.
const ROUTES: [(&str, &str); 4] = [
    ("/vectorize-image-base64", "application/json"),
    ("/vectorize-image", "application/json"),
    ("/vectorize-image-upload", FORM_CONTENT_TYPE),
    ("/v1/embeddings", "application/json"),
];

/// A valid body for each of [`ROUTES`], in the same order.
fn valid_bodies() -> [Vec<u8>; 4] {
    let base64 = BASE64_STANDARD.encode(PIXEL);
    [
        format!(r#"{{"image_base64": "{base64}", "filename": "a.gif"}}"#).into_bytes(),
        br#"{"image_url": "https://example.com/photo.jpg?size=1"}"#.to_vec(),
        [
            &b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.gif\"\r\nContent-Type: image/gif\r\n\r\n"[..],
            PIXEL,
            b"\r\n--x\r\nContent-Disposition: form-data; name=\"more\"\r\n\r\n1\r\n--x--\r\n",
        ]
        .concat(),
        format!(r#"{{"input": ["{base64}", {{"image_url": {{"url": "data:,{base64}"}}}}], "encoding_format": "float"}}"#)
            .into_bytes(),
    ]
}

#[test]
fn random_bodies_get_no_500() {
    assert_answered(
        (0..ROUTES.len(), proptest::collection::vec(any::<u8>(), 0..300)),
        async |app, (route, body)| {
            let (path, content_type) = ROUTES[route];
            app.post(path, content_type, body).await
        },
    );
}

#[test]
fn mutations_of_valid_bodies_get_no_500() {
    let mutation =
        (any::<prop::sample::Index>(), 0..4usize, proptest::collection::vec(any::<u8>(), 0..8));
    assert_answered(
        (0..ROUTES.len(), proptest::collection::vec(mutation, 1..5)),
        async |app, (route, mutations)| {
            let mut body = valid_bodies()[route].clone();
            for (start, removed_len, inserted) in mutations {
                let start = start.index(body.len() + 1);
                let end = (start + removed_len).min(body.len());
                body.splice(start..end, inserted);
            }
            let (path, content_type) = ROUTES[route];
            app.post(path, content_type, body).await
        },
    );
}

#[test]
fn random_urls_and_file_names_get_no_500() {
    assert_answered((any::<String>(), any::<String>()), async |app, (url, name)| {
        let answer = app.by_url(&url).await;
        let is_usual_failure = [400, 403, 502].contains(&answer.status);
        if !is_usual_failure {
            return answer; // `assert_answered` checks it
        }
        let body =
            serde_json::json!({ "image_base64": BASE64_STANDARD.encode(PIXEL), "filename": name });
        app.post("/vectorize-image-base64", "application/json", body.to_string()).await
    });
}

#[test]
fn random_parameters_of_the_multipart_content_type_get_no_500() {
    let printable_ascii = "[ -~]{0,40}"; // a regular expression
    assert_answered((printable_ascii, 0..ROUTES.len()), async |app, (parameters, route)| {
        let content_type = format!("multipart/form-data{parameters}");
        let [_, _, form, _] = valid_bodies();
        app.post(ROUTES[route].0, &content_type, form).await
    });
}

#[tokio::test]
async fn unusual_json_is_refused_with_a_422() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // The depth could overflow the stack of a recursive parser.
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(9000), close.repeat(9000));
    // Each body is shorter than the 64 KiB that `/vectorize-image` accepts.
    for body in [
        format!(r#"{{"image_url": {}}}"#, nested("[", "]")),
        format!(r#"{{"other": {}, "image_url": 1}}"#, nested("[", "]")),
        nested(r#"{"a":"#, "}"),
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
        // `/vectorize-image-base64` and `/v1/embeddings` do not know `image_url`. They require another field.
        for path in ["/vectorize-image", "/vectorize-image-base64", "/v1/embeddings"] {
            let answer = app.post(path, "application/json", body.clone()).await;
            assert_eq!(answer.status, 422, "{body:.60}: {}", answer.text());
        }
    }
}
