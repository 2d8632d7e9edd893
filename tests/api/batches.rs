//! Batches: the shapes that clients send, and the answers that they get.

use base64::{Engine, prelude::BASE64_STANDARD};
use imagesvc::sha256::Sha256;
use serde_json::{Value, json};
use sha2::{Digest, Sha256 as Hasher};

use crate::{
    cache::embedding_filled_with,
    support::{
        Answer, FakeNvidia, FakeServer, HUBBLE, ROCKET, TestApp, assert_problem, data_url, numbers,
        picture_number, tiny, wrapped_base64,
    },
};

/// Starts a fake NVIDIA whose embedding of a tiny picture contains the picture's number: see [`number_in`].
pub async fn nvidia_with_numbered_embeddings() -> FakeNvidia {
    FakeNvidia::scripted(|request, _| embedding_filled_with(picture_number(request))).await
}

/// The body of a batch of the tiny pictures with these numbers.
pub fn batch_of(picture_numbers: impl IntoIterator<Item = usize>) -> Value {
    let input: Vec<_> = picture_numbers.into_iter().map(|number| data_url(&tiny(number))).collect();
    json!({ "input": input })
}

/// Asserts that a batch succeeded, and returns the entries of its answer.
pub fn assert_entries(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{:.500}", answer.text());
    assert!(answer.text().ends_with("}\n"));
    let body = answer.json();
    assert_eq!(body["object"], "list");
    assert_eq!(body["usage"], json!({ "prompt_tokens": 0, "total_tokens": 0 }));
    let entries = body["data"].as_array().unwrap().clone();
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry["index"], index);
    }
    entries
}

/// The numbers of an answer's only embedding, exactly as the answer writes them.
fn only_embedding(answer: &Answer) -> Vec<String> {
    assert_eq!(assert_entries(answer).len(), 1);
    let text = answer.text();
    let (_, embedding) = text.split_once("\"embedding\":[").unwrap();
    let (embedding, _) = embedding.split_once(']').unwrap();
    embedding.split(',').map(ToOwned::to_owned).collect()
}

/// The number of the tiny picture that this entry is for. With [`nvidia_with_numbered_embeddings`], each
/// value of the entry's embedding is (number + 0.5) / 1000.
fn number_in(entry: &Value) -> f64 {
    let embedding = entry["embedding"].as_array().unwrap();
    assert_eq!(embedding.len(), 1536);
    (embedding[0].as_f64().unwrap() * 1000.0).floor()
}

#[tokio::test]
async fn every_shape_of_input_and_messages_gives_the_embedding_of_its_picture() {
    let picture_server = FakeServer::serving(ROCKET).await;
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::builder(&nvidia).may_fetch_from(&picture_server).start().await;
    let http_url = picture_server.url("/photo.jpg");
    for picture in [data_url(ROCKET), BASE64_STANDARD.encode(ROCKET), http_url] {
        let part = json!({ "type": "image_url", "image_url": { "url": picture } });
        let items = [
            json!(picture),
            json!({ "image": picture }),
            json!({ "image_url": picture }),
            json!({ "image_url": { "url": picture, "detail": "low" } }),
            json!({ "type": "image_url", "image_url": picture }),
            json!({ "type": "input_image", "image_url": picture }),
            part.clone(),
            json!({ "content": [part] }),
            json!({ "content": [{ "type": "text", "text": " " }, part] }),
        ];
        for item in items {
            for input in [item.clone(), json!([item])] {
                let answer = app.batch(&json!({ "input": input })).await;
                assert_eq!(only_embedding(&answer), numbers(), "{:.100}", item.to_string());
            }
        }
        let messages = json!([
            { "role": "system", "content": "" },
            { "role": "user", "content": [part] },
        ]);
        let answer = app.batch(&json!({ "messages": messages })).await;
        assert_eq!(only_embedding(&answer), numbers());
    }
    assert_eq!(nvidia.count(), 1, "only the first request should call NVIDIA");
}

#[tokio::test]
async fn base64_may_contain_line_breaks_and_escapes_as_on_the_base64_route() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let with_escaped_slashes = BASE64_STANDARD.encode(ROCKET).replace('/', "\\/");
    // Line breaks without an escape, escaped line breaks, and escaped slashes.
    for text in [wrapped_base64(ROCKET, "\n"), wrapped_base64(ROCKET, "\\n"), with_escaped_slashes]
    {
        let body = format!(r#"{{"input": ["{text}", "data:image\/jpeg;base64,{text}"]}}"#);
        // JSON is accepted with any Content-Type.
        let answer = app.post("/v1/embeddings", "text/plain", body).await;
        assert_eq!(assert_entries(&answer).len(), 2);
    }
    assert_eq!(nvidia.last_inline_picture().bytes, ROCKET);
}

