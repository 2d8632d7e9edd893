//! Errors of batches: which item or field caused the error, and the effect on the other pictures.

use std::sync::atomic::{AtomicBool, Ordering};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

use crate::{
    batches::{assert_entries, batch_of},
    cache::embedding_filled_with,
    support::{
        Answer, FakeNvidia, FakeServer, HUBBLE, ROCKET, Reply, TestApp, assert_problem, avif,
        data_url, exchange, picture_number, tiny,
    },
};

const HTML: &[u8] = b"<!doctype html><title>A page</title>";

/// LangChain's option to send strings instead of tokens (numbers). The error for tokens contains it.
const TOKENS_REFUSED: &str = "check_embedding_ctx_length=False";

/// Asserts that an error has the format of RFC 9457 and also the shape of OpenAI. Returns the
/// error's sentence.
fn assert_openai_problem(answer: &Answer, status: u16, code: &str, param: Option<&str>) -> String {
    let problem = assert_problem(answer, status, code);
    let error = &problem["error"];
    assert_eq!(error["message"], problem["detail"]);
    assert_eq!(error["code"], code);
    assert_eq!(error["param"].as_str(), param, "{problem}");
    let kind = match status {
        401 => "authentication_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        _ => "server_error",
    };
    assert_eq!(error["type"], kind);
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_error_of_an_item_contains_the_index_of_the_item() {
    let web_page = FakeServer::serving(HTML).await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&web_page).start().await;
    let text_refused = "embeds pictures only";
    let not_a_picture = "input[1] is not a picture: send a string, {\"image\": \"…\"} or \
                         {\"image_url\": {\"url\": \"…\"}},";
    // Many words are valid Base64. So bare Base64 counts as text if its bytes have no known format.
    let unknown_format = BASE64_STANDARD.encode("a text, not a picture");
    let html = data_url(HTML);
    let pdf = BASE64_STANDARD.encode(b"%PDF-1.7 and so on");
    let avif = BASE64_STANDARD.encode(avif());
    // One part of a message's content, as chat clients send it.
    let part = json!({ "image_url": { "url": data_url(ROCKET) } });
    // Each item is sent behind a valid picture, so its index is 1.
    for (item, status, code, words) in [
        (json!("two words"), 422, "validation_failed", text_refused),
        (json!(""), 422, "validation_failed", text_refused),
        (json!("word"), 422, "validation_failed", text_refused),
        (json!(unknown_format), 422, "validation_failed", text_refused),
        // Without `//` after the colon, this counts as text, not as a URL.
        (json!("http:example.com/a.jpg"), 422, "validation_failed", text_refused),
        (json!("ftp://example.com/a.jpg"), 400, "invalid_url", "input[1]"),
        (json!("file:///etc/passwd"), 400, "invalid_url", "input[1]"),
        (json!({ "text": "words" }), 422, "validation_failed", text_refused),
        (json!({ "type": "text", "text": "words" }), 422, "validation_failed", text_refused),
        (json!({ "content": "words" }), 422, "validation_failed", text_refused),
        (json!({ "content": [part, { "text": "words" }] }), 422, "validation_failed", text_refused),
        (json!({ "content": [part], "text": "x" }), 422, "validation_failed", text_refused),
        (json!({ "image": data_url(ROCKET), "text": "x" }), 422, "validation_failed", text_refused),
        (json!({ "content": [part, part] }), 422, "validation_failed", "several pictures"),
        (json!({ "content": vec![&part; 101] }), 422, "validation_failed", "more than 100 parts"),
        (
            json!({ "content": [part, { "type": "input_audio" }] }),
            422,
            "validation_failed",
            not_a_picture,
        ),
        (json!({ "content": { "image": "x" } }), 422, "validation_failed", not_a_picture),
        (json!([["data:,QUJD"]]), 422, "validation_failed", not_a_picture),
        (json!({ "content": [] }), 422, "validation_failed", not_a_picture),
        (json!({ "image": 7 }), 422, "validation_failed", not_a_picture),
        (json!({ "image_url": { "href": "x" } }), 422, "validation_failed", not_a_picture),
        (json!({ "image": "x", "image_url": "x" }), 422, "validation_failed", not_a_picture),
        (json!({}), 422, "validation_failed", not_a_picture),
        (json!(null), 422, "validation_failed", not_a_picture),
        (json!(true), 422, "validation_failed", not_a_picture),
        (json!([1, 2]), 422, "validation_failed", TOKENS_REFUSED),
        (json!(7), 422, "validation_failed", TOKENS_REFUSED),
        (json!("data:image/png;base64,%%"), 400, "invalid_base64", "input[1] contains characters"),
        (json!("data:image/png;base64,"), 400, "invalid_base64", "input[1] is empty"),
        (json!("data:image/png;base64,QUJD"), 415, "unsupported_image", "input[1]"),
        (json!(avif), 415, "unsupported_image", "AVIF"),
        (json!(pdf), 415, "unsupported_image", "PDF"),
        (json!("https://user:pw@example.com/"), 400, "invalid_url", "input[1]"),
        (json!("http://169.254.169.254/x"), 403, "url_not_allowed", "input[1]"),
        (json!("http://no-such-host.invalid/x"), 502, "download_failed", "The host of input[1]"),
        (json!(html), 415, "unsupported_image", "web page"),
        (json!(format!("http://example.com/{}", "a".repeat(9000))), 400, "invalid_url", "8192"),
        (json!(web_page.url("/")), 415, "unsupported_image", "input[1] leads to a web page"),
    ] {
        let answer = app.batch(&json!({ "input": [data_url(ROCKET), item] })).await;
        let detail = assert_openai_problem(&answer, status, code, Some("input[1]"));
        assert!(detail.contains(words) && detail.contains("input[1]"), "{item}: {detail}");
    }
    assert_eq!(app.saved().len(), 0);
    // An item that is not in a list has no index.
    let without_list = app.batch(&json!({ "input": "two words" })).await;
    assert_openai_problem(&without_list, 422, "validation_failed", Some("input"));
}

