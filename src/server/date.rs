//! When an answer was made.
//!
//! hyper has a `Date` of its own, but it keeps one in each thread that only moves forward: after the
//! system's clock is set back, it stays ahead until the clock has caught up. Where an answer has one
//! already, hyper leaves it alone. Its own bare answers, to what is no HTTP, keep the one of hyper:
//! without, they would have none.

use std::time::SystemTime;

use hyper::{
    Response,
    header::{DATE, HeaderValue},
};

/// Writes into an answer that it was made now.
pub(super) fn set_date<B>(response: &mut Response<B>, now: SystemTime) {
    // A date is ASCII: it is always a header's value.
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        response.headers_mut().insert(DATE, date);
    }
}