#[tokio::test]
async fn the_entries_of_an_answer_are_in_the_order_of_the_input_and_describe_each_picture() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::start(&nvidia).await;
    let answer = app.batch(&batch_of(0..20)).await;
    let entries = assert_entries(&answer);
    assert_eq!(answer.header("x-cache"), "miss");
    assert_eq!(answer.json()["model"], "nvidia/nv-dinov2");
    for (number, entry) in entries.iter().enumerate() {
        assert_eq!(entry["object"], "embedding");
        assert_eq!(number_in(entry), number as f64);
        let details = &entry["imagesvc"];
        let saved_as = details["saved_as"].as_str().unwrap();
        assert_eq!(details["path"], format!("downloads/{saved_as}"));
        assert_eq!(app.saved_bytes(saved_as), tiny(number));
        let sha256 = Sha256::of(Hasher::new_with_prefix(tiny(number)));
        assert_eq!(details["sha256"], sha256.to_string());
        assert_eq!(details["content_type"], "image/png");
        assert_eq!(details["prepared"], "original");
        assert_eq!(details["cache"], "miss");
    }
    let reversed_answer = app.batch(&batch_of((0..20).rev())).await;
    assert_eq!(reversed_answer.header("x-cache"), "hit");
    let reversed = assert_entries(&reversed_answer);
    assert!(reversed.iter().all(|entry| entry["imagesvc"]["cache"] == "hit"));
    assert!(reversed.iter().rev().zip(&entries).all(|(a, b)| a["embedding"] == b["embedding"]));
    assert_eq!(nvidia.count(), 20);
    assert_eq!(app.saved().len(), 2 * 20, "each batch should save its pictures");
}

#[tokio::test]
async fn null_and_default_and_unknown_fields_change_nothing() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    // Like an absent field, `"dimensions": 0` means all dimensions of the model.
    for fields in [
        json!({ "encoding_format": null, "dimensions": null, "model": null, "normalized": null }),
        json!({ "encoding_format": "float", "dimensions": 0, "messages": null, "modality": null }),
        json!({ "dimensions": 1536, "model": "nvidia/nv-dinov2", "normalized": false }),
        json!({ "model": "NV-DINOv2", "input_type": "query", "truncate": "NONE", "user": "me" }),
        json!({ "modality": "image", "whatever": [1, 2, 3], "model": "NVIDIA/NV-DINOV2" }),
    ] {
        let mut body = json!({ "input": data_url(ROCKET) });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(only_embedding(&app.batch(&body).await), numbers(), "{fields}");
    }
}

#[tokio::test]
async fn a_base64_embedding_contains_the_numbers_as_32_bit_floats() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let body = json!({ "input": data_url(ROCKET), "encoding_format": "base64" });
    let entry = assert_entries(&app.batch(&body).await).remove(0);
    let text = entry["embedding"].as_str().unwrap();
    // 1536 floats of 4 bytes. Base64 writes 3 bytes as 4 characters.
    assert_eq!(text.len(), 1536 * 4 / 3 * 4);
    let bytes = BASE64_STANDARD.decode(text).unwrap();
    let floats = bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    let expected: Vec<f32> = numbers().iter().map(|number| number.parse().unwrap()).collect();
    assert_eq!(floats.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_normalized_vector_has_length_1_and_the_cached_vector_is_not_normalized() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let body = json!({ "input": data_url(ROCKET), "normalized": true });
    // The second request gets the cached vector.
    for _ in 0..2 {
        let normalized: Vec<f64> = only_embedding(&app.batch(&body).await)
            .iter()
            .map(|number| number.parse().unwrap())
            .collect();
        let original: Vec<f64> = numbers().iter().map(|number| number.parse().unwrap()).collect();
        let length = original.iter().map(|number| number * number).sum::<f64>().sqrt();
        for (original, normalized) in original.iter().zip(&normalized) {
            assert!((original / length - normalized).abs() < 1e-12, "{original} {normalized}");
        }
    }
    assert_eq!(app.upload(ROCKET, "a.jpg").await.header("x-cache"), "hit");
    assert_eq!(only_embedding(&app.batch(&json!({ "input": data_url(ROCKET) })).await), numbers());
    assert_eq!(nvidia.count(), 1, "only the first request should call NVIDIA");
}