#[tokio::test]
async fn an_error_of_the_whole_batch_contains_the_invalid_field() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let picture = data_url(ROCKET);
    let message = json!({ "role": "user", "content": [{ "image_url": picture }] });
    for (body, status, code, param, words) in [
        (json!({}), 422, "validation_failed", "input", "missing"),
        (json!({ "input": null }), 422, "validation_failed", "input", "missing"),
        (json!({ "input": [] }), 422, "validation_failed", "input", "empty"),
        (json!({ "input": [1, 2, 3] }), 422, "validation_failed", "input", TOKENS_REFUSED),
        (json!({ "input": [[1, 2], [3]] }), 422, "validation_failed", "input", TOKENS_REFUSED),
        (json!({ "input": vec![1; 5000] }), 422, "validation_failed", "input", TOKENS_REFUSED),
        (
            json!({ "input": vec![&picture; 33] }),
            422,
            "validation_failed",
            "input",
            "33 pictures, and one request may have 32",
        ),
        // `chunk_size` is LangChain's option for the number of pictures in one request.
        (json!({ "input": vec![&picture; 33] }), 422, "validation_failed", "input", "chunk_size"),
        (
            json!({ "input": picture, "messages": [message] }),
            422,
            "validation_failed",
            "messages",
            "not both",
        ),
        (
            json!({ "messages": [] }),
            422,
            "validation_failed",
            "messages",
            "messages must have one picture",
        ),
        (
            json!({ "messages": "x" }),
            422,
            "validation_failed",
            "messages",
            "messages must have one picture",
        ),
        (
            json!({ "messages": [{ "content": "words" }, message] }),
            422,
            "validation_failed",
            "messages",
            "without text",
        ),
        (
            json!({ "messages": [{ "image": picture, "content": message["content"] }] }),
            422,
            "validation_failed",
            "messages",
            "in the content of one message",
        ),
        (
            json!({ "messages": [message, message] }),
            422,
            "validation_failed",
            "messages",
            "several pictures",
        ),
        (
            json!({ "input": picture, "dimensions": 512 }),
            400,
            "unsupported_parameter",
            "dimensions",
            "1536",
        ),
        (
            json!({ "input": picture, "dimensions": "1536" }),
            422,
            "validation_failed",
            "dimensions",
            "number",
        ),
        (
            json!({ "input": picture, "encoding_format": "int8" }),
            400,
            "unsupported_parameter",
            "encoding_format",
            "base64",
        ),
        (
            json!({ "input": picture, "encoding_format": 1 }),
            422,
            "validation_failed",
            "encoding_format",
            "string",
        ),
        (
            json!({ "input": picture, "normalized": "yes" }),
            422,
            "validation_failed",
            "normalized",
            "true or false",
        ),
        (
            json!({ "input": picture, "modality": "text" }),
            422,
            "validation_failed",
            "modality",
            "pictures only",
        ),
        (
            json!({ "input": picture, "model": "text-embedding-3-small" }),
            404,
            "model_not_found",
            "model",
            "nvidia/nv-dinov2",
        ),
    ] {
        let answer = app.batch(&body).await;
        let detail = assert_openai_problem(&answer, status, code, Some(param));
        assert!(detail.contains(words), "{:.100}: {detail}", body.to_string());
    }
    assert_eq!(nvidia.count(), 0, "NVIDIA must receive no picture");
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_refused_and_the_error_lists_client_settings() {
    // A batch may use a quarter of the memory for bodies: here 4 of 16 MiB.
    const MAX_BODY_BYTES: usize = 4 << 20;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        // If larger pictures were allowed, a batch could use more, because one picture must fit.
        .setting("IMAGESVC_MAX_IMAGE_BYTES", "1MiB")
        .setting("IMAGESVC_MAX_BUFFERED_BYTES", "16MiB")
        .start()
        .await;
    let declared_length = MAX_BODY_BYTES + 1;
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {declared_length}\r\n\r\n"
    );
    let answer = exchange(app.address, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // The limit, the settings of three clients for the number of pictures in a batch, and the shape of
    // OpenAI's errors.
    for words in
        ["limit of 4 MiB", "chunk_size", "max_batch_size", "embed_batch_size", "\"error\":"]
    {
        assert!(answer.contains(words), "{words}: {answer}");
    }
}

