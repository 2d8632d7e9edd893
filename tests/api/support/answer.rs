//! The service's answers, and assertions about them.

use reqwest::{Response, StatusCode, header::HeaderMap};
use serde_json::Value;

/// An answer of the service, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads the response with its whole body.
    pub async fn read(response: Response) -> reqwest::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Self { status, headers, body: response.bytes().await?.into() })
    }

    /// The body, parsed as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header, or an empty text if the header is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The name of the saved file.
    pub fn saved_as(&self) -> String {
        self.json()["saved_as"].as_str().unwrap().to_owned()
    }

    /// Asserts that the answer is a success, and returns how the picture was prepared for NVIDIA.
    pub fn prepared(&self) -> String {
        self.assert_success();
        self.json()["prepared"].as_str().unwrap().to_owned()
    }

    /// Asserts that the answer is a success with a valid vector.
    pub fn assert_success(&self) {
        self.vector();
    }

    /// Asserts that the answer is a success, and returns its vector.
    pub fn vector(&self) -> Vec<f64> {
        assert_eq!(self.status, 200, "{:.500}", self.text());
        let answer = self.json();
        assert_eq!(answer["status"], "success");
        // `str::parse` returns the nearest `f64`. serde_json without its feature `float_roundtrip`
        // may return a neighbour of it.
        let text = self.text();
        let (_, vector) = text.split_once("\"vector\":[").unwrap();
        let (vector, rest) = vector.split_once(']').unwrap();
        assert_eq!(rest, "}\n", "the vector should be the last field");
        let vector: Vec<f64> =
            vector.split(',').map(|number| number.trim().parse().unwrap()).collect();
        assert_eq!(vector.len(), 1536);
        assert!(vector.iter().all(|number| number.is_finite()));
        vector
    }
}

/// Asserts that an answer is an error with this status and code, and that it has the parts that
/// every error has. Returns its body.
pub fn assert_problem(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{:.500}", answer.text());
    assert_eq!(answer.header("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["type"], "about:blank");
    assert_eq!(problem["title"], StatusCode::from_u16(status).unwrap().canonical_reason().unwrap());
    assert!(answer.text().ends_with("}\n"));
    assert_eq!(problem["request_id"], answer.header("x-request-id"));
    let detail = problem["detail"].as_str().unwrap();
    assert!(
        detail.len() > 20 && detail.ends_with(['.', '?']),
        "the detail should be a whole sentence: {detail:?}"
    );
    // No error may contain words about the machine or the code, or words that tests put into secrets and
    // NVIDIA's replies.
    for internal in
        ["/tmp", "src/", "os error", "reqwest", "hyper", "planted", "upstream-secret", "127.0.0.1"]
    {
        assert!(
            !answer.text().contains(internal),
            "the answer must not contain {internal}: {}",
            answer.text()
        );
    }
    problem
}

/// The value of a series in the text of `/metrics`, or 0 if the series is absent. `series` is the
/// name with its labels, as in the text.
pub fn metric(text: &str, series: &str) -> f64 {
    let mut values = text.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values.next().map_or(0.0, |value| value.parse().unwrap())
}
