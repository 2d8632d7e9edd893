//! Classifies NVIDIA's responses by their status. Also decides which errors of an upload allow the
//! picture to be sent inline instead.

use std::fmt;

use super::Error;

/// One kind of call to NVIDIA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Request the embedding of an inline picture.
    Infer,
    /// Request the embedding of an asset, which is a picture uploaded to NVIDIA.
    InferAsset,
    /// Poll for the pending result of [`Self::Infer`].
    Poll,
    /// Poll for the pending result of [`Self::InferAsset`].
    PollAsset,
    /// Create an asset, and obtain its presigned URL.
    CreateAsset,
    /// Upload the picture to the presigned URL.
    UploadAsset,
    /// Delete an asset.
    DeleteAsset,
}

/// The alert `ImagesvcKeyRefused` in docs/operating.md counts responses with these statuses. It counts them
/// for every operation except `UploadAsset`, which sends no key, whatever [`Operation::classify`] returns.
pub(super) const ALERTING_STATUSES: [u16; 3] = [401, 402, 403];

/// The state of a call that has not failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The response is complete.
    Done,
    /// The result is not ready. The caller must poll for it.
    Pending,
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// NVIDIA refused the key.
    KeyRefused,
    /// The account is out of credits, or the model is not available to the account.
    AccountRefused,
    /// NVIDIA refused the picture.
    PictureRefused,
    /// NVIDIA refused an upload, or an uploaded picture. Perhaps uploads do not work for this model
    /// or account; perhaps the picture is the cause.
    UploadsRefused,
    /// NVIDIA received too many calls. A later call may succeed.
    RateLimited,
    /// NVIDIA or the connection failed. Another attempt may succeed.
    Unavailable,
    /// One attempt took too long. Another attempt may succeed.
    AttemptTimeout,
    /// NVIDIA accepted the call, but no longer has the result that is polled for. A new inference may
    /// succeed.
    PolledResultGone,
    /// A gateway sent a web page instead of JSON. Another attempt may succeed.
    GatewayPage,
    /// A successful response contained no valid embedding.
    InvalidResponse,
    /// The status is not documented for this call.
    Unexpected,
    /// The deadline of the client's request to this service passed, or the earlier deadline of an
    /// upload to NVIDIA.
    DeadlinePassed,
}

impl Operation {
    /// All kinds of calls.
    pub const ALL: [Self; 7] = [
        Self::Infer,
        Self::InferAsset,
        Self::Poll,
        Self::PollAsset,
        Self::CreateAsset,
        Self::UploadAsset,
        Self::DeleteAsset,
    ];

    /// Returns what a response with this status means for this call.
    ///
    /// # Errors
    /// The kind of error, if the status means that the call failed.
    pub(super) fn classify(self, status: u16) -> Result<Progress, ErrorKind> {
        use ErrorKind::{
            AccountRefused, KeyRefused, PictureRefused, PolledResultGone, RateLimited, Unavailable,
            Unexpected, UploadsRefused,
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

            // The host of a presigned URL checks no key and has no rate limit. Its 401, 402 or 429
            // therefore says nothing about the key, the account or the limit on calls.
            (UploadAsset, 400..=499) => UploadsRefused,

            (_, 401) => KeyRefused,
            (_, 402) => AccountRefused,
            (_, 429) => RateLimited,
            (_, 500 | 502 | 503 | 504) => Unavailable,

            (CreateAsset, 400..=499) => UploadsRefused,
            (Poll | PollAsset, 404) => PolledResultGone,
            (Infer | InferAsset | Poll | PollAsset, 403) => KeyRefused,
            (InferAsset, 400 | 404 | 410 | 413 | 415 | 422) => UploadsRefused,
            (PollAsset, 400 | 410 | 413 | 415 | 422) => UploadsRefused,
            (Infer, 404 | 410) | (Poll, 410) => AccountRefused,
            (Infer | Poll, 400 | 413 | 415 | 422) => PictureRefused,
            _ => Unexpected,
        })
    }

    /// Whether a response to this call updates the state that all calls share: whether NVIDIA
    /// accepts the key, and until when a `Retry-After` of NVIDIA forbids calls. An upload does not
    /// contain the key. A deletion runs in the background, and its response must not affect other
    /// calls.
    pub fn affects_other_calls(self) -> bool {
        !matches!(self, Self::UploadAsset | Self::DeleteAsset)
    }

    /// Whether the log may quote the body of a response with this status. It must not quote a body
    /// that may contain the presigned URL.
    pub fn may_quote_body(self, status: u16) -> bool {
        match self {
            Self::CreateAsset => status >= 400,
            Self::UploadAsset => false,
            _ => true,
        }
    }

    /// The call's name in logs and metrics.
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
    /// Whether the same picture may succeed if it is shrunk and sent inline instead of uploaded. An
    /// error caused by the key, the account or the rate limit would happen again.
    pub fn may_succeed_inline(&self) -> bool {
        match self.operation {
            // `DeadlinePassed` is among the errors that may succeed inline, because the deadline of an
            // upload leaves time for an inline call.
            Operation::CreateAsset | Operation::UploadAsset => match self.kind {
                ErrorKind::KeyRefused | ErrorKind::AccountRefused | ErrorKind::RateLimited => false,
                ErrorKind::PictureRefused
                | ErrorKind::UploadsRefused
                | ErrorKind::Unavailable
                | ErrorKind::AttemptTimeout
                | ErrorKind::PolledResultGone
                | ErrorKind::GatewayPage
                | ErrorKind::InvalidResponse
                | ErrorKind::Unexpected
                | ErrorKind::DeadlinePassed => true,
            },
            Operation::Infer
            | Operation::InferAsset
            | Operation::Poll
            | Operation::PollAsset
            | Operation::DeleteAsset => self.is_upload_refusal(),
        }
    }

    /// Whether NVIDIA refused the upload or the uploaded picture, as opposed to any other error.
    pub fn is_upload_refusal(&self) -> bool {
        self.kind == ErrorKind::UploadsRefused
    }
}

