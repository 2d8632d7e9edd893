//! Classifies errors of the service: decides what the run does with the picture, its host, and the
//! other pictures.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use super::item::Failure;

/// The pause if the service is busy, and its answer has no `Retry-After`.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);

/// The pause after the service could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause of the service or of a host. If the service demands more, it gets the next request
/// after this time anyway. If a host demands more, `run.rs` fails its pictures.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(300);

/// The code of a failure if the service sent no answer.
const UNREACHABLE: &str = "service_unreachable";

/// The code of a failure if another program answered, such as a proxy.
const UNKNOWN_ANSWER: &str = "unknown_answer";

/// An error body of the service.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    code: String,
    detail: String,
}

/// What an error means for the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// The picture has failed before it was sent.
    NotSent(Failure),
    /// The picture has failed.
    Fail(Failure),
    /// The picture may be sent again.
    TryAgain(Failure),
    /// The service accepts no pictures for this long. The picture itself may be good.
    PauseService(Failure, Duration),
    /// The host of the picture has failed. It may answer soon.
    HostFailed(Failure),
    /// The host of the picture sends no pictures for this long.
    PauseHost(Failure, Duration),
    /// Every further picture would fail in the same way.
    StopRun(Failure),
}

/// What an attempt shows about the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The service worked on the picture, even if the picture failed.
    Processed,
    /// The service was busy, or did not answer.
    NotProcessed,
    /// The picture was not sent, or a proxy refused it.
    Nothing,
}

impl Action {
    /// What the attempt that ended with this action shows about the service.
    pub(super) fn sign(&self) -> Sign {
        match self {
            Self::NotSent(_) => Sign::Nothing,
            // A proxy has refused the picture.
            Self::Fail(failure) if failure.code == UNKNOWN_ANSWER => Sign::Nothing,
            Self::PauseService(..) => Sign::NotProcessed,
            // No answer, or the 502 or 504 of a proxy that could not reach the service.
            Self::TryAgain(failure) if [UNREACHABLE, UNKNOWN_ANSWER].contains(&&*failure.code) => {
                Sign::NotProcessed
            }
            // `StopRun` may also come from a proxy. Its sign does not matter, because the run ends.
            Self::Fail(_)
            | Self::TryAgain(_)
            | Self::HostFailed(_)
            | Self::PauseHost(..)
            | Self::StopRun(_) => Sign::Processed,
        }
    }
}

/// Classifies an error response. `is_retry_useless` is true if the service says that it is useless to send
/// the picture again soon.
pub(super) fn response(
    status: StatusCode,
    retry_after: Option<Duration>,
    is_retry_useless: bool,
    problem: Option<Problem>,
) -> Action {
    let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let Some(Problem { code, detail }) = problem else {
        // The service sends a `Problem` with each error, so this is from a proxy or another program.
        let detail = format!("The service answered {status}.");
        let failure = Failure { code: UNKNOWN_ANSWER.into(), detail, may_succeed_later: true };
        let pause = retry_after.unwrap_or(DEFAULT_PAUSE).min(MAX_PAUSE);
        return match status {
            _ if is_busy => Action::PauseService(failure, pause),
            StatusCode::PAYLOAD_TOO_LARGE => {
                Action::Fail(Failure { may_succeed_later: false, ..failure })
            }
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Action::TryAgain(failure),
            // For example, the URL in `--to` is wrong.
            _ => Action::StopRun(failure),
        };
    };
    let failure = |may_succeed_later| Failure {
        code: code.clone(),
        detail: detail.clone(),
        may_succeed_later,
    };
    match (code.as_str(), retry_after) {
        ("download_failed", Some(wait)) => Action::PauseHost(failure(true), wait),
        // For example, the host has no such picture.
        ("download_failed", None) if is_retry_useless => Action::Fail(failure(false)),
        ("download_failed" | "download_timeout", _) => Action::HostFailed(failure(true)),
        // `not_found` means that the service lacks the route, not that a host lacks the picture.
        (
            "unauthorized"
            | "embedding_unauthorized"
            | "embedding_exhausted"
            | "storage_full"
            | "not_found"
            | "method_not_allowed",
            _,
        ) => Action::StopRun(failure(true)),
        _ if is_busy => {
            let pause = retry_after.unwrap_or(DEFAULT_PAUSE).min(MAX_PAUSE);
            Action::PauseService(failure(true), pause)
        }
        // Its status 408 is not that of a server error, so the arms below would not try it again.
        ("request_timeout", _) => Action::TryAgain(failure(true)),
        // After a server error, a later run may still succeed.
        _ if is_retry_useless => Action::Fail(failure(status.is_server_error())),
        _ if status.is_server_error() => Action::TryAgain(failure(true)),
        _ => Action::Fail(failure(false)),
    }
}

