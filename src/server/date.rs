//! The `Date` header of responses.
//!
//! hyper can set the `Date`, but its cached date only moves forward. If the system's clock is set
//! back, hyper's date stays wrong until the clock has reached it. Therefore this module sets the
//! `Date`, and hyper does not replace it. Only hyper's own responses to invalid HTTP still have
//! hyper's date.

use std::time::SystemTime;

use hyper::{
    Response,
    header::{DATE, HeaderValue},
};

/// Sets a response's `Date` to `now`.
pub(super) fn set_date<B>(response: &mut Response<B>, now: SystemTime) {
    // A formatted date is ASCII, so this never fails.
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
        response.headers_mut().insert(DATE, date);
    }
}
