//! Hostile file names and request ids reach no path, no header and no log line.

use ::base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::support::{FORM_CONTENT_TYPE, FakeNvidia, ROCKET, ServiceProcess, nvidia_api::KEY};

#[tokio::test(flavor = "multi_thread")]
async fn hostile_file_names_and_request_ids_reach_no_path_header_or_log_line() {
    let nvidia = FakeNvidia::healthy().await;
    let folder = tempfile::tempdir().unwrap();
    let service = ServiceProcess::start_with(&nvidia, folder.path(), &[("IMAGESVC_LOG", "trace")]);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let base64 = BASE64_STANDARD.encode(ROCKET);
    // The test searches for `planted`, so each name contains this word.
    let names = [
        "../../etc/planted".to_owned(),
        "/etc/planted".into(),
        "..\\..\\planted.jpg".into(),
        "C:\\planted.jpg".into(),
        "planted\0.jpg".into(),
        "planted\r\nx-planted: 1\r\n\r\n.jpg".into(),
        "planted\u{1b}[31m\u{7}.jpg".into(),
        "planted\u{202e}gpj.exe".into(),
        "planted 🚀 \u{feff}.jpg".into(),
        format!("planted{}", "a".repeat(4000)),
    ];
    for name in &names {
        let body = json!({ "image_base64": base64, "filename": name }).to_string();
        let answer =
            client.post(service.url("/vectorize-image-base64")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!format!("{:?}", answer.headers()).contains("planted"));
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        // The answer may contain the name, but shortened to 255 characters and without control
        // characters. U+202E, which reverses the text after it, must be missing, too. The first
        // two characters of each name are harmless, so they must stay.
        let returned = answer["original_filename"].as_str().unwrap();
        assert!(returned.starts_with(&name[..2]) && returned.chars().count() <= 255);
        assert!(!returned.chars().any(|c| c.is_control() || c == '\u{202e}'), "{returned:?}");

        // The same name in the header of a form's part, without the characters that would end or
        // change the name.
        let form_name: String =
            name.chars().filter(|c| !matches!(c, '\0' | '\r' | '\n' | '"' | '\\')).collect();
        let head = format!(
            "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{form_name}\"\r\n\r\n"
        );
        let body = [head.as_bytes(), ROCKET, b"\r\n--x--\r\n"].concat();
        let request = client.post(service.url("/vectorize-image-upload")).body(body);
        let request = request.header("content-type", FORM_CONTENT_TYPE);
        let answer = request.send().await.unwrap();
        // The service may refuse such a form, but must not fail.
        assert!([200, 422].contains(&answer.status().as_u16()), "{form_name:?}");
    }
    // The last id is too long: an id has at most 64 characters.
    for id in ["planted\tid", "planted id", "planted\"id", "planted<id>", &"planted".repeat(10)] {
        let answer =
            client.get(service.url("/health")).header("x-request-id", id).send().await.unwrap();
        assert!(!format!("{:?}", answer.headers()).contains("planted"), "{id:?}");
    }

    let files = std::fs::read_dir(folder.path().join("downloads")).unwrap();
    let files: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!files.is_empty());
    // The name of a saved picture is a UUID of 36 characters and `.jpg`, together 40 characters.
    let is_hidden = |name: &str| name.starts_with('.');
    let is_picture = |name: &str| name.len() == 40 && name.ends_with(".jpg");
    assert!(files.iter().all(|name| is_hidden(name) || is_picture(name)), "{files:?}");
    for call in nvidia.received() {
        // The tests' key for NVIDIA also contains `planted`.
        let headers = format!("{:?}", call.headers).replace(KEY, "");
        assert!(!headers.contains("planted"), "{headers}");
    }
    let (_, log) = service.stop();
    assert!(log.len() > 20, "the log should have the many lines of the trace level");
    for line in log {
        assert!(serde_json::from_str::<Value>(&line).is_ok(), "{line}");
        assert!(!line.contains("planted"), "{line}");
    }
}