/// Classifies an error of the connection to the service. `cause` is its innermost cause.
pub(super) fn connection_error(error: &reqwest::Error, cause: &str) -> Action {
    let failure = Failure {
        code: UNREACHABLE.into(),
        detail: format!("The service did not answer: {cause}."),
        may_succeed_later: true,
    };
    if error.is_connect() {
        Action::PauseService(failure, UNREACHABLE_PAUSE)
    } else {
        Action::TryAgain(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(status: u16, code: &str, retry_after: Option<u64>) -> Action {
        let problem = Problem { code: code.into(), detail: "Sentence.".into() };
        let status = StatusCode::from_u16(status).unwrap();
        response(status, retry_after.map(Duration::from_secs), false, Some(problem))
    }

    #[test]
    fn the_service_is_paused_for_its_retry_after_or_the_default_and_never_longer_than_the_limit() {
        for (status, code) in [(429, "rate_limited"), (503, "overloaded"), (503, "shutting_down")] {
            let Action::PauseService(failure, pause) = action(status, code, Some(7)) else {
                panic!("{code}")
            };
            assert_eq!((failure.code.as_str(), pause.as_secs()), (code, 7));
        }
        let too_long = action(503, "embedding_rate_limited", Some(1_000_000));
        assert!(matches!(too_long, Action::PauseService(_, MAX_PAUSE)));
        assert!(matches!(action(503, "overloaded", None), Action::PauseService(_, DEFAULT_PAUSE)));
    }

    #[test]
    fn a_failed_download_pauses_its_host_only_if_the_answer_has_a_retry_after() {
        let paused = action(502, "download_failed", Some(3));
        assert!(matches!(paused, Action::PauseHost(_, wait) if wait.as_secs() == 3));
        assert!(matches!(action(502, "download_failed", None), Action::HostFailed(_)));
    }

    #[test]
    fn a_failed_download_without_retry_after_is_a_failure_of_the_host_unless_a_retry_is_useless() {
        for (status, code) in [(502, "download_failed"), (504, "download_timeout")] {
            let Action::HostFailed(failure) = action(status, code, None) else { panic!("{code}") };
            assert!(failure.may_succeed_later);
        }
        let problem = Problem { code: "download_failed".into(), detail: "404".into() };
        let Action::Fail(failure) = response(StatusCode::BAD_GATEWAY, None, true, Some(problem))
        else {
            panic!("a missing picture should fail at once")
        };
        assert!(!failure.may_succeed_later);
    }

    #[test]
    fn an_error_that_every_picture_would_get_stops_the_run_but_a_413_of_a_proxy_does_not() {
        for (status, code) in
            [(401, "unauthorized"), (502, "embedding_unauthorized"), (507, "storage_full")]
        {
            assert!(matches!(action(status, code, None), Action::StopRun(_)), "{code}");
        }
        // Another program answers with a 404 without a code, for example because the URL in `--to` is wrong.
        assert!(matches!(response(StatusCode::NOT_FOUND, None, false, None), Action::StopRun(_)));
        // A 413 without a code is from a proxy that limits the body.
        let too_large = response(StatusCode::PAYLOAD_TOO_LARGE, None, false, None);
        assert!(matches!(too_large, Action::Fail(_)), "only this picture should fail");
    }

    #[test]
    fn errors_of_the_picture_are_not_tried_again_but_temporary_errors_are() {
        for (status, code) in
            [(415, "unsupported_image"), (413, "image_too_large"), (403, "url_not_allowed")]
        {
            let Action::Fail(failure) = action(status, code, None) else { panic!("{code}") };
            assert!(!failure.may_succeed_later);
        }
        for (status, code) in
            [(504, "embedding_timeout"), (502, "embedding_unavailable"), (408, "request_timeout")]
        {
            assert!(matches!(action(status, code, None), Action::TryAgain(_)), "{code}");
        }
    }

    #[test]
    fn a_picture_counts_as_processed_only_if_the_service_itself_answered_and_was_not_busy() {
        let of_proxy = |status| response(status, None, false, None).sign();
        assert_eq!(of_proxy(StatusCode::PAYLOAD_TOO_LARGE), Sign::Nothing);
        assert_eq!(of_proxy(StatusCode::BAD_GATEWAY), Sign::NotProcessed);
        assert_eq!(action(503, "overloaded", None).sign(), Sign::NotProcessed);
        for (status, code) in [(415, "unsupported_image"), (502, "download_failed")] {
            assert_eq!(action(status, code, None).sign(), Sign::Processed, "{code}");
        }
    }
}