#[tokio::test]
async fn equal_pictures_in_one_batch_are_sent_to_nvidia_once_even_without_a_cache() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::builder(&nvidia)
        .setting("IMAGESVC_CACHE_MEMORY", 0)
        .setting("IMAGESVC_CACHE_DISK", 0)
        // With this limit, the batch processes one picture at a time. When it comes to an equal picture, the
        // call for the first one has ended. Then only the batch itself still has the embedding.
        .setting("NVIDIA_MAX_CONCURRENCY", 1)
        .start()
        .await;
    let answer = app.batch(&batch_of([1, 2, 1, 1, 2])).await;
    let entries = assert_entries(&answer);
    let picture_numbers: Vec<_> = entries.iter().map(number_in).collect();
    assert_eq!(picture_numbers, [1.0, 2.0, 1.0, 1.0, 2.0]);
    let cache_values: Vec<_> = entries.iter().map(|entry| &entry["imagesvc"]["cache"]).collect();
    // An entry that gets the embedding of an equal picture in the batch is a hit, too.
    assert_eq!(cache_values, ["miss", "miss", "hit", "hit", "hit"]);
    assert_eq!(nvidia.count(), 2, "each different picture should be sent once");
    assert_eq!(app.saved().len(), 5, "equal pictures should all be saved");
}

#[tokio::test]
async fn gifs_and_large_jpegs_are_prepared_as_on_the_other_routes() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let gif = crate::support::converted(&tiny(1), image_rs::ImageFormat::Gif);
    let input = [data_url(HUBBLE), data_url(&gif)];
    let entries = assert_entries(&app.batch(&json!({ "input": input })).await);
    // The large JPEG is uploaded as it is. NVIDIA accepts no GIF, so the service converts it.
    assert_eq!(entries[0]["imagesvc"]["prepared"], "original");
    assert_eq!(entries[1]["imagesvc"]["prepared"], "jpeg");
    assert_eq!(entries[1]["imagesvc"]["content_type"], "image/gif");
}

#[tokio::test]
async fn the_query_and_cache_control_have_the_same_effect_as_on_the_other_routes() {
    let nvidia = nvidia_with_numbered_embeddings().await;
    let app = TestApp::start(&nvidia).await;
    let send = |path_end: &str, body: Value| {
        let request = app.json_request(&format!("/v1/embeddings{path_end}"), &body);
        app.send(request)
    };
    // The slash before the query has no effect.
    let answer = send("/?save=false&backend=nv_dino", batch_of([1])).await;
    let entry = assert_entries(&answer).remove(0);
    assert!(entry["imagesvc"].get("saved_as").is_none() && entry["imagesvc"].get("path").is_none());
    assert_eq!(app.saved().len(), 0);
    // Parameters with an invalid value are refused. The other routes have no parameter `errors`.
    assert_problem(&send("?backend=clip", batch_of([1])).await, 422, "validation_failed");
    assert_problem(&send("?errors=some", batch_of([1])).await, 422, "validation_failed");
    let request = app.json_request("/v1/embeddings", &batch_of([1]));
    let answer = app.send(request.header("cache-control", "no-cache")).await;
    assert_eq!(assert_entries(&answer)[0]["imagesvc"]["cache"], "miss");
    assert_eq!(nvidia.count(), 2, "`no-cache` should cause a second call for the same picture");
    // The same route without `/v1`.
    let answer = app.send(app.json_request("/embeddings", &batch_of([1]))).await;
    assert_eq!(number_in(&assert_entries(&answer)[0]), 1.0);
}

#[tokio::test]
async fn the_model_is_listed_and_found_by_each_of_its_names() {
    let nvidia = FakeNvidia::healthy().await;
    let app = TestApp::start(&nvidia).await;
    let model =
        json!({ "id": "nvidia/nv-dinov2", "object": "model", "created": 0, "owned_by": "nvidia" });
    let list = app.get("/v1/models").await.json();
    assert_eq!(list, json!({ "object": "list", "data": [model] }));
    for name in ["nvidia/nv-dinov2", "nvidia%2Fnv-dinov2", "NV-DINOv2", "nv-dinov2/"] {
        assert_eq!(app.get(&format!("/v1/models/{name}")).await.json(), model, "{name}");
    }
    let problem = assert_problem(&app.get("/v1/models/openai/gpt-4").await, 404, "model_not_found");
    assert_eq!(problem["error"]["param"], "model");
    let not_utf8 = app.get("/v1/models/%FF").await;
    assert!(assert_problem(&not_utf8, 404, "model_not_found")["error"].is_object());

    // The sandbox has a model of its own.
    let app = TestApp::sandbox().start().await;
    let id = app.get("/v1/models").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(app.get(&format!("/v1/models/{id}")).await.json()["id"], *id);
    let answer = app.batch(&json!({ "input": data_url(ROCKET), "model": id })).await;
    assert_eq!(answer.json()["model"], *id);
}
