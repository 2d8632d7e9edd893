//! Classifies NVIDIA's answers: one table says what each status means, and which failures concern
//! uploads.

use std::fmt;

use super::Error;

/// The calls to NVIDIA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Request the embedding of an inline picture.
    Infer,
    /// Request the embedding of an uploaded picture.
    InferAsset,
    /// Poll for a pending answer.
    Poll,
    /// Poll for a pending answer about an uploaded picture.
    PollAsset,
    /// Create an asset, and obtain its presigned URL.
    CreateAsset,
    /// Upload the picture to the presigned URL.
    UploadAsset,
    /// Delete an asset, which is an uploaded picture.
    DeleteAsset,
}

/// The statuses that alert an operator, because a refused key or account does not recover by itself.
pub(super) const ALERTING_STATUSES: [u16; 3] = [401, 402, 403];

/// The state of a call that has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The answer is complete.
    Done,
    /// The answer must be polled for.
    Pending,
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// NVIDIA refused the key.
    Key,
    /// The account is out of credits, or the model is not available to it.
    Account,
    /// NVIDIA refused the picture.
    Picture,
    /// Uploads do not work for this model or account.
    UploadsRefused,
    /// NVIDIA received too many calls; a later one may succeed.
    RateLimited,
    /// NVIDIA or the connection failed; another attempt may succeed.
    Unavailable,
    /// One attempt took too long; another may succeed.
    AttemptTimeout,
    /// The pending answer is gone; a new inference may succeed.
    ResultGone,
    /// A gateway answered with a web page instead of JSON; another attempt may succeed.
    GatewayPage,
    /// A successful answer without a valid embedding.
    InvalidAnswer,
    /// A status that the API does not document.
    Unexpected,
    /// The request's own deadline passed.
    DeadlinePassed,
}

impl Operation {
    /// Every call.
    pub const ALL: [Self; 7] = [
        Self::Infer,
        Self::InferAsset,
        Self::Poll,
        Self::PollAsset,
        Self::CreateAsset,
        Self::UploadAsset,
        Self::DeleteAsset,
    ];

    /// What a status means as the answer to this call.
    pub(super) fn classify(self, status: u16) -> Result<Progress, FailureKind> {
        use FailureKind::{
            Account, Key, Picture, RateLimited, ResultGone, Unavailable, Unexpected, UploadsRefused,
        };
        use Operation::{
            CreateAsset, DeleteAsset, Infer, InferAsset, Poll, PollAsset, UploadAsset,
        };
        Err(match (self, status) {
            (Infer | InferAsset | Poll | PollAsset | CreateAsset, 200) => {
                return Ok(Progress::Done);
            }
            (UploadAsset | DeleteAsset, 200..=299) => return Ok(Progress::Done),
            (Infer | InferAsset | Poll | PollAsset, 202) => return Ok(Progress::Pending),

            // The host of a presigned URL checks no key and has no rate limit, so every refusal is
            // final.
            (UploadAsset, 400..=499) => UploadsRefused,

            (_, 401) => Key,
            (_, 402) => Account,
            (_, 429) => RateLimited,
            (_, 500 | 502 | 503 | 504) => Unavailable,

            (CreateAsset, 400..=499) => UploadsRefused,
            (Poll | PollAsset, 404) => ResultGone,
            (Infer | InferAsset | Poll | PollAsset, 403) => Key,
            (InferAsset, 400 | 404 | 410 | 413 | 415 | 422) => UploadsRefused,
            (PollAsset, 400 | 410 | 413 | 415 | 422) => UploadsRefused,
            (Infer | Poll, 404 | 410) => Account,
            (Infer | Poll, 400 | 413 | 415 | 422) => Picture,
            _ => Unexpected,
        })
    }

    /// Whether the answer shows if NVIDIA accepts the key.
    pub fn reveals_key_validity(self) -> bool {
        !matches!(self, Self::UploadAsset | Self::DeleteAsset)
    }

