//! The Base64 route, called as clients call it.

use ::base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{Answer, FakeNvidia, ROCKET, TestApp, assert_problem};

const ROUTE: &str = "/vectorize-image-base64";

async fn post(app: &TestApp, body: impl Into<Vec<u8>>) -> Answer {
    // the Content-Type that `curl -d` sends
    app.post(ROUTE, "application/x-www-form-urlencoded", body).await
}

#[tokio::test]
async fn the_python_services_example_works_with_wrapped_lines_and_without_a_content_type() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let text = BASE64_STANDARD.encode(ROCKET);
    let lines: Vec<_> =
        text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    for line_break in ["\n", "\r\n"] {
        let wrapped = lines.join(line_break);
        let body = format!(
            "{{\n        \"image_base64\": \"{wrapped}\",\n        \"filename\": \"image.png\"\n      }}"
        );
        let answer = post(&app, body).await;
        answer.vector();
        assert_eq!(answer.json()["original_filename"], "image.png");
        assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    }
}

#[tokio::test]
async fn bodies_are_accepted_as_mobile_clients_write_them() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let text = BASE64_STANDARD.encode(ROCKET);
    for body in [
        // Android's org.json, with the line breaks of Base64.DEFAULT
        json!({ "image_base64": format!("{text}\n") }).to_string().replace('/', "\\/"),
        // Gson
        format!(r#"{{"image_base64":"{}","filename":null}}"#, text.replace('=', "\\u003d")),
        // a browser's FileReader
        format!(r#"{{"image_base64":"data:image/jpeg;base64,{text}","more":{{"a":[1]}}}}"#),
        // URL-safe, without padding
        format!(
            r#"{{"image_base64":"{}"}}"#,
            text.replace('+', "-").replace('/', "_").trim_end_matches('=')
        ),
        // written by hand or by a template
        format!(r#"{{"image_base64":" data:image/jpeg;base64, {text}== "}}"#),
        // with a byte order mark
        format!("\u{feff}{{\"image_base64\":\"{text}\"}}"),
    ] {
        let answer = post(&app, body).await;
        answer.vector();
        assert!(answer.json().get("original_filename").is_none());
        assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    }
}

#[tokio::test]
async fn text_that_is_not_base64_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (text, word) in [
        ("", "empty"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64", "comma"),
        ("AAAA BBBB", "space"),
        ("https://example.com/a.jpg", "not Base64"),
        ("AAAAA", "cut short"),
        ("AAAA====AAAA", "padding"),
        (" = ", "empty"),
    ] {
        let answer = post(&app, json!({ "image_base64": text }).to_string()).await;
        let problem = assert_problem(&answer, 400, "invalid_base64");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
    }
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn the_error_for_a_malformed_body_reports_the_field() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (body, place, kind) in [
        ("{}", "image_base64", "missing"),
        (r#"{"image_base64": null}"#, "image_base64", "missing"),
        (r#"{"image_base64": 7}"#, "image_base64", "string_type"),
        (r#"{"image_base64": ["AAAA"]}"#, "image_base64", "string_type"),
        (r#"{"image_base64": "AAAA", "filename": 7}"#, "filename", "string_type"),
        (r#"{"image_base64": "AAAA", "filename": "\ud800"}"#, "filename", "string_type"),
        (r#"{"image_base64": "AAAA""#, "", "json_invalid"),
        (r#"{"image_base64": "AAAA", "image_base64": "AAAA"}"#, "", "json_invalid"),
        ("", "", "model_attributes_type"),
        (r#"["AAAA"]"#, "", "model_attributes_type"),
        ("image_base64=AAAA", "", "model_attributes_type"),
    ] {
        let problem = assert_problem(&post(&app, body).await, 422, "validation_failed");
        let error = &problem["errors"][0];
        assert_eq!(error["type"], kind, "{problem}");
        assert_eq!(error["loc"][0], "body");
        if !place.is_empty() {
            assert_eq!(error["loc"][1], place);
            assert!(problem["detail"].as_str().unwrap().contains(place));
        }
    }
}
