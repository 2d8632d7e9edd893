//! The pages and the OpenAPI document that the service serves, and the error codes in
//! `docs/api.md`.

use imagesvc::web::error::Code;
use serde_json::Value;

use crate::support::{FakeNvidia, TestApp, documents::Document};

#[test]
fn docs_api_md_lists_every_error_code_and_no_other() {
    let page = Document::read("docs/api.md").text;
    let (_, table) = page.split_once("| `code` | Status |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    // The first two lines are the rest of the header row, and the separator.
    assert_eq!(table.lines().count(), 2 + Code::ALL.len());
    for code in Code::ALL {
        let row = format!("| `{code}` | {} |", code.status().as_u16());
        assert!(table.contains(&row), "docs/api.md should contain the row {row}");
    }
}

#[tokio::test]
async fn the_openapi_document_lists_every_api_route_and_describes_uploads_and_error_codes() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let document = app.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths: Vec<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        paths,
        [
            "/health",
            "/metrics",
            "/ready",
            "/v1/embeddings",
            "/v1/models",
            "/v1/models/{id}",
            "/vectorize-image",
            "/vectorize-image-base64",
            "/vectorize-image-upload"
        ]
    );
    let upload = &document["paths"]["/vectorize-image-upload"]["post"];
    assert!(upload["requestBody"]["content"]["multipart/form-data"].is_object());
    assert!(upload["responses"]["415"]["content"]["application/problem+json"].is_object());
    let vector = &document["components"]["schemas"]["Answer"]["properties"]["vector"];
    assert_eq!(vector["minItems"], 1536);
    assert_eq!(vector["items"]["type"], "number");
    for (index, name, location) in
        [(0, "save", "query"), (1, "backend", "query"), (2, "Cache-Control", "header")]
    {
        let parameter = &upload["parameters"][index];
        assert_eq!((&parameter["name"], &parameter["in"]), (&name.into(), &location.into()));
        assert_eq!(parameter["required"], false);
    }
    assert_eq!(upload["parameters"][1]["schema"]["enum"], serde_json::json!(["nv_dino"]));
    assert!(upload["responses"]["200"]["headers"]["x-cache"].is_object());
    let codes = document["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    assert!(codes.iter().any(|code| code == "embedding_rate_limited"));
}

/// The operations of the OpenAPI document, each with its method and path.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let operations = paths.iter().flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods.map(move |(method, operation)| (format!("{method} {path}"), operation))
    });
    operations.collect()
}

#[tokio::test]
async fn every_code_block_in_the_openapi_document_is_a_tested_block_of_a_page() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let document = app.get("/openapi.json").await.json();
    let tested_blocks: Vec<_> = Document::all()
        .iter()
        .flat_map(Document::blocks)
        .filter(|block| block.not_run.is_none())
        // Readers of the served document have the program, but not its sources.
        .map(|block| (block.language, block.text.replace("cargo run --", "imagesvc")))
        .collect();
    let introduction = document["info"]["description"].as_str().unwrap();
    let message = "the introduction should name the command for folders";
    assert!(introduction.contains("imagesvc embed"), "{message}: {introduction}");
    let descriptions = operations(&document).into_iter().map(|(_, operation)| {
        operation["description"].as_str().expect("every route should have a description")
    });
    let mut languages = Vec::new();
    for description in descriptions.chain([introduction]) {
        let description = Document { path: "openapi.json".into(), text: description.to_owned() };
        for block in description.blocks() {
            languages.push(block.language.clone());
            let block = (block.language, block.text);
            assert!(tested_blocks.contains(&block), "no page has this tested block: {block:?}");
        }
    }
    languages.sort_unstable();
    assert_eq!(languages, ["bash", "bash", "bash", "bash", "js", "python"]);
}

#[tokio::test]
async fn the_openapi_examples_of_readiness_and_metrics_are_like_the_real_answers() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let document = app.get("/openapi.json").await.json();
    let ready = &document["paths"]["/ready"]["get"]["responses"];
    let real_answer = app.get("/ready").await.json();
    for status in ["200", "503"] {
        let example = &ready[status]["content"]["application/json"]["example"];
        assert_eq!(example["ready"], status == "200", "{example}");
        let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(example), fields(&real_answer), "{status}");
    }
    let content = &document["paths"]["/metrics"]["get"]["responses"]["200"]["content"];
    let example = content["application/openmetrics-text"]["example"].as_str().unwrap();
    let real_answer = app.get("/metrics").await;
    let metrics = real_answer.text();
    // The example contains one metric, with its type, unit and help.
    let metadata: Vec<_> = example.lines().filter(|line| line.starts_with('#')).collect();
    assert_eq!(metadata.len(), 3, "{example}");
    for line in metadata {
        assert!(metrics.lines().any(|printed| printed == line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn the_batch_examples_in_the_openapi_document_work_in_the_sandbox() {
    let app = TestApp::sandbox().start().await;
    let document = app.get("/openapi.json").await.json();
    let body = &document["paths"]["/v1/embeddings"]["post"]["requestBody"];
    let examples = body["content"]["application/json"]["examples"].as_object().unwrap();
    assert_eq!(examples.len(), 3);
    for (name, example) in examples {
        let answer = app.batch(&example["value"]).await;
        assert_eq!(answer.status, 200, "{name}: {:.500}", answer.text());
    }
}

#[tokio::test]
async fn the_docs_page_loads_its_assets_from_the_service() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let page = app.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html"));
    assert!(page.header("content-security-policy").contains("frame-ancestors 'none'"));
    let html = page.text();
    let is_asset = |text: &&str| text.ends_with(".js") || text.ends_with(".css");
    let paths: Vec<_> = html.split(['"', '\'']).filter(is_asset).collect();
    assert!(paths.len() >= 4, "the page should load several scripts and style sheets: {html}");
    for path in paths {
        let asset = app.get(path).await;
        assert_eq!(asset.status, 200, "{path}");
        assert!(!asset.body.is_empty(), "{path}");
    }
    // By default, Swagger UI loads a badge from a validator on another host.
    let script = app.get("/docs/swagger-initializer.js").await.text();
    assert!(
        script.contains("/openapi.json") && script.contains("\"validatorUrl\": \"none\""),
        "{script}"
    );
}

#[tokio::test]
async fn the_home_page_loads_nothing_from_other_hosts() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let page = app.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert!(
        page.text().matches("://").count() <= 1,
        "the page should contain no URL except the placeholder of its URL field"
    );
}
