//! The `Date` header of answers.
//!
//! hyper writes a `Date` too, but caches it per thread and only moves it forward: after the
//! system's clock is set back, hyper's date stays ahead until the clock has caught up. hyper does
//! not replace a `Date` that an answer already has. Only its own bare answers, to input that is not
//! HTTP, carry hyper's date.

use std::time::SystemTime;

use hyper::{
    Response,
    header::{DATE, HeaderValue},
};

/// Sets an answer's `Date` to `now`.
pub(super) fn set_date<B>(response: &mut Response<B>, now: SystemTime) {
    // A formatted date is ASCII, so this never fails.
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        response.headers_mut().insert(DATE, date);
    }
}
