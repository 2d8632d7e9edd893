//! The pages and the OpenAPI document that the service serves.

use imagesvc::web::error::Code;

use crate::support::{FakeNvidia, TestApp, documents::Document};

#[test]
fn the_page_on_the_api_lists_every_code_and_no_other() {
    let page = Document::read("docs/api.md").text;
    let (_, table) = page.split_once("| `code` | Status |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    assert_eq!(table.lines().count(), 2 + Code::ALL.len());
    for code in Code::ALL {
        let row = format!("| `{code}` | {} |", code.status().as_u16());
        assert!(table.contains(&row), "{row}");
    }
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_lists_every_route() {
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
    let answer = &document["components"]["schemas"]["Answer"]["properties"];
    assert_eq!(answer["vector"]["minItems"], 1536);
    assert_eq!(answer["vector"]["items"]["type"], "number");
    for (at, name, place) in
        [(0, "save", "query"), (1, "backend", "query"), (2, "Cache-Control", "header")]
    {
        let parameter = &upload["parameters"][at];
        assert_eq!((&parameter["name"], &parameter["in"]), (&name.into(), &place.into()));
        assert_eq!(parameter["required"], false);
    }
    assert_eq!(upload["parameters"][1]["schema"]["enum"], serde_json::json!(["nv_dino"]));
    assert!(upload["responses"]["200"]["headers"]["x-cache"].is_object());
    let codes = document["components"]["schemas"]["Code"]["enum"].as_array().unwrap();
    assert!(codes.iter().any(|code| code == "embedding_rate_limited"));
}

#[tokio::test]
async fn the_page_and_its_assets_come_from_the_service() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let page = app.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html"));
    assert!(page.header("content-security-policy").contains("frame-ancestors 'none'"));
    let html = page.text();
    let linked =
        html.split(['"', '\'']).filter(|text| text.ends_with(".js") || text.ends_with(".css"));
    let linked: Vec<_> = linked.collect();
    assert!(linked.len() >= 4, "{html}");
    for path in linked {
        let asset = app.get(path).await;
        assert_eq!(asset.status, 200, "{path}");
        assert!(!asset.body.is_empty());
    }
    let start = app.get("/docs/swagger-initializer.js").await.text();
    assert!(
        start.contains("/openapi.json") && start.contains("\"validatorUrl\": \"none\""),
        "{start}"
    );
}

#[tokio::test]
async fn the_home_page_loads_nothing_from_elsewhere() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let page = app.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert!(
        !page.text().contains("://") || page.text().matches("://").count() == 1,
        "the placeholder is the only URL"
    );
}
