//! What each answer of NVIDIA's means: one table.

use std::fmt;

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

/// What an answer, or the lack of one, means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It worked.
    Success,
    /// The answer is to be polled for.
    Pending,
    /// The key is refused.
    Key,
    /// The account is out of credits, or the model is gone for it.
    Account,
    /// The picture is refused.
    Picture,
    /// Uploads do not work for this model or account.
    NoAssets,
    /// Too many calls; again later.
    RateLimited,
    /// A fault in passing; again soon.
    Unavailable,
    /// One try took too long; again.
    Slow,
    /// The pending answer is gone: ask anew.
    Lost,
    /// A web page where the API's answer should be: a gateway's doing; again soon.
    Page,
    /// A success that makes no sense.
    Nonsense,
    /// Something that the API does not do.
    Unexpected,
    /// The request's own deadline passed.
    Deadline,
}

impl Operation {
    /// What a status means as the answer to this call.
    pub fn judge(self, status: u16) -> Verdict {
        use Operation::{
            CreateAsset, DeleteAsset, Infer, InferAsset, Poll, PollAsset, UploadAsset,
        };
        match (self, status) {
            (Infer | InferAsset | Poll | PollAsset | CreateAsset, 200) => Verdict::Success,
            (UploadAsset | DeleteAsset, 200..=299) => Verdict::Success,
            (Infer | InferAsset | Poll | PollAsset, 202) => Verdict::Pending,

            // A presigned address knows no key, and does not limit rates: any refusal is for good.
            (UploadAsset, 400..=499) => Verdict::NoAssets,

            (_, 401) => Verdict::Key,
            (_, 402) => Verdict::Account,
            (_, 429) => Verdict::RateLimited,
            (_, 500 | 502 | 503 | 504) => Verdict::Unavailable,

            (CreateAsset, 400..=499) => Verdict::NoAssets,
            (Poll | PollAsset, 404) => Verdict::Lost,
            (Infer | InferAsset | Poll | PollAsset, 403) => Verdict::Key,
            (InferAsset, 400 | 404 | 410 | 413 | 415 | 422) => Verdict::NoAssets,
            (PollAsset, 400 | 410 | 413 | 415 | 422) => Verdict::NoAssets,
            (Infer | Poll, 404 | 410) => Verdict::Account,
            (Infer | Poll, 400 | 413 | 415 | 422) => Verdict::Picture,
            _ => Verdict::Unexpected,
        }
    }

    /// Whether it asks for an embedding.
    pub fn is_inference(self) -> bool {
        matches!(self, Self::Infer | Self::InferAsset | Self::Poll | Self::PollAsset)
    }

    /// Whether the answer says what NVIDIA thinks of the key.
    pub fn tells_of_key(self) -> bool {
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

impl Verdict {
    /// Whether another try may go better.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::RateLimited | Self::Unavailable | Self::Slow | Self::Lost | Self::Page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::*;
    use Verdict::*;

    #[test]
    fn every_status_means_what_the_table_says() {
        let columns = [Infer, InferAsset, Poll, PollAsset, CreateAsset, UploadAsset];
        for (status, verdicts) in [
            (200, [Success, Success, Success, Success, Success, Success]),
            (202, [Pending, Pending, Pending, Pending, Unexpected, Success]),
            (204, [Unexpected, Unexpected, Unexpected, Unexpected, Unexpected, Success]),
            (301, [Unexpected; 6]),
            (400, [Picture, NoAssets, Picture, NoAssets, NoAssets, NoAssets]),
            (401, [Key, Key, Key, Key, Key, NoAssets]),
            (402, [Account, Account, Account, Account, Account, NoAssets]),
            (403, [Key, Key, Key, Key, NoAssets, NoAssets]),
            (404, [Account, NoAssets, Lost, Lost, NoAssets, NoAssets]),
            (408, [Unexpected, Unexpected, Unexpected, Unexpected, NoAssets, NoAssets]),
            (410, [Account, NoAssets, Account, NoAssets, NoAssets, NoAssets]),
            (413, [Picture, NoAssets, Picture, NoAssets, NoAssets, NoAssets]),
            (415, [Picture, NoAssets, Picture, NoAssets, NoAssets, NoAssets]),
            (422, [Picture, NoAssets, Picture, NoAssets, NoAssets, NoAssets]),
            (429, [RateLimited, RateLimited, RateLimited, RateLimited, RateLimited, NoAssets]),
            (500, [Unavailable; 6]),
            (501, [Unexpected; 6]),
            (502, [Unavailable; 6]),
            (503, [Unavailable; 6]),
            (504, [Unavailable; 6]),
        ] {
            for (operation, verdict) in columns.into_iter().zip(verdicts) {
                assert_eq!(operation.judge(status), verdict, "{operation} {status}");
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
        for verdict in [RateLimited, Unavailable, Slow, Lost, Page] {
            assert!(verdict.is_transient());
        }
        for verdict in
            [Success, Pending, Key, Account, Picture, NoAssets, Nonsense, Unexpected, Deadline]
        {
            assert!(!verdict.is_transient());
        }
    }
}