#[tokio::test]
async fn a_failed_batch_saves_nothing_and_if_repeated_sends_only_pictures_that_are_not_cached() {
    // NVIDIA rejects picture 3 only once.
    let rejects_picture_3 = AtomicBool::new(true);
    let nvidia = FakeNvidia::scripted(move |request, _| match picture_number(request) {
        3 if rejects_picture_3.swap(false, Ordering::Relaxed) => Reply::status(422),
        number => embedding_filled_with(number),
    })
    .await;
    // With one call at a time, picture 4 is sent only after the outcome of picture 3.
    let app = TestApp::builder(&nvidia).setting("NVIDIA_MAX_CONCURRENCY", 1).start().await;
    let answer = app.batch(&batch_of(0..5)).await;
    let detail = assert_openai_problem(&answer, 422, "embedding_rejected", Some("input[3]"));
    assert!(detail.starts_with("input[3]: NVIDIA does not accept this picture"), "{detail}");
    let problem = answer.json();
    assert!(problem.get("saved_as").is_none() && problem.get("path").is_none());
    app.wait_for_saved_count(0).await;
    assert_eq!(nvidia.count(), 4, "picture 4 must not be sent after picture 3 failed");

    let cache_values: Vec<_> = assert_entries(&app.batch(&batch_of(0..5)).await)
        .iter()
        .map(|entry| entry["imagesvc"]["cache"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(cache_values, ["hit", "hit", "hit", "miss", "miss"]);
    assert_eq!(nvidia.count(), 4 + 2, "the repeated batch should send only pictures 3 and 4");
    assert_eq!(app.saved().len(), 5, "all pictures must be saved");
}

#[tokio::test]
async fn if_the_query_is_errors_item_each_item_has_its_own_outcome() {
    let nvidia = FakeNvidia::scripted(|request, _| match picture_number(request) {
        2 => Reply::status(422),
        number => embedding_filled_with(number),
    })
    .await;
    let app = TestApp::start(&nvidia).await;
    let picture = |number| json!(data_url(&tiny(number)));
    // The three items in the middle fail.
    let input = json!([picture(1), "some text", picture(2), "data:,%%", picture(4)]);
    let request = app.json_request("/v1/embeddings?errors=item", &json!({ "input": input }));
    let outcomes = assert_entries(&app.send(request).await);
    let objects: Vec<_> = outcomes.iter().map(|entry| &entry["object"]).collect();
    assert_eq!(objects, ["embedding", "error", "error", "error", "embedding"]);
    let codes: Vec<_> = outcomes[1..4].iter().map(|entry| &entry["error"]["code"]).collect();
    assert_eq!(codes, ["validation_failed", "embedding_rejected", "invalid_base64"]);
    for (index, entry) in outcomes.iter().enumerate().skip(1).take(3) {
        assert_eq!(entry["error"]["param"], format!("input[{index}]"));
        assert_eq!(entry["error"]["type"], "invalid_request_error");
        assert!(entry["error"]["message"].as_str().unwrap().contains(&format!("input[{index}]")));
    }
    // The picture that NVIDIA rejected stays saved, unlike in a batch that fails as a whole. Its entry
    // contains the file's name.
    let saved_as = outcomes[2]["saved_as"].as_str().unwrap();
    assert_eq!(app.saved_bytes(saved_as), tiny(2));
    assert_eq!(app.saved().len(), 3, "pictures 1, 2 and 4 should be saved");

    let no_pictures = json!({ "input": ["text", "more text"] });
    let request = app.json_request("/v1/embeddings?errors=item", &no_pictures);
    let outcomes = assert_entries(&app.send(request).await);
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.iter().all(|entry| entry["object"] == "error"), "{outcomes:?}");
}

#[tokio::test]
async fn errors_have_the_openai_shape_on_the_openai_paths_only() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).setting("IMAGESVC_API_KEYS", "key").start().await;
    let body = batch_of([1]);
    for path in ["/v1/embeddings", "/embeddings", "/v1/unknown", "/v1/embeddings/"] {
        let answer = app.send(app.json_request(path, &body)).await;
        let detail = assert_openai_problem(&answer, 401, "unauthorized", None);
        assert!(detail.contains("Authorization: Bearer"), "{detail}");
    }
    assert_openai_problem(&app.get("/v1/models").await, 401, "unauthorized", None);
    let unknown = app.json_request("/v1/unknown", &body).bearer_auth("key");
    assert_openai_problem(&app.send(unknown).await, 404, "not_found", None);
    let wrong_method = app.client.delete(app.url("/v1/embeddings")).bearer_auth("key");
    assert_openai_problem(&app.send(wrong_method).await, 405, "method_not_allowed", None);
    let on_other_path = app.send(app.base64_request(ROCKET)).await;
    assert!(assert_problem(&on_other_path, 401, "unauthorized").get("error").is_none());
}

