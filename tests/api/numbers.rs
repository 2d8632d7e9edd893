//! The vector in the answer has exactly the values that NVIDIA sent. An invalid vector is refused.

use crate::support::{FakeNvidia, ROCKET, Reply, TestApp, assert_problem, embedding_of, numbers};

#[tokio::test]
async fn every_number_has_the_value_that_nvidia_sent() {
    let mut numbers_sent = numbers();
    let unusual = [
        "0",
        "-0",
        "0.0",
        "-0.0",
        "1e-7",
        "-1.5E+2",
        "5e-324",
        "2.2250738585072014e-308",
        "1.7976931348623157e308",
        "0.1",
        "0.30000000000000004",
        "-0.012345678901234567",
        "3",
        "123456789012345678",
        "1E5",
        "4.9406564584124654e-324",
    ];
    for (index, number) in unusual.iter().enumerate() {
        numbers_sent[index] = (*number).to_owned();
    }
    // JSON allows white space around the comma.
    for separator in [",", ", ", " ,\n  "] {
        let reply = embedding_of(&format!("[ {} ]", numbers_sent.join(separator)));
        let nvidia = FakeNvidia::replying(vec![reply]).await;
        let app = TestApp::start(&nvidia).await;
        let vector = app.upload(ROCKET, "rocket.jpg").await.vector();
        for (received, sent) in vector.iter().zip(&numbers_sent) {
            let expected: f64 = sent.parse().unwrap();
            assert_eq!(received.to_bits(), expected.to_bits(), "{sent}");
        }
    }
}

#[tokio::test]
async fn a_response_needs_only_the_first_item_of_its_metadata() {
    let body =
        format!(r#"{{"metadata":[{{"embedding":[{}]}},{{"other":1}}]}}"#, numbers().join(","));
    let nvidia = FakeNvidia::replying(vec![Reply::json(200, body)]).await;
    TestApp::start(&nvidia).await.upload(ROCKET, "rocket.jpg").await.assert_success();
}

#[tokio::test]
async fn a_response_over_1_mib_or_without_exactly_1536_finite_numbers_is_refused() {
    // An embedding in which this item replaces one number.
    let with_item = |item: &str| {
        let mut items = numbers();
        items[700] = item.to_owned();
        embedding_of(&format!("[{}]", items.join(",")))
    };
    let replies = [
        // 1535 and 1537 numbers
        embedding_of(&format!("[{}]", numbers()[1..].join(","))),
        embedding_of(&format!("[{},0.5]", numbers().join(","))),
        with_item("NaN"),
        with_item("Infinity"),
        with_item("1e999"),
        with_item("null"),
        with_item("\"0.5\""),
        embedding_of("[]"),
        embedding_of("null"),
        Reply::json(200, r#"{"metadata":[]}"#),
        Reply::json(200, r#"{"metadata":null}"#),
        Reply::json(200, r#"{"metadata":[{"embedding":"#),
        Reply::json(200, "{}"),
        // If this text began with `<`, it would count as a web page, and the service would repeat the
        // call. `assert_problem` checks that no answer contains `upstream-secret`.
        Reply::new(200, &[("content-type", "text/html")], "no page: upstream-secret"),
        Reply::status(200),
        // Valid, but longer than the 1 MiB that the service reads.
        Reply::json(
            200,
            format!(
                r#"{{"padding":"{}","metadata":[{{"embedding":[{}]}}]}}"#,
                "x".repeat(1 << 20),
                numbers().join(",")
            ),
        ),
    ];
    for reply in replies {
        let nvidia = FakeNvidia::replying(vec![reply]).await;
        let app = TestApp::start(&nvidia).await;
        let answer = app.upload(ROCKET, "rocket.jpg").await;
        assert_problem(&answer, 502, "embedding_invalid");
        // The picture stays saved, and the error names it.
        assert_eq!(app.saved(), [answer.saved_as()]);
        assert_eq!(nvidia.received().len(), 1, "a paid inference must not be repeated");
    }
}
