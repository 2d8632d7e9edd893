//! Classifies NVIDIA's answers: what each status means, in one table, and which failures are those of
//! uploads.

use std::fmt;

use super::Error;

/// The calls that are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Ask for the embedding of a picture that is in the request.
    Infer,
    /// Ask for the embedding of a picture that was uploaded.
    InferAsset,
    /// Ask for a pending answer.
    Poll,
    /// The same, for a picture that was uploaded.
    PollAsset,
    /// Announce an upload.
    CreateAsset,
    /// Upload to the presigned address.
    UploadAsset,
    /// Delete an upload.
    DeleteAsset,
}

/// The answers that an operator is woken for: nothing heals by itself when the key or the account is
/// refused.
pub(super) const ALERTED_STATUSES: [u16; 3] = [401, 402, 403];

/// How far a call got that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It is done.
    Done,
    /// Its answer is to be polled for.
    Pending,
}

/// What a failed call, or one without an answer, is to be blamed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The key is refused.
    Key,
    /// The account is out of credits, or the model is gone for it.
    Account,
    /// The picture is refused.
    Picture,
    /// Uploads do not work for this model or account.
    UploadsRefused,
    /// Too many calls; again later.
    RateLimited,
    /// A fault in passing; again soon.
    Unavailable,
    /// One try took too long; again.
    AttemptTimeout,
    /// The pending answer is gone: ask anew.
    ResultGone,
    /// A web page where the API's answer should be: a gateway's doing; again soon.
    GatewayPage,
    /// A success that makes no sense.
    InvalidAnswer,
    /// Something that the API does not do.
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
            Account, Key, ResultGone, UploadsRefused, Picture, RateLimited, Unavailable, Unexpected,
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

            // A presigned address knows no key, and does not limit rates: any refusal is for good.
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

    /// Whether the answer says what NVIDIA thinks of the key.
    pub fn reports_key_state(self) -> bool {
        !matches!(self, Self::UploadAsset | Self::DeleteAsset)
    }

    /// Whether an answer of this status may be quoted in the log: those around the presigned
    /// address may repeat it.
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
    /// Whether the same picture may go well without being uploaded, and so is shrunk: uploads do not
    /// work here, or not now. What the key, the account or the rate is to blame for would only fail again.
    pub fn is_about_uploads(&self) -> bool {
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
            | Operation::DeleteAsset => self.refuses_uploads(),
        }
    }

    /// Whether uploads were refused, and did not just fail.
    pub fn refuses_uploads(&self) -> bool {
        self.kind == FailureKind::UploadsRefused
    }
}

impl FailureKind {
    /// Whether another try may go better.
    pub fn is_transient(self) -> bool {
        match self {
            Self::RateLimited | Self::Unavailable | Self::AttemptTimeout | Self::ResultGone | Self::GatewayPage => true,
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
    fn every_status_means_what_the_table_says() {
        let columns = [Infer, InferAsset, Poll, PollAsset, CreateAsset, UploadAsset];
        let (pending, odd) = (Ok(Pending), Err(Unexpected));
        for (status, meanings) in [
            (200, [Ok(Done); 6]),
            (202, [pending, pending, pending, pending, odd, Ok(Done)]),
            (204, [odd, odd, odd, odd, odd, Ok(Done)]),
            (301, [Unexpected; 6].map(Err)),
            (400, [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused].map(Err)),
            (401, [Key, Key, Key, Key, Key, UploadsRefused].map(Err)),
            (402, [Account, Account, Account, Account, Account, UploadsRefused].map(Err)),
            (403, [Key, Key, Key, Key, UploadsRefused, UploadsRefused].map(Err)),
            (404, [Account, UploadsRefused, ResultGone, ResultGone, UploadsRefused, UploadsRefused].map(Err)),
            (408, [Unexpected, Unexpected, Unexpected, Unexpected, UploadsRefused, UploadsRefused].map(Err)),
            (410, [Account, UploadsRefused, Account, UploadsRefused, UploadsRefused, UploadsRefused].map(Err)),
            (413, [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused].map(Err)),
            (415, [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused].map(Err)),
            (422, [Picture, UploadsRefused, Picture, UploadsRefused, UploadsRefused, UploadsRefused].map(Err)),
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
    fn what_may_repeat_a_presigned_address_is_not_quoted() {
        assert!(!UploadAsset.is_quotable(403));
        assert!(!CreateAsset.is_quotable(200));
        assert!(CreateAsset.is_quotable(422) && Infer.is_quotable(500));
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        for kind in [RateLimited, Unavailable, AttemptTimeout, ResultGone, GatewayPage] {
            assert!(kind.is_transient(), "{kind:?}");
        }
        for kind in [Key, Account, Picture, UploadsRefused, InvalidAnswer, Unexpected, DeadlinePassed] {
            assert!(!kind.is_transient(), "{kind:?}");
        }
    }
}