#[tokio::test]
async fn x_should_retry_is_false_for_errors_that_only_the_operator_can_resolve() {
    // If a retry may help, the header is absent, which is an empty text here.
    for (nvidia_status, code, expected_header) in [
        (402, "embedding_exhausted", "false"),
        (401, "embedding_unauthorized", "false"),
        (503, "embedding_unavailable", ""),
    ] {
        let nvidia = FakeNvidia::replying(vec![Reply::status(nvidia_status)]).await;
        let app = TestApp::start(&nvidia).await;
        let answer = app.batch(&batch_of([1])).await;
        assert_eq!(answer.json()["code"], code);
        assert_eq!(answer.header("x-should-retry"), expected_header, "{code}");
        // The routes for one picture have this header, too.
        let answer = app.upload(ROCKET, "a.jpg").await;
        assert_eq!(answer.header("x-should-retry"), expected_header, "{code}");
    }
}

#[tokio::test]
async fn x_should_retry_is_false_only_if_a_download_would_fail_again() {
    let nvidia = FakeNvidia::healthy().await;
    for (reply, expected_header) in [
        (Reply::status(404), "false"),
        (Reply::status(403), "false"),
        (Reply::new(200, &[("content-encoding", "br")], "x"), "false"),
        (Reply::status(500), ""),
        (Reply::status(429), ""),
        (Reply::new(200, &[], ROCKET).broken_off(), ""),
        (Reply::CloseAfter(Vec::new()), ""),
    ] {
        let picture_server = FakeServer::start(move |_, _| reply.clone()).await;
        let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
        let url = picture_server.url("/a.jpg");
        let single = app.by_url(&url).await;
        let batch = app.batch(&json!({ "input": url })).await;
        for answer in [single, batch] {
            assert_eq!(answer.json()["code"], "download_failed");
            assert_eq!(answer.header("x-should-retry"), expected_header, "{}", answer.json());
        }
    }
}

#[tokio::test]
async fn the_error_of_a_picture_over_the_limits_contains_the_index_of_the_picture() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_MAX_IMAGE_BYTES", "100000")
        .setting("IMAGESVC_MAX_IMAGE_PIXELS", "1000")
        .start()
        .await;
    // The first has too many bytes. The second has 50,000 bytes, which are allowed, but too many pixels.
    for picture in [HUBBLE, &ROCKET[..50_000]] {
        let input = [data_url(&tiny(1)), data_url(picture)];
        let answer = app.batch(&json!({ "input": input })).await;
        assert_openai_problem(&answer, 413, "image_too_large", Some("input[1]"));
    }
    assert_eq!(nvidia.count(), 0, "NVIDIA must receive no picture");
}
