//! Why a request to the bucket failed, and what the operator can do about it.

use std::{borrow::Cow, time::Duration};

/// What was requested of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write an object.
    Write,
    /// Read an object.
    Read,
    /// The self-test's read of an object that does not exist. It tests the permission to list the bucket:
    /// without this permission, S3 denies access instead of saying that the object is missing.
    ReadMissing,
    /// Remove an object.
    Remove,
}

impl Operation {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read | Self::ReadMissing => "read",
            Self::Remove => "remove",
        }
    }

    /// The permission that the role or user needs.
    pub fn permission(self) -> &'static str {
        match self {
            Self::Write => "s3:PutObject",
            Self::Read => "s3:GetObject",
            Self::ReadMissing => "s3:ListBucket",
            Self::Remove => "s3:DeleteObject",
        }
    }
}

/// Why a request to the bucket failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the bucket cannot be used ({}): {cause}", .operation.name())]
pub struct Error {
    /// What was requested.
    pub operation: Operation,
    pub(super) cause: Cause,
    /// After a failed write: whether any attempt may have written the object. `cause` is only that of the
    /// last attempt.
    pub(super) may_have_written: bool,
}

/// The cause of an [`Error`].
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Cause {
    /// The server answered with an error.
    #[error("status {}{}", .0.status, .0.code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    ErrorResponse(ErrorResponse),
    /// There are no credentials.
    #[error("no credentials: {0}")]
    Credentials(String),
    /// The connection failed or broke.
    #[error("{detail}")]
    Connection {
        detail: String,
        /// Whether the request may have reached the server.
        was_sent: bool,
    },
    /// There was no answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The caller's deadline passed, after too short a wait to blame the bucket. After a longer wait, the
    /// cause is `Timeout`.
    #[error("the request's deadline passed")]
    DeadlinePassed,
    /// The self-test wrote an object, but then read none, or one with other content.
    #[error("the object that was just written is missing or differs")]
    Lost,
    /// The request was not sent, because the bucket is failing.
    #[error("it failed before, and has not recovered yet")]
    Suspended,
}

/// An error response of the server.
#[derive(Debug, Clone, Default)]
pub(super) struct ErrorResponse {
    pub status: u16,
    /// S3's code, if the body of the response contains one.
    pub code: Option<String>,
    /// S3's explanation for people.
    pub message: Option<String>,
    /// The bucket's region, if the server states it.
    pub region: Option<String>,
}

impl ErrorResponse {
    fn code(&self) -> &str {
        self.code.as_deref().unwrap_or_default()
    }

    fn message_contains(&self, text: &str) -> bool {
        self.message.as_ref().is_some_and(|message| message.contains(text))
    }

    fn is_transient(&self) -> bool {
        matches!(self.status, 429 | 500 | 502 | 503 | 504) || self.code() == "RequestTimeout"
    }

    /// Whether the server refuses this object, but would take another one.
    fn is_about_the_object(&self) -> bool {
        self.status == 413
            || matches!(
                self.code(),
                "BadDigest"
                    | "EntityTooLarge"
                    | "IncompleteBody"
                    | "XAmzContentChecksumMismatch"
                    | "XAmzContentSHA256Mismatch"
            )
    }

    /// Whether the clocks of the server and of this machine differ. All requests have signed URLs. For these,
    /// S3's code is only `AccessDenied`, but its message tells the cause.
    fn is_about_the_clock(&self) -> bool {
        self.code() == "RequestTimeTooSkewed"
            || self.message_contains("Request has expired")
            || self.message_contains("Request is not valid yet")
    }
}

impl Cause {
    /// Whether another attempt may succeed a moment later. After a timeout or the deadline, there is no
    /// time for another attempt.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::ErrorResponse(response) => response.is_transient(),
            Self::Connection { .. } => true,
            Self::Credentials(_)
            | Self::Timeout(_)
            | Self::DeadlinePassed
            | Self::Lost
            | Self::Suspended => false,
        }
    }

    /// Whether an attempt to write the object may have succeeded although it ended with this cause.
    pub(super) fn may_have_written(&self) -> bool {
        match self {
            Self::ErrorResponse(response) => response.status >= 500,
            Self::Connection { was_sent, .. } => *was_sent,
            Self::Timeout(_) | Self::DeadlinePassed => true,
            // `Lost` is the cause of a failed read.
            Self::Credentials(_) | Self::Lost | Self::Suspended => false,
        }
    }

    /// The label in metrics.
    pub(super) fn label(&self) -> Cow<'static, str> {
        match self {
            Self::ErrorResponse(response) => return response.status.to_string().into(),
            Self::Credentials(_) => "credentials",
            Self::Connection { .. } => "connection",
            Self::Timeout(_) => "timeout",
            Self::DeadlinePassed => "deadline",
            Self::Lost => "lost",
            Self::Suspended => "suspended",
        }
        .into()
    }
}

impl Error {
    pub(super) fn new(operation: Operation, cause: Cause) -> Self {
        Self { operation, may_have_written: cause.may_have_written(), cause }
    }

    /// Whether the server refused the request. `Lost` counts as a refusal, because it does not end by
    /// itself either. An outage, an overload and a wrong clock may end by themselves, and are no refusals.
    pub fn is_refusal(&self) -> bool {
        match &self.cause {
            Cause::ErrorResponse(response) => {
                (300..500).contains(&response.status)
                    && !response.is_transient()
                    && !response.is_about_the_clock()
            }
            Cause::Lost => true,
            _ => false,
        }
    }