    /// Whether an answer of this status may be quoted in the log. What
    /// creating an asset or uploading to it answers may contain the presigned URL.
    pub fn is_quotable(self, status: u16) -> bool {
        match self {
            Self::CreateAsset => status >= 400,
            Self::UploadAsset => false,
            _ => true,
        }
    }

    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::InferAsset => "infer_asset",
            Self::Poll => "poll",
            Self::PollAsset => "poll_asset",
            Self::CreateAsset => "create_asset",
            Self::UploadAsset => "upload_asset",
            Self::DeleteAsset => "delete_asset",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Error {
    /// Whether the same picture may succeed without an upload: the caller then shrinks it and sends it
    /// inline. A failure that the key, the account or the rate causes would only happen again.
    pub fn may_succeed_inline(&self) -> bool {
        match self.operation {
            Operation::CreateAsset | Operation::UploadAsset => match self.kind {
                FailureKind::Key | FailureKind::Account | FailureKind::RateLimited => false,
                FailureKind::Picture
                | FailureKind::UploadsRefused
                | FailureKind::Unavailable
                | FailureKind::AttemptTimeout
                | FailureKind::ResultGone
                | FailureKind::GatewayPage
                | FailureKind::InvalidAnswer
                | FailureKind::Unexpected
                | FailureKind::DeadlinePassed => true,
            },
            Operation::Infer
            | Operation::InferAsset
            | Operation::Poll
            | Operation::PollAsset
            | Operation::DeleteAsset => self.is_upload_refusal(),
        }
    }

    /// Whether NVIDIA refused the upload, rather than the upload failing for another reason.
    pub fn is_upload_refusal(&self) -> bool {
        self.kind == FailureKind::UploadsRefused
    }
}

impl FailureKind {
    /// Whether another attempt may succeed.
    pub fn is_transient(self) -> bool {
        match self {
            Self::RateLimited
            | Self::Unavailable
            | Self::AttemptTimeout
            | Self::ResultGone
            | Self::GatewayPage => true,
            Self::Key
            | Self::Account
            | Self::Picture
            | Self::UploadsRefused
            | Self::InvalidAnswer
            | Self::Unexpected
            | Self::DeadlinePassed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind::*;
    use Operation::*;
    use Progress::*;

    #[test]
    fn every_status_has_the_listed_meaning() {
        let columns = [Infer, InferAsset, Poll, PollAsset, CreateAsset, UploadAsset];
        let (pending, odd) = (Ok(Pending), Err(Unexpected));
        for (status, meanings) in [
            (200, [Ok(Done); 6]),
            (202, [pending, pending, pending, pending, odd, Ok(Done)]),
            (204, [odd, odd, odd, odd, odd, Ok(Done)]),
            (301, [Unexpected; 6].map(Err)),
            (
                400,
                [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (401, [Key, Key, Key, Key, Key, UploadsRefused].map(Err)),
            (402, [Account, Account, Account, Account, Account, UploadsRefused].map(Err)),
            (403, [Key, Key, Key, Key, UploadsRefused, UploadsRefused].map(Err)),
            (
                404,
                [Account, UploadsRefused, ResultGone, ResultGone, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (
                408,
                [Unexpected, Unexpected, Unexpected, Unexpected, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (
                410,
                [Account, UploadsRefused, Account, UploadsRefused, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (
                413,
                [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (
                415,
                [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (
                422,
                [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused]
                    .map(Err),
            ),
            (
                429,
                [RateLimited, RateLimited, RateLimited, RateLimited, RateLimited, UploadsRefused]
                    .map(Err),
            ),
            (500, [Unavailable; 6].map(Err)),
            (501, [Unexpected; 6].map(Err)),
            (502, [Unavailable; 6].map(Err)),
            (503, [Unavailable; 6].map(Err)),
            (504, [Unavailable; 6].map(Err)),
        ] {
            for (operation, meaning) in columns.into_iter().zip(meanings) {
                assert_eq!(operation.classify(status), meaning, "{operation} {status}");
            }
        }
    }

    #[test]
    fn answers_that_may_contain_a_presigned_url_are_not_quoted() {
        assert!(!UploadAsset.is_quotable(403));
        assert!(!CreateAsset.is_quotable(200));
        assert!(CreateAsset.is_quotable(422) && Infer.is_quotable(500));
    }

    #[test]
    fn transient_failures_are_the_listed_ones() {
        for kind in [RateLimited, Unavailable, AttemptTimeout, ResultGone, GatewayPage] {
            assert!(kind.is_transient(), "{kind:?}");
        }
        for kind in
            [Key, Account, Picture, UploadsRefused, InvalidAnswer, Unexpected, DeadlinePassed]
        {
            assert!(!kind.is_transient(), "{kind:?}");
        }
    }
}
