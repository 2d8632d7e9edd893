//! Why a request to the bucket failed, and what the operator can do about it.

use std::{borrow::Cow, time::Duration};

/// What was requested of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Write an object.
    Write,
    /// Read an object.
    Read {
        /// The most bytes that are read.
        max_len: usize,
    },
    /// Read an object that does not exist. S3 denies access instead, unless the bucket may be listed.
    ReadMissing,
    /// Remove an object.
    Remove,
}

impl Operation {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read { .. } | Self::ReadMissing => "read",
            Self::Remove => "remove",
        }
    }

    /// The permission that the bucket's policy must grant.
    pub fn permission(self) -> &'static str {
        match self {
            Self::Write => "s3:PutObject",
            Self::Read { .. } => "s3:GetObject",
            Self::ReadMissing => "s3:ListBucket",
            Self::Remove => "s3:DeleteObject",
        }
    }
}

/// Why a request to the bucket failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the bucket could not {}: {cause}", .operation.name())]
pub struct Error {
    /// What was requested.
    pub operation: Operation,
    pub(super) cause: Cause,
}

/// The cause of an [`Error`].
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Cause {
    /// The server answered with an error.
    #[error("status {status}{}", .code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Refused {
        status: u16,
        /// S3's code, if the body of the response contains one.
        code: Option<String>,
        /// The bucket's region, if the server states it.
        region: Option<String>,
    },
    /// There are no credentials.
    #[error("no credentials: {0}")]
    Credentials(String),
    /// The connection failed or broke.
    #[error("{0}")]
    Connection(String),
    /// There was no answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The client's own deadline passed first.
    #[error("the request's deadline passed")]
    DeadlinePassed,
    /// The object is longer than expected.
    #[error("the object has more than {0} bytes")]
    TooLong(usize),
    /// An object that was just written is missing or differs.
    #[error("the object that was just written is missing or differs")]
    Lost,
    /// The request was not sent, because the bucket is failing.
    #[error("it failed before, and has not recovered yet")]
    Suspended,
}

impl Cause {
    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Refused { status, code, .. } => {
                matches!(status, 429 | 500 | 502 | 503 | 504)
                    || code.as_deref() == Some("RequestTimeout")
            }
            Self::Connection(_) => true,
            Self::Credentials(_)
            | Self::Timeout(_)
            | Self::DeadlinePassed
            | Self::TooLong(_)
            | Self::Lost
            | Self::Suspended => false,
        }
    }

    /// The label in metrics.
    pub(super) fn label(&self) -> Cow<'static, str> {
        match self {
            Self::Refused { status, .. } => return status.to_string().into(),
            Self::Credentials(_) => "credentials",
            Self::Connection(_) => "connection",
            Self::Timeout(_) => "timeout",
            Self::DeadlinePassed => "deadline",
            Self::TooLong(_) => "too_long",
            Self::Lost => "lost",
            Self::Suspended => "suspended",
        }
        .into()
    }
}

impl Error {
    pub(super) fn suspended(operation: Operation) -> Self {
        Self { operation, cause: Cause::Suspended }
    }

    /// Whether the server refused the request, as opposed to an outage or an overload. A refusal
    /// does not end by itself.
    pub fn is_refusal(&self) -> bool {
        match &self.cause {
            Cause::Refused { status, .. } => {
                (300..500).contains(status) && !self.cause.is_transient()
            }
            Cause::Lost => true,
            _ => false,
        }
    }

    /// Whether the object may have been written although the request failed.
    pub fn may_have_written(&self) -> bool {
        match self.cause {
            Cause::Refused { status, .. } => status >= 500,
            Cause::Connection(_) | Cause::Timeout(_) | Cause::DeadlinePassed => true,
            Cause::Credentials(_) | Cause::TooLong(_) | Cause::Lost | Cause::Suspended => false,
        }
    }

    /// Whether the error says something about the bucket's state.
    pub(super) fn is_about_the_bucket(&self) -> bool {
        match self.cause {
            // The object is not one of the service's.
            Cause::TooLong(_) => false,
            Cause::DeadlinePassed | Cause::Suspended => false,
            Cause::Refused { .. }
            | Cause::Credentials(_)
            | Cause::Connection(_)
            | Cause::Timeout(_)
            | Cause::Lost => true,
        }
    }

    /// What the operator can do, if that is known.
    pub fn advice(&self) -> Option<String> {
        let (status, code, region) = match &self.cause {
            Cause::Refused { status, code, region } => (*status, code.as_deref(), region),
            Cause::Credentials(_) => {
                return Some(
                    "give the instance a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                        .into(),
                );
            }
            Cause::Connection(_) | Cause::Timeout(_) | Cause::DeadlinePassed => {
                return Some(
                    "check IMAGESVC_BUCKET_ENDPOINT, IMAGESVC_BUCKET_REGION and the network".into(),
                );
            }
            _ => return None,
        };
        let advice = match code.unwrap_or_default() {
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
            "RequestTimeTooSkewed" => "this machine's clock is wrong: synchronize it".into(),
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "AuthorizationQueryParametersError"
            | "IllegalLocationConstraintException" => match region {
                Some(region) => format!("IMAGESVC_BUCKET_REGION must be {region}"),
                None => "IMAGESVC_BUCKET_REGION is not the bucket's region".into(),
            },
            "AccessDenied" | "AllAccessDisabled" => {
                format!("the policy of the role or user must allow {}", self.operation.permission())
            }
            "" if !matches!(status, 429 | 500..) => {
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

    fn refused(status: u16, code: &str) -> Error {
        let code = (!code.is_empty()).then(|| code.to_owned());
        let cause = Cause::Refused { status, code, region: None };
        Error { operation: Operation::Write, cause }
    }

    #[test]
    fn the_advice_names_the_setting_or_the_permission_that_is_wrong() {
        for (status, code, expected) in [
            (404, "NoSuchBucket", "IMAGESVC_BUCKET "),
            (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            (301, "PermanentRedirect", "IMAGESVC_BUCKET_REGION"),
            (400, "AuthorizationQueryParametersError", "IMAGESVC_BUCKET_REGION"),
            (403, "AccessDenied", "s3:PutObject"),
            (404, "", "IMAGESVC_BUCKET_ENDPOINT"),
        ] {
            let error = refused(status, code);
            let advice = error.advice().unwrap_or_default();
            assert!(advice.contains(expected), "{code}: {advice}");
            assert!(error.is_refusal() && !error.may_have_written(), "{code}");
        }
    }

    #[test]
    fn an_outage_is_not_a_refusal_and_may_have_written_the_object() {
        for error in [
            refused(503, "SlowDown"),
            refused(500, "InternalError"),
            Error { operation: Operation::Write, cause: Cause::Connection("reset".into()) },
            Error { operation: Operation::Write, cause: Cause::Timeout(Duration::from_secs(1)) },
        ] {
            assert!(!error.is_refusal() && error.may_have_written(), "{error}");
            assert!(error.is_about_the_bucket(), "{error}");
        }
    }
}
