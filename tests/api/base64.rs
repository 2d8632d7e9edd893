//! The Base64 route: bodies as real clients write them, and the errors for invalid bodies.

use ::base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::support::{Answer, FakeNvidia, ROCKET, TestApp, assert_problem, wrapped_base64};

const ROUTE: &str = "/vectorize-image-base64";

/// Sends a body to the Base64 route with the content type of `curl -d`.
async fn post(app: &TestApp, body: impl Into<Vec<u8>>) -> Answer {
    app.post(ROUTE, "application/x-www-form-urlencoded", body).await
}

/// The Python service is the one that this service replaces.
#[tokio::test]
async fn the_example_of_the_python_service_works_with_wrapped_lines_and_the_content_type_of_curl() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for line_break in ["\n", "\r\n"] {
        let wrapped = wrapped_base64(ROCKET, line_break);
        let body = format!(
            "{{\n        \"image_base64\": \"{wrapped}\",\n        \"filename\": \"image.png\"\n      }}"
        );
        let answer = post(&app, body).await;
        answer.assert_success();
        assert_eq!(answer.json()["original_filename"], "image.png");
        assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    }
}

#[tokio::test]
async fn bodies_written_by_mobile_and_browser_clients_are_accepted() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let text = BASE64_STANDARD.encode(ROCKET);
    for body in [
        // Android's org.json escapes slashes, and Base64.DEFAULT appends a line break.
        json!({ "image_base64": format!("{text}\n") }).to_string().replace('/', "\\/"),
        // Gson escapes `=`.
        format!(r#"{{"image_base64":"{}","filename":null}}"#, text.replace('=', "\\u003d")),
        // A browser's FileReader makes a data URL. Unknown fields are ignored.
        format!(r#"{{"image_base64":"data:image/jpeg;base64,{text}","more":{{"a":[1]}}}}"#),
        // the URL-safe alphabet, without padding
        format!(
            r#"{{"image_base64":"{}"}}"#,
            text.replace('+', "-").replace('/', "_").trim_end_matches('=')
        ),
        // surplus padding, and spaces around the Base64, such as a client's string template may add
        format!(r#"{{"image_base64":" data:image/jpeg;base64, {text}== "}}"#),
        // a byte order mark
        format!("\u{feff}{{\"image_base64\":\"{text}\"}}"),
    ] {
        let answer = post(&app, body).await;
        answer.assert_success();
        assert!(answer.json().get("original_filename").is_none());
        assert_eq!(app.saved_bytes(&answer.saved_as()), ROCKET);
    }
}

#[tokio::test]
async fn an_empty_or_invalid_base64_text_is_refused() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    for (text, words) in [
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
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    assert!(app.saved().is_empty());
}

#[tokio::test]
async fn the_error_for_a_malformed_body_contains_an_error_type_and_the_field() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // `field` is empty if the error's location is the whole body.
    for (body, field, error_type) in [
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
        assert_eq!(error["type"], error_type, "{problem}");
        assert_eq!(error["loc"][0], "body");
        if !field.is_empty() {
            assert_eq!(error["loc"][1], field, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains(field), "{problem}");
        }
    }
}
