//! Decides what an error of the service means for the picture, for its host, and for the run.

use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;

use super::item::Failure;

/// The pause after the service refused a picture without saying for how long.
const DEFAULT_PAUSE: Duration = Duration::from_secs(5);

/// The pause after the service could not be reached.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause that is waited for. The service or host is asked again after it.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(300);

/// An error body of the service.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    code: String,
    detail: String,
}

/// What an error means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The picture has failed.
    Fail(Failure),
    /// The picture may be sent again.
    TryAgain(Failure),
    /// The service takes no pictures for this time. This is not the picture's fault.
    PauseService(Failure, Duration),
    /// The host of the picture gives no pictures for this time.
    PauseHost(Failure, Duration),
    /// Every further picture would fail in the same way.
    StopRun(Failure),
}

/// The meaning of an error response.
pub(super) fn of_problem(
    status: StatusCode,
    retry_after: Option<Duration>,
    problem: Option<Problem>,
) -> Verdict {
    let is_busy = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let Some(Problem { code, detail }) = problem else {
        // The response comes from a proxy or from another program.
        let detail = format!("The service answered {status}.");
        let failure = Failure { code: "unknown_answer".into(), detail, is_retryable: true };
        let pause = retry_after.unwrap_or(DEFAULT_PAUSE).min(MAX_PAUSE);
        return match status {
            _ if is_busy => Verdict::PauseService(failure, pause),
            StatusCode::PAYLOAD_TOO_LARGE => {
                Verdict::Fail(Failure { is_retryable: false, ..failure })
            }
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Verdict::TryAgain(failure),
            _ => Verdict::StopRun(failure),
        };
    };
    let failure =
        |is_retryable| Failure { code: code.clone(), detail: detail.clone(), is_retryable };
    match (code.as_str(), retry_after) {
        ("download_failed", Some(wait)) => Verdict::PauseHost(failure(true), wait),
        // The host has answered, perhaps that it has no such picture.
        ("download_failed", None) => Verdict::Fail(failure(true)),
        (
            "unauthorized"
            | "embedding_unauthorized"
            | "embedding_exhausted"
            | "storage_full"
            | "not_found"
            | "method_not_allowed",
            _,
        ) => Verdict::StopRun(failure(true)),
        _ if is_busy => {
            let pause = retry_after.unwrap_or(DEFAULT_PAUSE).min(MAX_PAUSE);
            Verdict::PauseService(failure(true), pause)
        }
        ("request_timeout", _) => Verdict::TryAgain(failure(true)),
        _ if status.is_server_error() => Verdict::TryAgain(failure(true)),
        _ => Verdict::Fail(failure(false)),
    }
}

/// The meaning of a broken connection. `cause` says why it broke.
pub(super) fn of_connection(error: &reqwest::Error, cause: &str) -> Verdict {
    let failure = Failure {
        code: "service_unreachable".into(),
        detail: format!("The service did not answer: {cause}."),
        is_retryable: true,
    };
    if error.is_connect() {
        Verdict::PauseService(failure, UNREACHABLE_PAUSE)
    } else {
        Verdict::TryAgain(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: u16, code: &str, retry_after: Option<u64>) -> Verdict {
        let problem = Problem { code: code.into(), detail: "Sentence.".into() };
        let status = StatusCode::from_u16(status).unwrap();
        of_problem(status, retry_after.map(Duration::from_secs), Some(problem))
    }

    #[test]
    fn the_service_is_paused_for_the_time_in_retry_after() {
        for (status, code) in [(429, "rate_limited"), (503, "overloaded"), (503, "shutting_down")] {
            let Verdict::PauseService(failure, pause) = verdict(status, code, Some(7)) else {
                panic!("{code}")
            };
            assert_eq!((failure.code.as_str(), pause.as_secs()), (code, 7));
        }
        let endless = verdict(503, "embedding_rate_limited", Some(1_000_000));
        assert!(matches!(endless, Verdict::PauseService(_, MAX_PAUSE)));
        assert!(matches!(
            verdict(503, "overloaded", None),
            Verdict::PauseService(_, DEFAULT_PAUSE)
        ));
    }

    #[test]
    fn only_a_download_with_retry_after_pauses_its_host() {
        let paused = verdict(502, "download_failed", Some(3));
        assert!(matches!(paused, Verdict::PauseHost(_, wait) if wait.as_secs() == 3));
        assert!(matches!(verdict(502, "download_failed", None), Verdict::Fail(_)));
    }

    #[test]
    fn an_error_that_every_picture_would_get_stops_the_run() {
        for (status, code) in
            [(401, "unauthorized"), (502, "embedding_unauthorized"), (507, "storage_full")]
        {
            assert!(matches!(verdict(status, code, None), Verdict::StopRun(_)), "{code}");
        }
        assert!(matches!(of_problem(StatusCode::NOT_FOUND, None, None), Verdict::StopRun(_)));
        let too_large = of_problem(StatusCode::PAYLOAD_TOO_LARGE, None, None);
        assert!(matches!(too_large, Verdict::Fail(_)), "a proxy refuses only this picture");
    }

    #[test]
    fn errors_of_the_picture_are_final_and_errors_of_the_server_are_not() {
        for (status, code) in
            [(415, "unsupported_image"), (413, "image_too_large"), (403, "url_not_allowed")]
        {
            let Verdict::Fail(failure) = verdict(status, code, None) else { panic!("{code}") };
            assert!(!failure.is_retryable);
        }
        for (status, code) in
            [(504, "embedding_timeout"), (502, "embedding_unavailable"), (408, "request_timeout")]
        {
            assert!(matches!(verdict(status, code, None), Verdict::TryAgain(_)), "{code}");
        }
    }
}