    /// Whether the object may have been written although the write failed.
    pub fn may_have_written(&self) -> bool {
        self.may_have_written
    }

    /// Whether the server refuses this object, but would take another one.
    pub fn is_about_the_object(&self) -> bool {
        matches!(&self.cause, Cause::ErrorResponse(response) if response.is_about_the_object())
    }

    /// Whether the error shows that the bucket fails. `false` for `DeadlinePassed` and `Suspended`, and if
    /// the server refuses only this object.
    pub(super) fn is_about_the_bucket(&self) -> bool {
        !matches!(self.cause, Cause::DeadlinePassed | Cause::Suspended)
            && !self.is_about_the_object()
    }

    /// What the operator can do, if that is known.
    pub fn advice(&self) -> Option<String> {
        let response = match &self.cause {
            Cause::ErrorResponse(response) => response,
            Cause::Credentials(_) => {
                return Some(
                    "give the instance a role and install deploy/instance-role.conf, or set \
                     AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                        .into(),
                );
            }
            Cause::Connection { .. } | Cause::Timeout(_) | Cause::DeadlinePassed => {
                return Some(
                    "check IMAGESVC_BUCKET_ENDPOINT, IMAGESVC_BUCKET_REGION and the network".into(),
                );
            }
            Cause::Lost | Cause::Suspended => return None,
        };
        let permission = self.operation.permission();
        let advice = match response.code() {
            _ if response.is_about_the_clock() => {
                "this machine's clock is wrong: synchronize it".into()
            }
            "NoSuchBucket" => {
                "IMAGESVC_BUCKET is the address of a bucket that does not exist".into()
            }
            "InvalidAccessKeyId" => "AWS_ACCESS_KEY_ID is unknown to the server".into(),
            "SignatureDoesNotMatch" => {
                "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID".into()
            }
            "InvalidToken" | "ExpiredToken" | "TokenRefreshRequired" => {
                "AWS_SESSION_TOKEN is invalid or has expired".into()
            }
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "AuthorizationQueryParametersError"
            | "IllegalLocationConstraintException" => match &response.region {
                Some(region) => format!("IMAGESVC_BUCKET_REGION must be {region}"),
                None => "IMAGESVC_BUCKET_REGION is not the bucket's region".into(),
            },
            "AccessDenied" if response.message_contains("kms:") => {
                "the policy of the KMS key must allow kms:GenerateDataKey and kms:Decrypt to the role or user"
                    .into()
            }
            "AccessDenied" | "AllAccessDisabled" => {
                format!("the policy of the role or user must allow {permission}")
            }
            "" if !response.is_transient() => {
                "the server does not answer as S3 does: check IMAGESVC_BUCKET_ENDPOINT".into()
            }
            _ => return None,
        };
        Some(advice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(cause: Cause) -> Error {
        Error::new(Operation::Write, cause)
    }

    fn error_response(status: u16, code: &str, message: &str) -> Error {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (code, message) = (text(code), text(message));
        error(Cause::ErrorResponse(ErrorResponse { status, code, message, region: None }))
    }

    #[test]
    fn a_refusal_that_is_about_the_bucket_has_advice_that_names_the_setting_or_permission() {
        for (status, code, expected) in [
            (404, "NoSuchBucket", "IMAGESVC_BUCKET is"),
            (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            (301, "PermanentRedirect", "IMAGESVC_BUCKET_REGION"),
            (400, "AuthorizationQueryParametersError", "IMAGESVC_BUCKET_REGION"),
            (403, "AccessDenied", "s3:PutObject"),
            (404, "", "IMAGESVC_BUCKET_ENDPOINT"),
        ] {
            let error = error_response(status, code, "");
            let advice = error.advice().unwrap_or_default();
            assert!(advice.contains(expected), "{code}: {advice}");
            assert!(error.is_refusal() && !error.may_have_written(), "{code}");
            assert!(error.is_about_the_bucket(), "{code}");
        }
    }

    #[test]
    fn a_wrong_clock_or_kms_policy_is_distinguished_from_a_missing_permission_by_the_message() {
        let clock = error_response(403, "AccessDenied", "Request has expired");
        assert!(clock.advice().unwrap_or_default().contains("clock"));
        assert!(!clock.is_refusal(), "the clock may be set later");
        let message = "not authorized to perform: kms:GenerateDataKey on the resource";
        let key_policy = error_response(403, "AccessDenied", message);
        assert!(key_policy.advice().unwrap_or_default().contains("kms:Decrypt"));
    }

    #[test]
    fn a_refusal_of_one_object_says_nothing_about_the_bucket() {
        for error in [error_response(413, "", ""), error_response(400, "EntityTooLarge", "")] {
            assert!(error.is_about_the_object() && !error.is_about_the_bucket(), "{error}");
        }
    }

    #[test]
    fn an_outage_is_not_a_refusal_and_may_have_written_the_object_if_the_request_was_sent() {
        let broken = Cause::Connection { detail: "reset".into(), was_sent: true };
        for error in [
            error_response(503, "SlowDown", ""),
            error_response(500, "InternalError", ""),
            error(broken),
            error(Cause::Timeout(Duration::from_secs(1))),
        ] {
            assert!(!error.is_refusal() && error.may_have_written(), "{error}");
            assert!(error.is_about_the_bucket(), "{error}");
        }
        let not_connected = Cause::Connection { detail: "refused".into(), was_sent: false };
        assert!(!error(not_connected).may_have_written());
    }
}