impl ErrorKind {
    /// Whether another attempt may succeed.
    pub fn is_transient(self) -> bool {
        match self {
            Self::RateLimited
            | Self::Unavailable
            | Self::AttemptTimeout
            | Self::PolledResultGone
            | Self::GatewayPage => true,
            Self::KeyRefused
            | Self::AccountRefused
            | Self::PictureRefused
            | Self::UploadsRefused
            | Self::InvalidResponse
            | Self::Unexpected
            | Self::DeadlinePassed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorKind::*;
    use Operation::*;
    use Progress::*;

    #[test]
    fn the_meaning_of_a_status_depends_on_the_operation() {
        let operations =
            [Infer, InferAsset, Poll, PollAsset, CreateAsset, UploadAsset, DeleteAsset];
        let (done, pending, unexpected) = (Ok(Done), Ok(Pending), Err(Unexpected));
        let (key, account, uploads) = (Err(KeyRefused), Err(AccountRefused), Err(UploadsRefused));
        let (picture, gone, limited) =
            (Err(PictureRefused), Err(PolledResultGone), Err(RateLimited));
        for (statuses, meanings) in [
            (&[200][..], [done; 7]),
            (&[202], [pending, pending, pending, pending, unexpected, done, done]),
            (&[204], [unexpected, unexpected, unexpected, unexpected, unexpected, done, done]),
            (
                &[400, 413, 415, 422],
                [picture, uploads, picture, uploads, uploads, uploads, unexpected],
            ),
            (&[401], [key, key, key, key, key, uploads, key]),
            (&[402], [account, account, account, account, account, uploads, account]),
            (&[403], [key, key, key, key, uploads, uploads, unexpected]),
            (&[404], [account, uploads, gone, gone, uploads, uploads, unexpected]),
            (
                &[408],
                [unexpected, unexpected, unexpected, unexpected, uploads, uploads, unexpected],
            ),
            (&[410], [account, uploads, account, uploads, uploads, uploads, unexpected]),
            (&[429], [limited, limited, limited, limited, limited, uploads, limited]),
            (&[301, 501], [unexpected; 7]),
            (&[500, 502, 503, 504], [Err(Unavailable); 7]),
        ] {
            for status in statuses {
                for (operation, meaning) in operations.into_iter().zip(meanings) {
                    assert_eq!(operation.classify(*status), meaning, "{operation} {status}");
                }
            }
        }
    }

    #[test]
    fn a_body_that_may_contain_a_presigned_url_is_not_quoted() {
        assert!(!UploadAsset.may_quote_body(403));
        assert!(!CreateAsset.may_quote_body(200));
        assert!(CreateAsset.may_quote_body(422) && Infer.may_quote_body(500));
    }

    #[test]
    fn errors_that_another_attempt_may_avoid_are_transient() {
        for kind in [RateLimited, Unavailable, AttemptTimeout, PolledResultGone, GatewayPage] {
            assert!(kind.is_transient(), "{kind:?}");
        }
        for kind in [
            KeyRefused,
            AccountRefused,
            PictureRefused,
            UploadsRefused,
            InvalidResponse,
            Unexpected,
            DeadlinePassed,
        ] {
            assert!(!kind.is_transient(), "{kind:?}");
        }
    }
}
