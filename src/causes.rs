//! Iterates over the causes of an error.

use std::error::Error;

/// The causes of an error, without the error itself. The direct cause comes first.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}
