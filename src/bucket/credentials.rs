//! Lets `object_store` request credentials with the service's own HTTP client, for example from the
//! instance's metadata.
//!
//! `object_store` could use the client directly, but only with its feature `reqwest`, which adds
//! HTTP/2 to the program.

use std::error::Error;

use async_trait::async_trait;
use bytes::BytesMut;
use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind,
    HttpRequest, HttpResponse, HttpService,
};
use reqwest::Request;
use url::Url;

/// The most bytes that are read of a response. Credentials take about 2 KB.
const MAX_RESPONSE_LEN: usize = 64 * 1024;

/// Creates clients that request credentials.
#[derive(Debug)]
pub(super) struct CredentialsConnector(pub(super) reqwest::Client);

impl HttpConnector for CredentialsConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // `object_store` sets `AllowHttp` to true or false, depending on the kind of credentials. For web
        // identities it is false: over HTTP, others could read the identity's token on the way.
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let allows_http = allows_http.is_some_and(|value| value == "true");
        Ok(HttpClient::new(CredentialsClient { http: self.0.clone(), allows_http }))
    }
}

#[derive(Debug)]
struct CredentialsClient {
    http: reqwest::Client,
    allows_http: bool,
}

#[async_trait]
impl HttpService for CredentialsClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let url = Url::parse(&head.uri.to_string()).map_err(|error| final_error(error.into()))?;
        if url.scheme() != "https" && !self.allows_http {
            return Err(final_error("the URL of the credentials must be https".into()));
        }
        let mut request = Request::new(head.method, url);
        *request.headers_mut() = head.headers;
        match body.as_bytes() {
            Some(bytes) => *request.body_mut() = Some(bytes.clone().into()),
            None if body.is_empty() => {}
            None => return Err(final_error("only a body in one piece can be sent".into())),
        }
        let mut response = self.http.execute(request).await.map_err(http_error)?;
        let mut received = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(http_error)? {
            if received.len() + chunk.len() > MAX_RESPONSE_LEN {
                return Err(final_error("the response with the credentials is too long".into()));
            }
            received.extend_from_slice(&chunk);
        }
        let mut answer = HttpResponse::new(received.freeze().into());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = response.headers().clone();
        Ok(answer)
    }
}

/// An error of the HTTP client. After both kinds, `object_store` may send the request again.
fn http_error(error: reqwest::Error) -> HttpError {
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
    HttpError::new(kind, error.without_url())
}

/// An error after which `object_store` does not send the request again.
fn final_error(error: Box<dyn Error + Send + Sync>) -> HttpError {
    HttpError::new_boxed(HttpErrorKind::Unknown, error)
}

#[cfg(test)]
mod tests {
    use object_store::{aws::AmazonS3Builder, path::Path, signer::Signer};
    use reqwest::Method;

    use super::*;

    #[tokio::test]
    async fn an_http_url_is_refused_for_a_web_identity() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, "a token").unwrap();
        let signer = AmazonS3Builder::new()
            .with_bucket_name("photos")
            .with_http_connector(CredentialsConnector(reqwest::Client::new()))
            .with_config("aws_web_identity_token_file".parse().unwrap(), token.to_str().unwrap())
            .with_config("aws_role_arn".parse().unwrap(), "arn:aws:iam::1:role/photos")
            // Nothing listens on this port. The URL must be refused before a connection is tried.
            .with_config("aws_endpoint_url_sts".parse().unwrap(), "http://127.0.0.1:1")
            .build()
            .unwrap();
        let minute = std::time::Duration::from_secs(60);
        let signed = signer.signed_url(Method::PUT, &Path::from("a"), minute).await;
        let error = signed.unwrap_err();
        let cause = crate::causes::causes(&error).last().unwrap().to_string();
        assert!(cause.contains("must be https"), "{cause}");
    }
}
