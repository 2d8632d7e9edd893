//! Sends one picture to the service.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use reqwest::{
    Client, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use url::Url;

use super::{
    classify::{self, Action, Problem},
    form,
    item::{Failure, Picture},
    json_object::{self, on_one_line},
};
use crate::{
    causes::causes,
    http_client::{self, Trust},
};

/// The most bytes of an answer that are read. A vector has about 30 KB.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the request for the service's model may take.
const MODEL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an idle connection stays open. The service closes idle connections later than this, so no
/// request is sent on a connection that the service is closing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of one service. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ServiceClient {
    http: Client,
    /// The service's URL, without a route.
    base: Url,
    authorization: Option<HeaderValue>,
    /// Whether the service is asked to save the pictures.
    save: bool,
    /// The prefix of the names of the fields that are added to a row.
    prefix: Arc<str>,
}

/// What the run needs from the service's answer for a picture.
#[derive(Debug)]
pub(super) struct Embedded {
    /// The fields that are added to the row, as JSON without braces.
    pub fields: String,
    pub model: String,
    /// Whether the vector came from the service's cache.
    pub is_cached: bool,
}

/// The fields of an answer that are added to a row.
#[derive(Deserialize)]
struct Answer<'a> {
    sha256: String,
    model: String,
    prepared: String,
    width: u32,
    height: u32,
    #[serde(borrow)]
    vector: &'a RawValue,
}

/// The answer of `GET /v1/models`.
#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Why the service cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServiceError {
    #[error("IMAGESVC_API_KEY contains a character that no key contains")]
    Key,
    #[error("the HTTP client cannot be created")]
    Client(#[from] reqwest::Error),
    #[error("{0} does not answer: {1}")]
    Unreachable(Url, String),
    #[error("{0} refuses the key: set IMAGESVC_API_KEY to one of the service's keys")]
    KeyRefused(Url),
    #[error("{0} is not this service: GET /v1/models returned {1}")]
    NotTheService(Url, String),
}

impl ServiceClient {
    /// A client of the service at this URL.
    pub(super) fn new(
        base: Url,
        key: Option<&str>,
        save: bool,
        prefix: &str,
    ) -> Result<Self, ServiceError> {
        let authorization = match key {
            Some(key) => {
                let value = HeaderValue::from_str(&format!("Bearer {key}"));
                let mut value = value.map_err(|_| ServiceError::Key)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let trust = Trust::probe();
        let builder = trust
            .client_builder()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT);
        Ok(Self { http: builder.build()?, base, authorization, save, prefix: prefix.into() })
    }

    /// Asks the service for the name of its model.
    pub(super) async fn model(&self) -> Result<String, ServiceError> {
        let base = || self.base.clone();
        let unreachable = |error: &reqwest::Error| ServiceError::Unreachable(base(), cause(error));
        let request = self.http.get(self.url("v1/models")).timeout(MODEL_TIMEOUT);
        let response =
            self.authorized(request).send().await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            return Err(ServiceError::KeyRefused(base()));
        }
        let body = read_body(response).await.map_err(|error| unreachable(&error))?;
        let models = serde_json::from_slice::<Models>(&body).ok();
        match models.and_then(|models| models.data.into_iter().next()) {
            Some(model) if status.is_success() => Ok(model.id),
            _ => Err(ServiceError::NotTheService(base(), status.to_string())),
        }
    }

    /// Sends a picture. `timeout` limits the whole call.
    ///
    /// # Errors
    /// Why the service returned no vector, classified by what the run does next.
    pub(super) async fn embed(
        &self,
        picture: &Picture,
        timeout: Duration,
    ) -> Result<Embedded, Action> {
        let request = match picture {
            Picture::Url { url, .. } => {
                let body = json!({ "image_url": url }).to_string();
                self.http
                    .post(self.url("vectorize-image"))
                    .header(CONTENT_TYPE, "application/json")
                    .body(body)
            }
            Picture::File(path) => {
                let (body, length) = form::of_file(path.clone()).await.map_err(|error| {
                    let detail = format!("The file cannot be read: {error}.");
                    Action::NotSent(Failure::permanent("unreadable_file", detail))
                })?;
                self.http
                    .post(self.url("vectorize-image-upload"))
                    .header(CONTENT_TYPE, form::content_type())
                    .header(CONTENT_LENGTH, length)
                    .body(body)
            }
        };
        let response = self.authorized(request).timeout(timeout).send().await;
        let response =
            response.map_err(|error| classify::connection_error(&error, &cause(&error)))?;
        let status = response.status();
        let retry_after = http_client::retry_after(response.headers(), SystemTime::now());
        let has_header =
            |name, text| response.headers().get(name).is_some_and(|value| value == text);
        let is_cached = has_header("x-cache", "hit");
        let is_retry_useless = has_header("x-should-retry", "false");
        let body = read_body(response).await;
        let body = body.map_err(|error| classify::connection_error(&error, &cause(&error)))?;
        if !status.is_success() {
            let problem: Option<Problem> = serde_json::from_slice(&body).ok();
            return Err(classify::response(status, retry_after, is_retry_useless, problem));
        }
        let answer: Answer<'_> = serde_json::from_slice(&body).map_err(|_| {
            let detail = "The service's answer contains no vector.";
            Action::Fail(Failure::permanent("invalid_answer", detail))
        })?;
        Ok(Embedded::new(&answer, &self.prefix, is_cached))
    }

    fn url(&self, route: &str) -> String {
        let query = if self.save || route == "v1/models" { "" } else { "?save=false" };
        format!("{}/{route}{query}", self.base.as_str().trim_end_matches('/'))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }
}

impl Embedded {
    fn new(answer: &Answer<'_>, prefix: &str, is_cached: bool) -> Self {
        let Answer { sha256, model, prepared, width, height, vector } = answer;
        let name = |field: &str| json_object::string(&format!("{prefix}{field}"));
        let texts = [("sha256", sha256), ("model", model), ("prepared", prepared)];
        let mut fields: String = texts
            .map(|(field, text)| format!("{}:{},", name(field), json_object::string(text)))
            .concat();
        for (field, number) in [("width", width), ("height", height)] {
            fields.push_str(&format!("{}:{number},", name(field)));
        }
        fields.push_str(&format!("{}:{}", name("vector"), on_one_line(vector.get())));
        Self { fields, model: model.clone(), is_cached }
    }
}

/// Reads a body, up to [`MAX_ANSWER_BYTES`].
async fn read_body(mut response: Response) -> Result<BytesMut, reqwest::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            // A truncated body is not valid JSON, so the caller refuses it.
            body.truncate(MAX_ANSWER_BYTES);
            break;
        }
    }
    Ok(body)
}

/// The innermost cause of an error.
fn cause(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(|| error.to_string(), ToString::to_string)
}
